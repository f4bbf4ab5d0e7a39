"""RoboOrchardLab's arguments, as `lab.install` changes them.

The oracle is the same code, uninstalled.
"""

import copy
import dataclasses
import gc
import pickle
import sys
import weakref
from functools import partial
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.lab import (
    Args,
    assert_same_installed,
    outcome,
    python_frames,
    shown,
)
from robo_orchard_fasthooks import _fast_dataclass, lab


class Truthful:
    """Equal to nothing else, and shown alike."""

    def __repr__(self):
        return "Truthful"

    def __deepcopy__(self, memo):
        return self


VALUE = Truthful()
CONSTRUCTIONS = {
    "by position": lambda: Args(VALUE, 1, 2),
    "all by position": lambda: Args(*range(15)),
    "by keyword": lambda: Args(accelerator=VALUE, step_id=3),
    "in another order": lambda: Args(reduce_loss=VALUE, accelerator=2),
    "both": lambda: Args(VALUE, step_id=3, batch=4),
    "a dictionary": lambda: Args(**{"accelerator": 1, "batch": VALUE}),
    "the least": lambda: Args(accelerator=None),
    "missing": lambda: Args(step_id=1),
    "nothing": lambda: Args(),
    "unknown": lambda: Args(accelerator=1, nope=2),
    "unknown for the missing": lambda: Args(nope=2),
    "twice": lambda: Args(1, accelerator=2),
    "too many": lambda: Args(*range(16)),
    "no string": lambda: Args(**{1: 2}),
    "through the metaclass": lambda: type.__call__(Args, accelerator=VALUE),
    "through partial": lambda: partial(Args, accelerator=1)(batch=2),
    "through map": lambda: next(map(Args, [VALUE])),
    "replaced": lambda: dataclasses.replace(Args(VALUE), step_id=2),
    "pickled": lambda: pickle.loads(pickle.dumps(Args(accelerator=1))),
    "copied": lambda: copy.copy(Args(accelerator=VALUE)),
    "copied deeply": lambda: copy.deepcopy(Args(accelerator=VALUE)),
    "initialised again": lambda: reinitialised(Args(accelerator=1)),
    "updated": lambda: ARGS.copy_with_updates(batch=VALUE, step_id=2),
    "updated, all": lambda: ARGS.copy_with_updates(
        batch=1, model_outputs=2, reduce_loss=3, model=4, accelerator=5
    ),
    "updated, none": lambda: ARGS.copy_with_updates(),
    "updated to None": lambda: ARGS.copy_with_updates(batch=None),
    "updated, unknown": lambda: ARGS.copy_with_updates(batch=1, nope=2),
    "updated from the class": lambda: Args.copy_with_updates(ARGS, batch=1),
    "updated class attribute": lambda: ARGS.copy_with_updates(__doc__="mine"),
    "updated method": lambda: ARGS.copy_with_updates(copy_with_updates=1),
}
ARGS = Args(VALUE, 7, batch="batch")


def reinitialised(args):
    args.__init__(2, batch=3)
    return args


@pytest.mark.parametrize("how", CONSTRUCTIONS)
def test_arguments_are_made_as_before(how):
    assert_same_installed(lambda: shown(CONSTRUCTIONS[how]()))


FIELDS = [field.name for field in dataclasses.fields(Args)]
UPDATES = st.dictionaries(
    st.sampled_from([*FIELDS, "nope", "copy_with_updates"]),
    st.one_of(st.none(), st.integers(), st.just(VALUE)),
)


@given(UPDATES, st.lists(st.integers(), max_size=2))
def test_any_keywords_make_the_same_arguments(keywords, positional):
    assert_same_installed(lambda: shown(Args(*positional, **keywords)))


@given(UPDATES, UPDATES)
def test_any_copies_are_the_same(first, second):
    def make():
        args = Args(accelerator=1)
        for name, value in first.items():
            if name in FIELDS:
                setattr(args, name, value)
        return shown(args.copy_with_updates(**second))

    assert_same_installed(make)


