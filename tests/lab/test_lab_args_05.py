"""The arguments of RoboOrchardLab 0.5, whose `__init__` is written by hand.

On the stand-in for it; the oracle is the same code, uninstalled.
"""

import copy
import dataclasses
import inspect
import pickle
import sys
import traceback
from functools import partial
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import standin
from helpers.lab import (
    assert_same_installed,
    outcome,
    python_frames,
    shown,
)
from robo_orchard_fasthooks import lab

FIELDS = (
    *("accelerator", "epoch_id", "step_id", "global_step_id", "micro_step"),
    *("is_optimizer_step_boundary", "is_optimizer_step_committed"),
    *("max_epoch", "max_step", "start_epoch", "start_step", "dataloader"),
    *("model", "optimizer", "lr_scheduler", "batch", "model_outputs"),
    "exception",
)
TRAINER_S = (
    *("accelerator", "max_step", "max_epoch", "epoch_id", "step_id"),
    *("global_step_id", "dataloader", "model", "optimizer", "lr_scheduler"),
    *("start_epoch", "start_step"),
)


class Value:
    """Equal to nothing else, and shown alike."""

    def __repr__(self):
        return "Value"

    def __deepcopy__(self, memo):
        return self


VALUE = Value()


@pytest.fixture
def args_class():
    with standin.imported() as library:
        yield library.PipelineHookArgs


CONSTRUCTIONS = {
    "the least": lambda cls: cls(accelerator=None),
    "as the trainer": lambda cls: cls(
        **{name: VALUE for name in TRAINER_S},
    ),
    "by position": lambda cls: cls(VALUE, 1, 2),
    "all by position": lambda cls: cls(*range(19)),
    "all by keyword": lambda cls: cls(**{n: VALUE for n in FIELDS}),
    "in another order": lambda cls: cls(batch=VALUE, accelerator=2),
    "both": lambda cls: cls(VALUE, step_id=3, batch=4),
    "missing": lambda cls: cls(step_id=1),
    "nothing": lambda cls: cls(),
    "unknown": lambda cls: cls(accelerator=1, nope=2),
    "unknown for the missing": lambda cls: cls(nope=2),
    "twice": lambda cls: cls(1, accelerator=2),
    "too many": lambda cls: cls(*range(20)),
    "no string": lambda cls: cls(**{1: 2}),
    "the loss that is dropped": lambda cls: cls(
        accelerator=1, reduced_backward_loss=VALUE
    ),
    "only the loss": lambda cls: cls(reduced_backward_loss=VALUE),
    "the loss's other name": lambda cls: cls(accelerator=1, reduce_loss=2),
    "through partial": lambda cls: partial(cls, accelerator=1)(batch=2),
    "through map": lambda cls: next(map(cls, [VALUE])),
    "through the metaclass": lambda cls: type.__call__(cls, accelerator=1),
    "replaced": lambda cls: dataclasses.replace(cls(VALUE), step_id=2),
    "pickled": lambda cls: pickle.loads(pickle.dumps(cls(accelerator=1))),
    "copied": lambda cls: copy.copy(cls(accelerator=VALUE)),
    "copied deeply": lambda cls: copy.deepcopy(cls(accelerator=VALUE)),
    "updated": lambda cls: cls(VALUE, 7).copy_with_updates(batch=VALUE),
    "updated, as a processor": lambda cls: cls(VALUE).copy_with_updates(
        batch=1, model_outputs=2
    ),
    "updated, none": lambda cls: cls(VALUE, 7).copy_with_updates(),
    "updated, all": lambda cls: cls(VALUE).copy_with_updates(
        **{name: 1 for name in FIELDS}
    ),
    "updated, unknown": lambda cls: cls(1).copy_with_updates(batch=1, nope=2),
    "updated, loss": lambda cls: cls(1).copy_with_updates(reduce_loss=2),
    "updated, loss by its field's name": lambda cls: cls(1).copy_with_updates(
        batch=2, reduced_backward_loss=2
    ),
    "updated, loss and unknown": lambda cls: cls(1).copy_with_updates(
        reduce_loss=1, nope=2
    ),
    "updated, unknown and loss": lambda cls: cls(1).copy_with_updates(
        nope=2, reduce_loss=1
    ),
    "updated method": lambda cls: cls(1).copy_with_updates(
        copy_with_updates=1
    ),
    "updated after another attribute": lambda cls: extended(
        cls(1)
    ).copy_with_updates(batch=1),
    "updated after a deletion": lambda cls: deleted(cls(1)).copy_with_updates(
        batch=1
    ),
    "updated with an exception": lambda cls: cls(
        1, exception=KeyError
    ).copy_with_updates(batch=1),
    "read": lambda cls: cls(1).reduce_loss,
    "read by its field's name": lambda cls: cls(1).reduced_backward_loss,
    "asked for": lambda cls: hasattr(cls(1), "reduce_loss"),
    "set": lambda cls: setattr(cls(1), "reduce_loss", 1),
}


def extended(args):
    args.extra = 1
    return args


def deleted(args):
    del args.step_id
    return args


@pytest.mark.parametrize("how", CONSTRUCTIONS)
def test_arguments_are_made_as_before(args_class, how):
    def call():
        made = CONSTRUCTIONS[how](args_class)
        return shown(made) if isinstance(made, args_class) else made

    found = assert_same_installed(call)
    if "loss" in how or "read" in how or how == "asked for":
        dropped = "dropped" in how
        failed = isinstance(found, tuple) and len(found) == 2
        assert failed is not dropped
        if "updated" in how or "read" in how or how == "asked for":
            assert found[0] is (
                AttributeError if "unknown and" in how else RuntimeError
            )


