"""Subclasses of PipelineHookArgs that keep fields outside of `__dict__`.

RoboOrchardLab's own `copy_with_updates` raises TypeError for a dataclass with
slots, which has moved all fields there, and forgets the slots of other
classes. What a copy has to hold is what the original holds.
"""

import copy
import dataclasses
import sys
from functools import partial

import attrs
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
def test_a_copy_holds_what_the_original_holds(cls, clone):
    args = made(cls)
    before = held(args)
    for copied in (clone(args), args.copy_with_updates()):
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


def test_a_slot_that_is_unset_stays_unset(clone):
    args = PlainSlots("accelerator")
    for copied in (clone(args), args.copy_with_updates()):
        assert not hasattr(copied, "task") and copied == args
    args = Slots("accelerator", task="seg")
    del args.batch
    assert "batch" not in vars(args)
    copied = clone(args)  # The constructor would set every field.
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


def set_any(args, name, value):
    if name != "exception":  # A field that upstream's have not.
        LOG.append((name, value))
    object.__setattr__(args, name, value)


def set_batch(args, value):
    set_any(args, "kept", value)


LOG = []


@pytest.mark.parametrize(
    "namespace",
    [
        {"__slots__": ("batch",)},
        {"batch": "of the class"},
        {"batch": property(lambda args: args.kept, set_batch)},
        {"__setattr__": set_any},
    ],
)
def test_a_field_that_a_subclass_keeps_elsewhere(namespace, ours, theirs):
    logs = []
    for lib in (theirs, ours):
        LOG.clear()
        cls = type("Args", (lib.PipelineHookArgs,), namespace)
        for value in (1, None):
            args = cls("accelerator", batch=value)
            assert args.batch is value and args.accelerator == "accelerator"
            args.batch = 2
            args.__init__("accelerator")
            assert args.batch is None
        logs.append(sorted(map(repr, LOG)))  # The order differs.
    assert logs[0] == logs[1]


def test_the_first_value_of_such_a_field_is_not_kept_alive():
    value = object()
    count = sys.getrefcount(value)
    args = FieldsInSlots("accelerator", batch=value)
    assert sys.getrefcount(value) == count + 1
    del args.batch
    assert sys.getrefcount(value) == count


def without_init(cls):
    class Args(cls):
        def __init__(self, task):
            self.task = task

    return Args


def without_a_field(cls):
    @dataclasses.dataclass
    class Args(cls):
        epoch_id: int = dataclasses.field(init=False)
        task: int = 0

    return lambda task: Args(None, task=task)


def of_attrs(cls, **settings):
    return attrs.define(
        type("Args", (cls,), {"__annotations__": {"task": int}}), **settings
    )


MAKERS = [
    *(without_init, without_a_field, of_attrs),
    partial(of_attrs, slots=False),
]


@pytest.mark.parametrize("make", MAKERS)
def test_fields_that_nobody_set_have_their_defaults(lib, make):
    args = make(lib.PipelineHookArgs)(task=1)
    for field in dataclasses.fields(lib.PipelineHookArgs):
        if field.default is not dataclasses.MISSING:
            assert getattr(args, field.name) == field.default
    assert args.epoch_id % 5 == 0
    assert copy.deepcopy(args).task == 1
    if make in (without_init, MAKERS[-1]):
        copied = args.copy_with_updates(epoch_id=3)
        assert (copied.task, copied.epoch_id, copied.step_id) == (1, 3, 0)


def test_a_constructor_that_fails_is_called_once(lib):
    class Args(lib.PipelineHookArgs):
        def __init__(self, accelerator, **kwargs):
            calls.append(kwargs)
            super().__init__(accelerator, **kwargs)
            if len(calls) > 1:
                raise TypeError("a mistake")

    calls = []
    args = Args(None)
    args.batch = args.epoch_id = 1
    for field in dataclasses.fields(args):
        setattr(args, field.name, "a value")
    with pytest.raises(TypeError, match="a mistake"):
        args.copy_with_updates()
    assert len(calls) == 2 and calls[1]["batch"] == "a value"


def test_a_subclass_may_use_its_dictionary(lib):
    """Reading it asks nothing of the class, nor does a copy set attributes."""

    class Args(lib.PipelineHookArgs):
        def __getattribute__(self, name):
            own = object.__getattribute__(self, "__dict__")
            return own.get(name) or object.__getattribute__(self, name)

        def __setattr__(self, name, value):
            log.append(name)
            object.__setattr__(self, name, value)

        @property
        def batch(self):
            return self.__dict__["batch"]

        @batch.setter
        def batch(self, value):
            self.__dict__["batch"] = value

    log = []
    args = Args(None, batch=1)
    assert args.batch == vars(args)["batch"] == 1
    log.clear()
    copied = copy.copy(args)
    assert copied.batch == 1 and log == []
    assert args.copy_with_updates(batch=2).batch == 2


class New:
    """Takes arguments when it is made, and again when it is unpickled."""

    __slots__ = ()

    def __new__(cls, *args, number=0):
        made = super().__new__(cls)
        made.given = [*args, number]
        return made

    def __init__(self, *args, number=0):
        super().__init__(*args)


class NewArgs(New):
    __slots__ = ()

    def __getnewargs__(self):
        return (*self.given[:1], "again")


class NewArgsEx(New):
    __slots__ = ()

    def __getnewargs_ex__(self):
        return (*self.given[:1], "again"), {"number": 2}


@pytest.mark.parametrize("base", ["PipelineHookArgs", "HookContextChannel"])
@pytest.mark.parametrize("mixin", [New, NewArgs, NewArgsEx])
def test_new_arguments_and_slots(
    lib, base, mixin, clone, monkeypatch, request
):
    """Upstream's object.__reduce_ex__ forgets both in protocols 0 and 1."""
    names = ("slot", "_Pickled__private", "unset")
    bases = (mixin, getattr(lib, base))
    namespace = {"__slots__": names, "__module__": __name__}
    cls = type("Pickled", bases, namespace)
    monkeypatch.setitem(globals(), "Pickled", cls)
    made = cls("name", number=1)
    made.slot = made._Pickled__private = [1]
    way = request.node.callspec.params["clone"]
    if lib.name == "upstream" and way in (0, 1):
        with pytest.raises(TypeError, match="__slots__"):
            clone(made)
        return
    copied = clone(made)
    assert copied.slot == copied._Pickled__private == [1]
    assert not hasattr(copied, "unset") and type(copied) is cls
    assert copied.given == ["name", 1]


def test_a_base_with_slots_of_its_own_is_refused(ours):
    base = type("Base", (), {"__slots__": ("task",)})
    with pytest.raises(TypeError, match="lay-out conflict"):
        type("Args", (base, ours.PipelineHookArgs), {})
