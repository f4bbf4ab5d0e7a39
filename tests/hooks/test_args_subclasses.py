"""Subclasses of PipelineHookArgs that keep fields outside of `__dict__`.

RoboOrchardLab's own `copy_with_updates` raises TypeError for a dataclass with
slots, which has moved all fields there, and forgets the slots of other
classes. What a copy has to hold is what the original holds.
"""

import copy
import dataclasses
import pickle
import sys

import pytest

from robo_orchard_fasthooks.mixin import PipelineHookArgs


@dataclasses.dataclass(slots=True)
class Slots(PipelineHookArgs):
    task: str = "none"


@dataclasses.dataclass
class BelowSlots(Slots):
    more: int = 1


@dataclasses.dataclass(slots=True)
class SlotsAgain(BelowSlots):
    deep: list = dataclasses.field(default_factory=list)
    state: int = dataclasses.field(default=0, init=False)


class PlainSlots(PipelineHookArgs):
    __slots__ = ("task", "_more", "__private")


class FieldsInSlots(PipelineHookArgs):
    __slots__ = ("batch", "epoch_id")


OWN = {
    SlotsAgain: {"task": "seg", "more": 2, "deep": [3], "state": 4},
    PlainSlots: {"task": "seg", "_more": 2, "_PlainSlots__private": 3},
    FieldsInSlots: {},
}
FIELDS = [field.name for field in dataclasses.fields(PipelineHookArgs)]
WAYS = {
    "copy_with_updates": lambda args: args.copy_with_updates(),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda args: pickle.loads(pickle.dumps(args)),
}


def made(cls):
    """Arguments with a value of its own for every field and slot."""
    args = cls("accelerator")
    for number, name in enumerate(FIELDS):
        setattr(args, name, f"value {number}")
    for name, value in OWN[cls].items():
        setattr(args, name, value)
    return args


def held(args):
    names = [*FIELDS, *OWN[type(args)]]
    return {name: getattr(args, name) for name in names}


@pytest.mark.parametrize("cls", OWN)
@pytest.mark.parametrize("way", WAYS)
def test_a_copy_holds_what_the_original_holds(cls, way):
    args = made(cls)
    before = held(args)
    copied = WAYS[way](args)
    assert type(copied) is cls and copied is not args
    assert held(copied) == before == held(args)
    assert copied == args and repr(copied) == repr(args)


@pytest.mark.parametrize("cls", OWN)
def test_updates_are_set_on_the_copy_alone(cls):
    args = made(cls)
    before = held(args)
    for name in before:
        updated = args.copy_with_updates(**{name: "new"})
        assert held(updated) == {**before, name: "new"}
    replaced = dataclasses.replace(args, batch="new")
    for field in dataclasses.fields(cls):
        if field.init and field.name != "batch":
            assert getattr(replaced, field.name) == before[field.name]
    assert replaced.batch == "new" and held(args) == before


def test_every_field_counts_in_comparisons_and_is_shown():
    args = made(SlotsAgain)
    for field in dataclasses.fields(SlotsAgain):
        other = made(SlotsAgain)
        assert args == other
        setattr(other, field.name, "other")
        assert args != other
        assert f"{field.name}='other'" in repr(other)
        assert dataclasses.asdict(other)[field.name] == "other"


@pytest.mark.parametrize("way", WAYS)
def test_a_slot_that_is_unset_stays_unset(way):
    args = PlainSlots("accelerator")
    copied = WAYS[way](args)
    assert not hasattr(copied, "task") and copied == args
    args = Slots("accelerator", task="seg")
    del args.batch
    assert "batch" not in vars(args)
    if way != "copy_with_updates":  # A constructor sets every field.
        copied = WAYS[way](args)
        assert not hasattr(copied, "batch") and copied.task == "seg"


def test_a_constructor_gets_the_fields_that_it_takes():
    made = []

    @dataclasses.dataclass(slots=True)
    class Counted(PipelineHookArgs):
        size: int = 0
        doubled: int = 0

        def __post_init__(self):
            made.append(self.size)
            self.doubled = 2 * self.size

    args = Counted(None, size=2)
    args.size = 5
    assert args.copy_with_updates(batch=1).doubled == 10
    assert made == [2, 5]


def test_an_extra_attribute_beside_slots_is_the_same_error(lib):
    class Extra(lib.PipelineHookArgs):
        __slots__ = ("task",)

    args = Extra(None)
    args.extra = 1
    with pytest.raises(TypeError, match="unexpected keyword argument 'extra'"):
        args.copy_with_updates()


def in_slot(log):
    return {"__slots__": ("batch",)}


def behind_a_class_attribute(log):
    return {"batch": "of the class"}


def behind_a_property(log):
    def set_batch(args, value):
        log.append(value)
        object.__setattr__(args, "kept", value)

    return {"batch": property(lambda args: args.kept, set_batch)}


def through_setattr(log):
    def set_any(args, name, value):
        if name != "exception":  # A field that upstream's have not.
            log.append((name, value))
        object.__setattr__(args, name, value)

    return {"__setattr__": set_any}


@pytest.mark.parametrize(
    "make",
    [in_slot, behind_a_class_attribute, behind_a_property, through_setattr],
)
def test_a_field_that_a_subclass_keeps_elsewhere(make, ours, theirs):
    logs = []
    for lib in (theirs, ours):
        log = []
        cls = type("Args", (lib.PipelineHookArgs,), make(log))
        for value in (1, None):
            args = cls("accelerator", batch=value)
            assert args.batch is value and args.accelerator == "accelerator"
            args.batch = 2
            args.__init__("accelerator")
            assert args.batch is None
        logs.append(sorted(map(repr, log)))  # The order differs.
    assert logs[0] == logs[1]


def test_the_first_value_of_such_a_field_is_not_kept_alive():
    value = object()
    count = sys.getrefcount(value)
    args = FieldsInSlots("accelerator", batch=value)
    assert sys.getrefcount(value) == count + 1
    del args.batch
    assert sys.getrefcount(value) == count


def test_a_base_with_slots_of_its_own_is_refused(ours):
    base = type("Base", (), {"__slots__": ("task",)})
    with pytest.raises(TypeError, match="lay-out conflict"):
        type("Args", (base, ours.PipelineHookArgs), {})