def test_a_loss_is_refused_where_it_was_before(args_class):
    """With the same traceback, from the property on."""

    def call():
        try:
            args_class(1).copy_with_updates(reduce_loss=1)
        except RuntimeError as error:
            frames = traceback.extract_tb(error.__traceback__)
            return [frame.name for frame in frames][-2:]

    assert assert_same_installed(call) == [
        "reduce_loss",
        "_refuse_to_tell_the_loss",
    ]


KEYWORDS = st.dictionaries(
    st.sampled_from([*FIELDS, "nope", "reduced_backward_loss"]),
    st.one_of(st.none(), st.integers(), st.just(VALUE)),
)
UPDATES = st.dictionaries(
    st.sampled_from([*FIELDS, "nope", "reduce_loss", "copy_with_updates"]),
    st.one_of(st.none(), st.integers(), st.just(VALUE)),
)
# The class, which the fixture gives, is the same for all examples.
on_the_class = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@on_the_class
@given(KEYWORDS, st.lists(st.integers(), max_size=2))
def test_any_keywords_make_the_same_arguments(args_class, keywords, given):
    assert_same_installed(lambda: shown(args_class(*given, **keywords)))


@on_the_class
@given(KEYWORDS, UPDATES)
def test_any_copies_are_the_same(args_class, attributes, updates):
    def make():
        args = args_class(accelerator=1)
        for name, value in attributes.items():
            if name in FIELDS:
                setattr(args, name, value)
        return shown(args.copy_with_updates(**updates))

    assert_same_installed(make)


@pytest.mark.parametrize(
    "get",
    [
        lambda cls: [field.name for field in dataclasses.fields(cls)],
        lambda cls: (cls.__mro__, cls.__match_args__, cls.__hash__),
        lambda cls: str(inspect.signature(cls)),
        lambda cls: (cls.__init__.__doc__, cls.__init__.__defaults__),
        lambda cls: vars(cls)["__init__"].__qualname__,
        lambda cls: type(cls.reduce_loss),
        lambda cls: cls.copy_with_updates.__qualname__,
    ],
)
def test_what_is_seen_of_the_class_stays(args_class, get):
    assert_same_installed(lambda: get(args_class))


class TestInstalled:
    @pytest.fixture(autouse=True)
    def installed(self, args_class):
        with lab.install():  # A warning would be an error.
            yield

    def test_the_loop_runs_no_python(self, args_class):
        def step():
            args = args_class(
                accelerator=1,
                max_step=1,
                max_epoch=1,
                epoch_id=1,
                step_id=1,
                global_step_id=1,
                dataloader=1,
                model=1,
                optimizer=1,
                lr_scheduler=1,
                start_epoch=1,
                start_step=1,
            )
            args.micro_step = 1
            args.is_optimizer_step_boundary = False
            args.copy_with_updates(batch=1)
            args.copy_with_updates(batch=1, model_outputs=2)
            args.copy_with_updates(step_id=2)

        assert python_frames(step) == []

    def test_the_loss_is_not_read_for_a_copy(self, args_class):
        reads = []
        read = property(lambda args: reads.append(args))
        args = args_class(accelerator=1)
        with mock.patch.object(args_class, "reduce_loss", read):
            copied = args.copy_with_updates(batch=1, model_outputs=2)
            assert reads == [] and copied.batch == 1
        assert vars(copied) == {**vars(args), "batch": 1, "model_outputs": 2}

    def test_a_patched_init_counts(self, args_class):
        args = args_class(accelerator=1)
        patch = mock.patch.object(args_class, "__init__", return_value=None)
        with patch as init:
            args_class(accelerator=1)
            args.copy_with_updates(batch=3)
        assert init.call_args_list == [
            mock.call(accelerator=1),
            mock.call(**vars(args)),
        ]
        assert python_frames(lambda: args_class(accelerator=1)) == []

    def test_a_property_in_a_field_s_place_counts(self, args_class):
        given = []
        field = property(
            lambda args: 5, lambda args, value: given.append(value)
        )
        with mock.patch.object(args_class, "step_id", field):
            assert args_class(accelerator=1, step_id=2).step_id == 5
        assert given == [2]

    def test_changed_defaults_count(self, args_class):
        init = args_class.__init__
        defaults = init.__defaults__
        init.__defaults__ = (7, *defaults[1:])
        try:
            assert args_class(accelerator=1).epoch_id == 7
        finally:
            init.__defaults__ = defaults
        assert args_class(accelerator=1).epoch_id == 0

    def test_subclasses_are_made_as_before(self, args_class):
        @dataclasses.dataclass
        class Own(args_class):
            task: str = "none"

            def __post_init__(self):
                self.made = True

        made = Own(accelerator=1, task="a")
        assert (made.task, made.made) == ("a", True)
        with pytest.raises(TypeError, match="unexpected .* 'made'"):
            made.copy_with_updates(batch=1)

    def test_it_leaks_nothing(self, args_class):
        value = object()

        def repeat(count):
            for _ in range(count):
                made = args_class(accelerator=value, batch=value)
                made.copy_with_updates(batch=value, model_outputs=value)
                args_class(accelerator=1, reduced_backward_loss=value)
                outcome(partial(made.copy_with_updates, reduce_loss=value))
                outcome(lambda: args_class(nope=value))

        repeat(100)
        references = sys.getrefcount(value)
        repeat(1000)
        assert sys.getrefcount(value) == references
