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

    def hide(self, value):
        self.__private = value

    def hidden(self):
        return self.__private


class BelowPlainSlots(PlainSlots):
    pass


class FieldsInSlots(PipelineHookArgs):
    __slots__ = ("batch", "epoch_id")


CLASSES = [
    Slots,
    BelowSlots,
    SlotsAgain,
    PlainSlots,
    BelowPlainSlots,
    FieldsInSlots,
]
OWN = {
    Slots: {"task": "seg"},
    BelowSlots: {"task": "seg", "more": 2},
    SlotsAgain: {"task": "seg", "more": 2, "deep": [3], "state": 4},
    PlainSlots: {"task": "seg", "_more": 2, "_PlainSlots__private": 3},
    BelowPlainSlots: {"task": "seg", "_more": 2},
    FieldsInSlots: {},
}
FIELDS = [field.name for field in dataclasses.fields(PipelineHookArgs)]
WAYS = {
    "copy_with_updates": lambda args: args.copy_with_updates(),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda args, protocol=protocol: pickle.loads(
            pickle.dumps(args, protocol)
        )
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
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


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("way", WAYS)
def test_a_copy_holds_what_the_original_holds(cls, way):
    args = made(cls)
    before = held(args)
    copied = WAYS[way](args)
    assert type(copied) is cls and copied is not args
    assert held(copied) == before == held(args)
    assert copied == args and repr(copied) == repr(args)


@pytest.mark.parametrize("cls", CLASSES)
def test_updates_are_set_on_the_copy_alone(cls):
    args = made(cls)
    before = held(args)
    for name in before:
        updated = args.copy_with_updates(**{name: "new"})
        assert held(updated) == {**before, name: "new"}
    assert held(args) == before
    with pytest.raises(AttributeError, match="^nope is not a valid attri"):
        args.copy_with_updates(nope=1)


@pytest.mark.parametrize("cls", CLASSES)
def test_replace(cls):
    args = made(cls)
    replaced = dataclasses.replace(args, batch="new")
    fields = [f.name for f in dataclasses.fields(cls) if f.init]
    for name in fields:
        expected = "new" if name == "batch" else getattr(args, name)
        assert getattr(replaced, name) == expected


@pytest.mark.parametrize("cls", [Slots, BelowSlots, SlotsAgain])
def test_every_field_counts_in_comparisons_and_is_shown(cls):
    args = made(cls)
    for field in dataclasses.fields(cls):
        other = made(cls)
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
    args.hide(1)
    copied = WAYS[way](args)
    assert copied.hidden() == 1 and not hasattr(copied, "task")


@pytest.mark.parametrize(
    "way", [way for way in WAYS if way != "copy_with_updates"]
)
def test_a_field_in_a_slot_that_is_unset(way):
    args = Slots("accelerator", task="seg")
    del args.batch
    assert "batch" not in vars(args)
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


def in_slot(lib):
    class Args(lib.PipelineHookArgs):
        __slots__ = ("batch",)

    return Args, []


def behind_a_class_attribute(lib):
    class Args(lib.PipelineHookArgs):
        batch = "of the class"

    return Args, []


def behind_a_property(lib):
    log = []

    class Args(lib.PipelineHookArgs):
        @property
        def batch(self):
            return self.kept

        @batch.setter
        def batch(self, value):
            log.append(value)
            object.__setattr__(self, "kept", value)

    return Args, log


def through_setattr(lib):
    log = []

    class Args(lib.PipelineHookArgs):
        def __setattr__(self, name, value):
            log.append((name, value))
            super().__setattr__(name, value)

    return Args, log


@pytest.mark.parametrize(
    "make",
    [in_slot, behind_a_class_attribute, behind_a_property, through_setattr],
)
def test_a_field_that_a_subclass_keeps_elsewhere(make, ours, theirs):
    logs = []
    for lib in (theirs, ours):
        cls, log = make(lib)
        for value in (1, None):
            args = cls("accelerator", batch=value)
            assert args.batch is value and args.accelerator == "accelerator"
            args.batch = 2
            args.__init__("accelerator")
            assert args.batch is None
        # In another order, and with one field more.
        logs.append(sorted(map(repr, log)))
    known = [each for each in logs[1] if "exception" not in each]
    assert known == logs[0]


def test_the_first_value_of_such_a_field_is_not_kept_alive():
    value = object()
    count = sys.getrefcount(value)
    args = FieldsInSlots("accelerator", batch=value)
    assert sys.getrefcount(value) == count + 1
    del args.batch
    assert sys.getrefcount(value) == count


def test_a_base_with_slots_of_its_own_is_refused(ours, theirs):
    class Base:
        __slots__ = ("task",)

    with pytest.raises(TypeError, match="lay-out conflict"):
        type("Args", (Base, ours.PipelineHookArgs), {})
    type("Args", (Base, theirs.PipelineHookArgs), {})

    class Empty:
        __slots__ = ()

    slots = {"__slots__": ("task",)}
    args = type("Args", (Empty, ours.PipelineHookArgs), slots)(None)
    args.task = 1
    assert args.copy_with_updates().task == 1
