"""PipelineHookArgs: a dataclass to all that look, and its copies."""

import copy
import dataclasses
import functools
import gc
import inspect
import operator
import weakref
from typing import Any

import pydantic
import pytest

import upstream

pytestmark = pytest.mark.contract("K12")

FIELDS = {
    field.name: field.default
    for field in dataclasses.fields(upstream.mixin.PipelineHookArgs)
}
# Later than the documents of release 0.2.
FIELDS.update(model=FIELDS.pop("model"), exception=None)


@pytest.fixture
def values(lib):
    """A value of its own for every field of the implementation."""
    names = [field.name for field in dataclasses.fields(lib.PipelineHookArgs)]
    return {name: f"value of {name}" for name in names}


def test_fields_in_the_documents_order(ours):
    cls = ours.PipelineHookArgs
    fields = dataclasses.fields(cls)
    assert [(each.name, each.default) for each in fields] == [*FIELDS.items()]
    assert list(inspect.signature(cls).parameters) == list(FIELDS)
    assert list(vars(cls(*FIELDS)).values()) == list(FIELDS)
    assert vars(cls(1)) == {**FIELDS, "accelerator": 1}


def test_it_is_a_dataclass(lib, values):
    cls = lib.PipelineHookArgs
    args = cls(**values)
    assert dataclasses.is_dataclass(cls) and dataclasses.is_dataclass(args)
    assert {name: getattr(args, name) for name in values} == values
    assert dataclasses.asdict(args) == vars(args) == values
    assert dataclasses.astuple(args) == tuple(values.values())
    changed = dataclasses.replace(args, batch=1)
    assert vars(changed) == {**values, "batch": 1}
    assert vars(args) == values
    assert cls.__match_args__ == tuple(values)


def test_repr(ours, theirs):
    shown = []
    for lib in (ours, theirs):
        args = lib.PipelineHookArgs("accelerator", model="model", epoch_id=3)
        args.batch = args
        text = repr(args)
        assert text.startswith("PipelineHookArgs(accelerator='accelerator', ")
        inner = text.removeprefix("PipelineHookArgs(").removesuffix(")")
        shown.append({part for part in inner.split(", ")})
    assert shown[0] == shown[1] | {"exception=None"}
    assert {"batch=...", "model='model'", "epoch_id=3"} < shown[0]


def test_equality(lib, values):
    args, same = lib.PipelineHookArgs(**values), lib.PipelineHookArgs(**values)

    class Subclass(lib.PipelineHookArgs):
        pass

    assert args == same and not args != same
    for name in values:
        assert args != lib.PipelineHookArgs(**{**values, name: "other"})
    assert args != Subclass(**values) == Subclass(**values)
    assert args != values and args.__eq__(values) is NotImplemented
    with pytest.raises(TypeError, match="unhashable type"):
        hash(args)


@pytest.mark.parametrize(
    "write",
    [
        lambda args: operator.setitem(vars(args), "batch", 2),
        lambda args: operator.setitem(vars(args), "new", 2),
        lambda args: operator.ior(vars(args), {"epoch_id": 2})["epoch_id"],
        lambda args: vars(args).update({"batch": 2}, new=3),
        lambda args: vars(args).update([("extra", 2)]),
        lambda args: vars(args).setdefault("batch", 2),
        lambda args: vars(args).setdefault("new", 2),
        lambda args: operator.delitem(vars(args), "extra"),
        lambda args: operator.delitem(vars(args), "epoch_id"),
        lambda args: operator.delitem(vars(args), "nope"),
        lambda args: vars(args).pop("batch"),
        lambda args: vars(args).pop("nope", 2),
        lambda args: vars(args).pop("nope"),
        lambda args: vars(args).popitem(),
        lambda args: vars(args).clear(),
        lambda args: setattr(args, "__dict__", {"batch": 2, "new": 3}),
        lambda args: setattr(args, "__dict__", vars(args)),
        lambda args: setattr(args, "__dict__", None),
        lambda args: setattr(args, "batch", 2),
        lambda args: delattr(args, "batch"),
        lambda args: delattr(args, "epoch_id"),
        lambda args: delattr(args, "extra"),
        lambda args: vars(args).copy().update(batch=2),
        lambda args: (vars(args) | {"batch": 2}).clear(),
    ],
)
@pytest.mark.parametrize("derived", [False, True])
def test_a_write_takes_effect(write, derived, ours, theirs):
    outcomes = []
    for lib in (ours, theirs):
        cls = lib.PipelineHookArgs
        args = (type("Args", (cls,), {}) if derived else cls)(1, 1, batch=1)
        args.extra = 1
        try:
            outcome = write(args)
        except (KeyError, TypeError) as error:
            outcome = repr(error)
        held = {n: getattr(args, n, None) for n in [*FIELDS, "extra", "new"]}
        shown = {n: v for n, v in vars(args).items() if n not in FIELDS}
        outcomes.append((outcome, held, shown))
    assert outcomes[0] == outcomes[1]


def test_what_vars_shows_can_be_copied(lib, clone):
    args = lib.PipelineHookArgs(None, batch=1)
    copied = clone(vars(args))
    assert type(copied) is dict and copied == vars(args)
    copied["batch"] = 2
    assert args.batch == 1


def test_a_cached_property(lib):
    class Cached(lib.PipelineHookArgs):
        @functools.cached_property
        def doubled(self):
            return [2 * self.epoch_id]

    args = Cached(None, 3)
    assert args.doubled == [6] and args.doubled is args.doubled
    del args.doubled
    args.epoch_id = 4
    assert args.doubled == vars(args)["doubled"] == [8]