@pytest.mark.usefixtures("installed")
class TestArguments:
    def test_making_and_copying_them_runs_no_python(self):
        args = Args(accelerator=1)
        assert python_frames(lambda: Args(accelerator=1, batch=2)) == []
        assert python_frames(lambda: args.copy_with_updates(step_id=2)) == []

    def test_copies_are_apart(self):
        args = Args(accelerator=1)
        copied = args.copy_with_updates(batch=2)
        copied.step_id = 3
        args.epoch_id = 4
        other = Args(accelerator=1)
        assert (args.batch, args.step_id, copied.epoch_id) == (None, 0, 0)
        assert (other.batch, other.step_id, other.epoch_id) == (None, 0, 0)

    def test_more_attributes_are_the_same_error(self):
        def call():
            args = Args(accelerator=1)
            args.extra = 2
            return args.copy_with_updates()

        assert_same_installed(call)

    def test_an_unknown_one_is_named(self):
        with pytest.raises(
            AttributeError, match="^nope is not a valid attribute$"
        ):
            Args(accelerator=1).copy_with_updates(nope=1)

    def test_a_patched_init_counts(self):
        args = Args(accelerator=1)
        with mock.patch.object(Args, "__init__", return_value=None) as init:
            Args(accelerator=1)
            Args(1, step_id=2)
            args.copy_with_updates(batch=3)
        assert init.call_args_list == [
            mock.call(accelerator=1),
            mock.call(1, step_id=2),
            mock.call(**vars(args)),
        ]
        assert python_frames(lambda: Args(accelerator=1)) == []

    def test_a_setattr_that_is_patched_later_counts(self, monkeypatch):
        names = []

        def patch(self, name, value):
            names.append(name)
            object.__setattr__(self, name, value)

        with lab.install(), monkeypatch.context() as patched:
            patched.setattr(Args, "__setattr__", patch)
            args = Args(accelerator=1).copy_with_updates(batch=3)
            assert (args.accelerator, args.batch) == (1, 3)
            fields = [field.name for field in dataclasses.fields(Args)]
            assert names == [*fields, *fields, "batch"]

    def test_a_new_that_is_patched_later_counts(self):
        # Not of RoboOrchardLab's class: CPython cannot take it back there.
        @dataclasses.dataclass
        class Own:
            a: int

        made = []

        def patch(cls, *args, **kwargs):
            made.append(cls)
            return object.__new__(cls)

        _fast_dataclass.enable(Own)
        try:
            Own.__new__ = patch
            assert Own(a=1).a == 1 and made == [Own]
        finally:
            _fast_dataclass.disable(Own)

    def test_missing_is_a_value(self):
        assert_same_installed(
            lambda: (
                Args(accelerator=1)
                .copy_with_updates(batch=dataclasses.MISSING)
                .batch
            )
        )

    def test_weak_references_and_cycles(self):
        args = Args(accelerator=1)
        copied = args.copy_with_updates(batch=args)
        args.batch = copied
        references = weakref.ref(args), weakref.ref(copied)
        assert all(gc.is_tracked(each) for each in (args, copied))
        del args, copied
        gc.collect()
        assert [reference() for reference in references] == [None, None]

    def test_they_leak_nothing(self):
        args, value = Args(accelerator=1), object()

        def repeat(count):
            for _ in range(count):
                made = Args(accelerator=value, batch=value)
                made.copy_with_updates(
                    batch=value, reduce_loss=value, step_id=value
                )
                Args(value, 1, batch=value)
                outcome(lambda: Args(nope=value))
                outcome(lambda: args.copy_with_updates(batch=1, nope=value))

        gc.collect()
        gc.disable()
        try:
            repeat(100)
            references = sys.getrefcount(value), sys.getrefcount(None)
            blocks = sys.getallocatedblocks()
            repeat(3000)
            assert sys.getallocatedblocks() - blocks < 20
            assert sys.getrefcount(value) == references[0]
            assert abs(sys.getrefcount(None) - references[1]) < 20
        finally:
            gc.enable()


@pytest.mark.parametrize("name", ["batch", "accelerator", "step_id"])
def test_a_deleted_attribute(name):
    def call():
        args = Args(accelerator=1, batch=2, step_id=3)
        delattr(args, name)
        return shown(args.copy_with_updates(epoch_id=1))

    assert_same_installed(call)


class Extended:
    """Kinds of subclasses."""

    @dataclasses.dataclass
    class Field(Args):
        extra: int = 1

    @dataclasses.dataclass
    class PostInit(Args):
        made: int = 0

        def __post_init__(self):
            self.made += 1
            self.batch = "post"

    class Init(Args):
        def __init__(self, accelerator, **kwargs):
            super().__init__(accelerator, **kwargs)
            self.model = "own"

    class Plain(Args):
        pass

    class New(Args):
        def __new__(cls, *args, **kwargs):
            made = super().__new__(cls)
            made.step_id = 5
            return made


@pytest.mark.parametrize("cls", ["Field", "PostInit", "Init", "Plain", "New"])
def test_subclasses_are_made_as_before(cls):
    cls = getattr(Extended, cls)

    def copied(**updates):
        return shown(cls(accelerator=1).copy_with_updates(**updates))

    loop = {"batch": 2, "model_outputs": 3, "reduce_loss": 4}
    for keywords in ({"accelerator": 1}, {"nope": 1}, {}):
        assert_same_installed(partial(outcome, partial(cls, **keywords)))
    for updates in ({}, loop, {"made": 3, "extra": 4}):
        assert_same_installed(partial(copied, **updates))


def test_subclasses_made_while_installed(installed):
    @dataclasses.dataclass
    class Own(Args):
        extra: int = 1

        def __post_init__(self):
            self.extra += 1

    args = Own(accelerator=1, step_id=2)
    assert (args.step_id, args.extra) == (2, 2)
    assert args.copy_with_updates(step_id=3).extra == 3
    lab.uninstall()
    assert vars(Own(accelerator=1, step_id=2)) == vars(args)
