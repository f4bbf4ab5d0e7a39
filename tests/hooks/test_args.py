"""PipelineHookArgs: a dataclass to all that look, and its copies."""

import copy
import dataclasses
import gc
import inspect
import pickle
import weakref
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.contract("K12")

FIELDS = {
    "accelerator": dataclasses.MISSING,
    "epoch_id": 0,
    "step_id": 0,
    "global_step_id": 0,
    "max_epoch": None,
    "max_step": None,
    "start_epoch": 0,
    "start_step": 0,
    "dataloader": None,
    "optimizer": None,
    "lr_scheduler": None,
    "batch": None,
    "model_outputs": None,
    "reduce_loss": None,
}
LATER = {"model": None, "exception": None}
"""What releases after the documents of 0.2 added."""


@pytest.fixture
def values(lib):
    """A value of its own for every field of the implementation."""
    names = [field.name for field in dataclasses.fields(lib.PipelineHookArgs)]
    return {name: f"value of {name}" for name in names}


def test_defaults(lib):
    args = lib.PipelineHookArgs("accelerator")
    for name, default in {**FIELDS, "accelerator": "accelerator"}.items():
        assert getattr(args, name) == default
    assert args.model is None


def test_every_field_is_set_by_keyword(lib, values):
    args = lib.PipelineHookArgs(**values)
    for name, value in values.items():
        assert getattr(args, name) == value


def test_fields_in_the_documents_order_by_position(ours):
    names = [*FIELDS, *LATER]
    args = ours.PipelineHookArgs(*names)
    assert [getattr(args, name) for name in names] == names
    signature = inspect.signature(ours.PipelineHookArgs)
    assert list(signature.parameters) == names
    fields = dataclasses.fields(ours.PipelineHookArgs)
    assert [field.name for field in fields] == names
    for name, default in {**FIELDS, **LATER}.items():
        parameter = signature.parameters[name]
        assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        assert parameter.default == (
            parameter.empty if default is dataclasses.MISSING else default
        )


def test_it_is_a_dataclass(lib, values):
    cls = lib.PipelineHookArgs
    args = cls(**values)
    assert dataclasses.is_dataclass(cls) and dataclasses.is_dataclass(args)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name, default in FIELDS.items():
        assert fields[name].default == default
        assert fields[name].init and fields[name].compare
    assert dataclasses.asdict(args) == values
    assert dataclasses.astuple(args) == tuple(values.values())
    assert vars(args) == values
    changed = dataclasses.replace(args, batch=1)
    assert vars(changed) == {**values, "batch": 1}
    assert vars(args) == values
    assert cls.__match_args__ == tuple(values)


def test_repr(ours, theirs, values):
    names = [*FIELDS, "model"]
    shown = []
    for lib in (ours, theirs):
        args = lib.PipelineHookArgs(**{name: name for name in names})
        args.batch = args
        text = repr(args)
        assert text.startswith("PipelineHookArgs(accelerator='accelerator', ")
        inner = text.removeprefix("PipelineHookArgs(").removesuffix(")")
        shown.append({part for part in inner.split(", ")})
    assert shown[0] - shown[1] == {"exception=None"}
    assert shown[1] - shown[0] == set()
    assert "batch=..." in shown[0]


def test_equality(lib, values):
    args, same = lib.PipelineHookArgs(**values), lib.PipelineHookArgs(**values)

    class Subclass(lib.PipelineHookArgs):
        pass

    assert args == same and not args != same
    for name in values:
        other = lib.PipelineHookArgs(**{**values, name: "other"})
        assert args != other
    assert args != Subclass(**values)
    assert Subclass(**values) == Subclass(**values)
    assert args != values and args.__eq__(values) is NotImplemented
    with pytest.raises(TypeError, match="unhashable type"):
        hash(args)


def test_extra_attributes(lib):
    args = lib.PipelineHookArgs(None)
    with pytest.raises(AttributeError):
        args.extra  # noqa: B018
    args.extra = 1
    assert args.extra == 1 and vars(args)["extra"] == 1
    del args.extra
    assert not hasattr(args, "extra") and "extra" not in vars(args)


def test_writes_and_deletions(lib):
    args = lib.PipelineHookArgs(None)
    args.batch = "batch"
    assert args.batch == "batch" and vars(args)["batch"] == "batch"
    del args.batch
    assert args.batch is None