def test_pydantic_validates_a_subclass(lib):
    config = pydantic.ConfigDict(arbitrary_types_allowed=True)

    @dataclasses.dataclass
    class Derived(lib.PipelineHookArgs):
        __pydantic_config__ = config
        accelerator: Any = None
        model_outputs: Any = None  # Of a Protocol that pydantic cannot read.
        rate: float = 0.1

    adapter = pydantic.TypeAdapter(Derived)
    validated = adapter.validate_python({"rate": "0.5", "epoch_id": "3"})
    assert validated == Derived(rate=0.5, epoch_id=3)
    assert adapter.dump_python(validated) == dataclasses.asdict(validated)
    made = pydantic.dataclasses.dataclass(Derived, config=config)
    assert made(step_id="2").step_id == 2
    with pytest.raises(pydantic.ValidationError, match="epoch_id"):
        made(epoch_id="first")


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "missing 1 required positional argument: 'accelerator'$"),
        ((), {"batch": 1}, "missing 1 required .* argument: 'accelerator'$"),
        ((None,), {"nope": 1}, "unexpected keyword argument 'nope'"),
        ((None,), {"accelerator": 1}, "argument.*'accelerator'"),
        (range(17), {}, "argument"),
    ],
)
def test_wrong_arguments(lib, args, kwargs, message):
    with pytest.raises(TypeError, match=message):
        lib.PipelineHookArgs(*args, **kwargs)


def test_calling_init_again_resets_every_field(lib, values):
    class Early(lib.PipelineHookArgs):
        def __init__(self, accelerator):
            self.batch = "early"
            super().__init__(accelerator)

    args = lib.PipelineHookArgs(**values)
    for each in (args, copy.copy(args), args.copy_with_updates()):
        each.__init__("accelerator")
        assert each == lib.PipelineHookArgs("accelerator")
    assert Early(None).batch is None


class TestCopyWithUpdates:
    def test_sets_what_is_given(self, lib, values):
        args = lib.PipelineHookArgs(**values)
        for name in values:
            copied = args.copy_with_updates(**{name: "new"})
            assert vars(copied) == {**values, name: "new"}
        updates = {name: [name] for name in values}
        updated = args.copy_with_updates(**updates)
        assert vars(updated) == updates and vars(args) == values
        assert updated.copy_with_updates().batch is updates["batch"]

    @pytest.mark.parametrize(
        "updates", [{"nope": 1}, {"batch": 1, "nope": 1}, {"nope": 1, "a": 2}]
    )
    def test_refuses_unknown_keys(self, lib, values, updates):
        args = lib.PipelineHookArgs(**values)
        with pytest.raises(
            AttributeError, match="^nope is not a valid attribute$"
        ):
            args.copy_with_updates(**updates)
        assert vars(args) == values
        with pytest.raises(TypeError):
            args.copy_with_updates(1)

    def test_keeps_extra_attributes(self, ours, theirs):
        for lib in (ours, theirs):
            args = lib.PipelineHookArgs(None)
            args.extra = 1
            if lib is theirs:
                with pytest.raises(TypeError, match="extra"):
                    args.copy_with_updates()
            else:
                copied = args.copy_with_updates(extra=2)
                assert (args.extra, copied.extra) == (1, 2)
                assert args.copy_with_updates().extra == 1

    def test_of_a_dataclass(self, lib):
        @dataclasses.dataclass
        class Derived(lib.PipelineHookArgs):
            doubled: int = 0
            more: list[int] = dataclasses.field(default_factory=list)
            epoch_id: int = 5

            def __post_init__(self):
                self.doubled = 2 * self.epoch_id

        args = Derived("accelerator")
        assert (args.epoch_id, args.doubled, args.more) == (5, 10, [])
        assert Derived(None, 3).epoch_id == 3
        assert list(inspect.signature(Derived).parameters)[-1] == "more"
        assert "doubled=10" in repr(args) and args == Derived("accelerator")
        assert args != Derived("accelerator", more=[1])
        args.epoch_id = vars(args)["epoch_id"] + 1
        copied = args.copy_with_updates(batch=1, more=[2])
        assert (copied.doubled, copied.batch, copied.more) == (12, 1, [2])
        assert type(copied) is Derived and args.more == []
        assert dataclasses.replace(args, more=[3]).more == [3]


@pytest.mark.contract("K9")
def test_copies(lib, values, clone):
    args = lib.PipelineHookArgs(**{**values, "batch": [1]})
    args.extra = [1]
    copied = clone(args)
    assert type(copied) is type(args) and copied == args
    assert copied.extra == [1]
    shared = clone is copy.copy
    assert (copied.batch is args.batch) == shared
    assert (copied.extra is args.extra) == shared
    copied.batch = copied.other = 1
    assert vars(args) == {**values, "batch": [1], "extra": [1]}


@pytest.mark.parametrize(
    "state",
    [
        lambda args: vars(args),
        lambda args: (None, vars(args)),
        # Of a release that had fewer fields: the others have their defaults.
        lambda args: {"accelerator": None, "batch": 1},
    ],
)
@pytest.mark.contract("K9")
def test_getstate_may_be_overridden(lib, state):
    class Subclass(lib.PipelineHookArgs):
        def __getstate__(self):
            return state(self)

    args = Subclass(None, batch=1)
    copied = copy.copy(args)
    assert copied == args and type(copied) is Subclass


@pytest.mark.contract("K9")
def test_weak_references_and_cycles(lib):
    args = lib.PipelineHookArgs(None)
    reference = weakref.ref(args)
    args.batch = args.extra = args
    del args
    gc.collect()
    assert reference() is None
