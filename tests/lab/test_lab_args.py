"""The arguments of RoboOrchardLab 0.4.0 and 0.5, as `lab.install` makes them.

The oracle is the same code, uninstalled.
"""

import copy
import dataclasses
import gc
import inspect
import pickle
import sys
import weakref
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import standin
from helpers.lab import (
    Args,
    Value,
    assert_same_installed,
    outcome,
    python_frames,
    shown,
)

VALUE = Value()


@pytest.fixture(params=["0.4.0", "0.5"])
def cls(request):
    if request.param == "0.4.0":
        yield Args
    else:
        with standin.imported() as library:
            yield library.PipelineHookArgs


def names_of(cls):
    return [field.name for field in dataclasses.fields(cls)]


def initialised_again(args):
    args.__init__(2, batch=3)
    return args


# Beside what hypothesis draws.
CONSTRUCTIONS = {
    "all by position": lambda cls: cls(*range(len(names_of(cls)))),
    "a name made at run time": lambda cls: cls(
        accelerator=1, **{"".join(["step", "_id"]): 3}
    ),
    "equal to the default": lambda cls: cls(accelerator=1, epoch_id=False),
    "too many": lambda cls: cls(*range(30)),
    "no string": lambda cls: cls(**{1: 2}),
    "loss": lambda cls: cls(accelerator=1, reduce_loss=2),
    "0.5's loss": lambda cls: cls(accelerator=1, reduced_backward_loss=VALUE),
    "only the loss": lambda cls: cls(reduced_backward_loss=VALUE),
    "through the metaclass": lambda cls: type.__call__(cls, accelerator=1),
    "through partial": lambda cls: partial(cls, accelerator=1)(batch=2),
    "through map": lambda cls: next(map(cls, [VALUE])),
    "replaced": lambda cls: dataclasses.replace(cls(VALUE), step_id=2),
    "pickled": lambda cls: pickle.loads(pickle.dumps(cls(accelerator=1))),
    "copied": lambda cls: copy.copy(cls(accelerator=VALUE)),
    "copied deeply": lambda cls: copy.deepcopy(cls(accelerator=VALUE)),
    "initialised again": lambda cls: initialised_again(cls(accelerator=1)),
}
UPDATES = {
    "loss": {"reduce_loss": 2},
    "0.5's loss": {"batch": 2, "reduced_backward_loss": 2},
    "class attribute": {"__doc__": "mine"},
}


@pytest.mark.parametrize("how", CONSTRUCTIONS)
def test_arguments_are_made_as_before(cls, how):
    assert_same_installed(lambda: shown(CONSTRUCTIONS[how](cls)))


@pytest.mark.parametrize("how", UPDATES)
def test_copies_are_made_as_before(cls, how):
    assert_same_installed(
        lambda: shown(cls(VALUE, 7, batch=3).copy_with_updates(**UPDATES[how]))
    )


ITEMS = st.dictionaries(
    st.integers(0, 20), st.none() | st.integers() | st.just(VALUE)
)
# The class, which the fixture gives, is the same for all examples.
on_the_class = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)


def named(items, names):
    return {names[key % len(names)]: items[key] for key in items}


@on_the_class
@given(ITEMS, st.lists(st.integers(), max_size=2))
def test_any_keywords_make_the_same_arguments(cls, items, positional):
    keywords = named(items, [*names_of(cls), "nope"])
    assert_same_installed(lambda: shown(cls(*positional, **keywords)))


@on_the_class
@given(ITEMS, ITEMS)
def test_any_copies_are_the_same(cls, first, second):
    updates = named(second, [*names_of(cls), "nope", "copy_with_updates"])

    def make():
        args = cls(accelerator=1)
        for name, value in named(first, names_of(cls)).items():
            setattr(args, name, value)
        return shown(args.copy_with_updates(**updates))

    assert_same_installed(make)


@pytest.mark.parametrize(
    ("deleted", "added"),
    [
        (None, "extra"),
        *((name, None) for name in ("batch", "accelerator", "step_id")),
        *((name, "extra") for name in ("batch", "accelerator", "the last")),
        *((name, name) for name in ("batch", "accelerator", "the last")),
    ],
)
def test_copies_after_a_change_of_attributes(cls, deleted, added):
    last = names_of(cls)[-1]

    def call():
        args = cls(accelerator=1, batch=2, step_id=3)
        if deleted:
            delattr(args, deleted.replace("the last", last))
        if added:
            setattr(args, added.replace("the last", last), 4)
        return shown(args.copy_with_updates(epoch_id=1))

    assert_same_installed(call)