def test_a_write_through_vars_is_never_lost(ours):
    args = ours.PipelineHookArgs(None)
    with pytest.raises(TypeError, match="does not support item assignment"):
        vars(args)["batch"] = 1
    with pytest.raises(AttributeError):
        vars(args).update(batch=1)
    with pytest.raises(AttributeError):
        args.__dict__ = {"batch": 1}
    assert args.batch is None


def test_match_statement(lib):
    matched = None
    match lib.PipelineHookArgs("accelerator", 3):
        case lib.PipelineHookArgs(accelerator, epoch_id):
            matched = accelerator, epoch_id
    assert matched == ("accelerator", 3)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((), {"batch": 1, "epoch_id": 3})]
)
def test_accelerator_is_required(lib, args, kwargs):
    with pytest.raises(
        TypeError,
        match="^PipelineHookArgs.__init__\\(\\) missing 1 required "
        "positional argument: 'accelerator'$",
    ):
        lib.PipelineHookArgs(*args, **kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((None,), {"nope": 1}, "unexpected keyword argument 'nope'"),
        ((None,), {"accelerator": 1}, "argument.*'accelerator'"),
        (range(17), {}, "argument"),
    ],
)
def test_wrong_arguments(lib, args, kwargs, message):
    with pytest.raises(TypeError, match=message):
        lib.PipelineHookArgs(*args, **kwargs)


def test_calling_init_again_resets_every_field(lib, values):
    args = lib.PipelineHookArgs(**values)
    for each in (args, copy.copy(args), args.copy_with_updates()):
        each.__init__("accelerator")
        assert each == lib.PipelineHookArgs("accelerator")


def test_init_overwrites_what_a_subclass_set_before(lib):
    class Early(lib.PipelineHookArgs):
        def __init__(self, accelerator):
            self.batch = "early"
            super().__init__(accelerator)

    assert Early(None).batch is None


class TestCopyWithUpdates:
    def test_sets_what_is_given(self, lib, values):
        args = lib.PipelineHookArgs(**values)
        for name in values:
            copied = args.copy_with_updates(**{name: "new"})
            assert vars(copied) == {**values, name: "new"}
        updates = {name: f"new {name}" for name in values}
        assert vars(args.copy_with_updates(**updates)) == updates
        assert vars(args.copy_with_updates()) == values
        assert vars(args) == values

    def test_is_shallow(self, lib):
        batch = [1]
        args = lib.PipelineHookArgs(None, batch=batch)
        assert args.copy_with_updates(epoch_id=1).batch is batch

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

    def test_takes_keywords_only(self, lib):
        with pytest.raises(TypeError):
            lib.PipelineHookArgs(None).copy_with_updates(1)

    def test_keeps_extra_attributes(self, ours, theirs):
        for lib in (ours, theirs):
            args = lib.PipelineHookArgs(None)
            args.extra = 1
            if lib is theirs:
                with pytest.raises(TypeError, match="extra"):
                    args.copy_with_updates()
                continue
            copied = args.copy_with_updates(extra=2)
            assert (args.extra, copied.extra) == (1, 2)
            assert args.copy_with_updates().extra == 1

    def test_of_a_subclass_goes_through_its_constructor(self, lib):
        calls = []

        class Constructed(lib.PipelineHookArgs):
            def __init__(self, accelerator, **kwargs):
                calls.append(kwargs)
                super().__init__(accelerator, **kwargs)

        args = Constructed("accelerator", batch=1)
        copied = args.copy_with_updates(epoch_id=3)
        assert type(copied) is Constructed
        assert (copied.accelerator, copied.batch) == ("accelerator", 1)
        assert copied.epoch_id == 3
        assert len(calls) == 2 and calls[1]["batch"] == 1

    def test_of_a_subclass_runs_post_init(self, lib):
        @dataclasses.dataclass
        class Derived(lib.PipelineHookArgs):
            doubled: int = 0

            def __post_init__(self):
                self.doubled = 2 * self.epoch_id

        args = Derived(None, epoch_id=2)
        args.epoch_id = 5
        assert args.doubled == 4
        assert args.copy_with_updates(batch=1).doubled == 10