@pytest.mark.parametrize(
    "get",
    [
        dataclasses.fields,
        lambda cls: (cls.__mro__, cls.__match_args__, cls.__hash__),
        lambda cls: str(inspect.signature(cls)),
        lambda cls: vars(cls)["__init__"],
        lambda cls: str(inspect.signature(cls.copy_with_updates)),
        lambda cls: cls.copy_with_updates.__qualname__,
        lambda cls: cls.copy_with_updates.__doc__,
    ],
)
def test_what_is_seen_of_the_class_stays(cls, get):
    assert_same_installed(lambda: get(cls))


@pytest.mark.usefixtures("cls", "installed")
class TestInstalled:
    def test_a_step_runs_no_python(self, cls):
        def step():
            args = cls(
                accelerator=1,
                max_step=1,
                max_epoch=1,
                dataloader=1,
                model=1,
                optimizer=1,
                lr_scheduler=1,
            )
            args.step_id = 1
            args.copy_with_updates(batch=1)
            args.copy_with_updates(batch=1, model_outputs=2)
            args.copy_with_updates(step_id=2)

        assert python_frames(step) == []

    def test_copies_are_apart(self, cls):
        args = cls(accelerator=1)
        copied = args.copy_with_updates(batch=2)
        copied.step_id = 3
        args.epoch_id = 4
        other = cls(accelerator=1)
        assert (args.batch, args.step_id, copied.epoch_id) == (None, 0, 0)
        assert (other.batch, other.step_id, other.epoch_id) == (None, 0, 0)

    def test_weak_references_and_cycles(self, cls):
        args = cls(accelerator=1)
        copied = args.copy_with_updates(batch=args)
        args.batch = copied
        references = weakref.ref(args), weakref.ref(copied)
        assert all(gc.is_tracked(each) for each in (args, copied))
        del args, copied
        gc.collect()
        assert [reference() for reference in references] == [None, None]

    def test_they_leak_nothing(self, cls):
        args, value = cls(accelerator=1), object()

        def repeat(count):
            for _ in range(count):
                made = cls(accelerator=value, batch=value)
                made.copy_with_updates(
                    batch=value, model_outputs=value, step_id=value
                )
                cls(value, 1, batch=value)
                outcome(lambda: cls(accelerator=1, reduce_loss=value))
                outcome(lambda: args.copy_with_updates(reduce_loss=value))
                outcome(lambda: cls(nope=value))
                outcome(lambda: args.copy_with_updates(batch=1, nope=value))

        gc.collect()
        gc.disable()
        try:
            repeat(100)
            references = sys.getrefcount(value), sys.getrefcount(None)
            blocks = sys.getallocatedblocks()
            repeat(1000)
            assert sys.getallocatedblocks() - blocks < 20
            assert sys.getrefcount(value) == references[0]
            assert abs(sys.getrefcount(None) - references[1]) < 20
        finally:
            gc.enable()


def with_post_init(base):
    @dataclasses.dataclass
    class Own(base):
        made: int = 0

        def __post_init__(self):
            self.made += 1
            self.batch = "post"

    return Own


def with_init(base):
    class Own(base):
        def __init__(self, accelerator, **kwargs):
            super().__init__(accelerator, **kwargs)
            self.model = "own"

    return Own


def with_new(base):
    class Own(base):
        def __new__(cls, *args, **kwargs):
            made = super().__new__(cls)
            made.step_id = 5
            return made

    return Own


def plain(base):
    return type("Own", (base,), {})


@pytest.mark.parametrize("when", ["before", "while installed"])
@pytest.mark.parametrize(
    "subclass", [with_post_init, with_init, with_new, plain]
)
def test_subclasses_are_made_as_before(cls, subclass, when):
    before = subclass(cls)

    def call():
        own = before if when == "before" else subclass(cls)

        def seen(call):
            return outcome(lambda: vars(call()))

        return [
            *(seen(partial(own, **k)) for k in ({"accelerator": 1}, {"x": 1})),
            *(
                seen(partial(own(accelerator=1).copy_with_updates, **updates))
                for updates in (
                    {},
                    {"batch": 2, "model_outputs": 3},
                    {"reduce_loss": 4},
                    {"made": 3},
                )
            ),
        ]

    assert_same_installed(call)