class TestDataclassSubclass:
    def make(self, lib):
        @dataclasses.dataclass
        class Subclass(lib.PipelineHookArgs):
            extra: int = 7
            more: list[int] = dataclasses.field(default_factory=list)
            epoch_id: int = 5

        return Subclass

    def test_is_constructed_by_position_and_keyword(self, lib):
        cls = self.make(lib)
        args = cls("accelerator", extra=9)
        assert (args.accelerator, args.extra, args.more) == (
            *("accelerator", 9),
            [],
        )
        assert args.epoch_id == 5
        assert cls("accelerator", 3).epoch_id == 3
        parameters = inspect.signature(cls).parameters
        assert list(parameters)[-2:] == ["extra", "more"]
        assert parameters["extra"].default == 7

    def test_repr_and_equality(self, lib):
        cls = self.make(lib)
        assert "extra=9" in repr(cls(None, extra=9))
        assert cls(None, extra=9) == cls(None, extra=9)
        assert cls(None, extra=9) != cls(None)
        assert cls(None) != lib.PipelineHookArgs(None)

    def test_copies(self, lib):
        args = self.make(lib)("accelerator", extra=9, epoch_id=4)
        copied = args.copy_with_updates(extra=1, batch=2)
        assert type(copied) is type(args)
        assert (copied.extra, copied.batch, copied.epoch_id) == (1, 2, 4)
        assert args.extra == 9
        assert dataclasses.replace(args, extra=3).extra == 3
        assert vars(args)["epoch_id"] == 4


@dataclasses.dataclass
class Box:
    args: Any


def test_deepcopy_and_asdict_recurse(lib):
    args = lib.PipelineHookArgs(None, batch=[1])
    copied = copy.deepcopy(args)
    assert copied == args and copied.batch is not args.batch
    assert dataclasses.asdict(Box(args))["args"]["batch"] == [1]


class PlainSubclass:
    """Made in each implementation; pickled by reference to this module."""


def _subclass(lib):
    cls = type(
        "PlainSubclass",
        (lib.PipelineHookArgs,),
        {"__module__": __name__, "__slots__": ("slot",)},
    )
    globals()["PlainSubclass"] = cls
    return cls


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.contract("K9")
def test_pickle(lib, values, protocol):
    for cls in (lib.PipelineHookArgs, _subclass(lib)):
        args = cls(**values)
        args.extra = [1]
        if cls is not lib.PipelineHookArgs:
            args.slot = "slot"
        loaded = pickle.loads(pickle.dumps(args, protocol))
        assert type(loaded) is cls and loaded == args
        assert loaded.extra == [1]
        if cls is not lib.PipelineHookArgs:
            assert loaded.slot == "slot"


@pytest.mark.parametrize("protocol", (0, 1))
@pytest.mark.contract("K9")
def test_pickle_by_old_protocols(lib, values, protocol):
    args = lib.PipelineHookArgs(**values)
    assert pickle.loads(pickle.dumps(args, protocol)) == args


@pytest.mark.contract("K9")
def test_copy(lib, values):
    args = lib.PipelineHookArgs(**values)
    args.extra = [1]
    copied = copy.copy(args)
    assert copied == args and copied.extra is args.extra
    copied.batch = copied.other = 1
    assert vars(args) == {**values, "extra": [1]}


@pytest.mark.contract("K9")
def test_getstate_may_be_overridden(lib):
    class Subclass(lib.PipelineHookArgs):
        def __getstate__(self):
            return {"batch": self.batch}

    copied = copy.copy(Subclass(None, batch=1))
    assert copied.batch == 1 and type(copied) is Subclass


@pytest.mark.contract("K9")
def test_getstate_may_return_a_tuple(lib):
    class Subclass(lib.PipelineHookArgs):
        def __getstate__(self):
            return None, {"batch": self.batch}

    assert copy.copy(Subclass(None, batch=1)).batch == 1


@pytest.mark.contract("K9")
def test_weak_references_and_cycles(lib):
    args = lib.PipelineHookArgs(None)
    reference = weakref.ref(args)
    args.batch = args.extra = args
    del args
    gc.collect()
    assert reference() is None


@pytest.mark.contract("K9")
def test_cooperative_multiple_inheritance(lib):
    class Mixin:
        def __init__(self, *args, **kwargs):
            self.mixed = True
            super().__init__(*args, **kwargs)

    class Mixed(Mixin, lib.PipelineHookArgs):
        pass

    args = Mixed("accelerator", batch=1)
    assert (args.mixed, args.accelerator, args.batch) == (
        *(True, "accelerator"),
        1,
    )


def test_tensors_are_held_as_they_are(lib):
    loss = torch.ones(2, requires_grad=True)
    assert lib.PipelineHookArgs(None, reduce_loss=loss).reduce_loss is loss
