"""Which classes are constructed and copied quickly, and that nobody can tell.

The oracle is the same class, before it is enabled. RoboOrchardLab's own
arguments are in test_lab_args.py.
"""

import dataclasses
import functools
import gc
from contextlib import contextmanager

import pytest

import upstream
from helpers.lab import outcome, python_frames
from robo_orchard_fasthooks import _fast_dataclass
from robo_orchard_fasthooks._fast_dataclass import unsupported_reason

COPY = upstream.mixin.PipelineHookArgs.copy_with_updates


@contextmanager
def enabled(cls):
    _fast_dataclass.enable(cls)
    cls.copy_with_updates = _fast_dataclass.copying(cls, COPY)
    try:
        yield
    finally:
        _fast_dataclass.disable(cls)
        cls.copy_with_updates = COPY


class Supported:
    """Classes whose `__init__` only sets fields."""

    @dataclasses.dataclass
    class Generated:
        a: int
        b: int = 1

        @property
        def c(self):
            return self.a

    @dataclasses.dataclass(kw_only=True)
    class KeywordOnly:
        a: int
        b: int = 1

    @dataclasses.dataclass
    class BareInitVar:
        a: int
        b: int = 1
        c: dataclasses.InitVar[int] = 2

    @dataclasses.dataclass(init=False)
    class AnotherOrder:
        a: int
        b: int = 1

        def __init__(this, b=5, *, c=None, a):  # noqa: N805
            this.b = b
            this.a = a

    @dataclasses.dataclass(init=False)
    class Dropping:
        a: int
        b: int = 1

        def __init__(self, a, b=1, c=None, d=None):
            """Drops two."""
            del d, c
            self.a, self.b = a, b

    @dataclasses.dataclass(init=False)
    class Demanding:
        a: int

        def __init__(self, a, b):
            self.a = a


@pytest.mark.parametrize(
    "cls", [each for name, each in vars(Supported).items() if name[0] != "_"]
)
def test_supported(cls):
    def seen():
        return [
            outcome(lambda: list(vars(cls(**arguments)).items()))  # noqa: B023
            for arguments in ({"a": 1}, {"b": 2, "a": 1}, {}, {"d": 1, "a": 1})
        ]

    assert unsupported_reason(cls) is None
    expected = seen()
    with enabled(cls):
        if cls is not Supported.Demanding:
            assert python_frames(lambda: cls(a=1)) == []
        assert seen() == expected


def with_init(init):
    """A dataclass of the fields a and b with this `__init__`."""

    class Own:
        a: int
        b: int = 1
        c = property(lambda self: 0, lambda self, value: None)
        __init__ = init

    return dataclasses.dataclass(init=False)(Own)


def init(parameters, body):
    """An `__init__`, from its source."""
    namespace = {"COPY": COPY}
    exec(f"def init(self, {parameters}):\n {body}", namespace)
    return namespace["init"]


MORE = "its __init__ does more than set fields: "
A_IS_NOT_SET, B_IS_NOT_SET = (
    f"its __init__ does not set {name} to its argument" for name in "ab"
)


@pytest.mark.parametrize(
    ("parameters", "body", "reason"),
    [
        ("a, b=1", "self.a = a; self.b = abs(b)", MORE),
        ("a, b=1", "self.a = a\n if b: self.b = b", MORE),
        ("a, b=1", "self.a = a; self.b = COPY", MORE),
        ("a, b=1", "self.a = a; self.b = b; yield", MORE),
        ("a, b=1", "self.a = b; self.b = a", A_IS_NOT_SET),
        ("a, b=1", "self.a = a; self.b = 1", B_IS_NOT_SET),
        ("a, b=1", "self.a = a", B_IS_NOT_SET),
        ("", "pass", A_IS_NOT_SET),
        (
            *("a, b=1", "self.a = a; a.b = b"),
            "its __init__ fails: 'object' object has no attribute",
        ),
        (
            *("a, b=1, c=2", "self.a = a; self.b = b; self.c = c"),
            "its __init__ sets c, which is not a field",
        ),
        (
            *("a, b=1", "self.a = a; self.b = b; return b"),
            "its __init__ fails: ",
        ),
        ("a, /, b=1", "self.a = a; self.b = b", "its __init__ fails: "),
        (
            *("a, *args, b=1", "self.a = a; self.b = b"),
            "its __init__ has * or ** parameters",
        ),
    ],
)
def test_an_init_that_does_anything_else(parameters, body, reason):
    found = unsupported_reason(with_init(init(parameters, body)))
    assert found is not None and found.startswith(reason)


def test_what_is_refused_is_not_run():
    ran = []

    def init(self, a, b=1):
        self.a = a
        ran.append(b)
        self.b = b

    assert unsupported_reason(with_init(init)).startswith(MORE)
    assert ran == []


class Refused:
    """Kinds of classes that cannot be made by a copy of a dictionary."""

    @dataclasses.dataclass
    class PostInit:
        a: int = 1

        def __post_init__(self):
            self.a = 2

    @dataclasses.dataclass
    class New:
        a: int = 1

        def __new__(cls, *args):
            return super().__new__(cls)

    @dataclasses.dataclass
    class Reading:
        a: int = 1

        def __getattribute__(self, name):
            return super().__getattribute__(name)

    @dataclasses.dataclass(frozen=True)
    class Frozen:
        a: int = 1

    @dataclasses.dataclass
    class Factory:
        a: list = dataclasses.field(default_factory=list)

    @dataclasses.dataclass
    class NoInit:
        a: int = dataclasses.field(default=1, init=False)

    @dataclasses.dataclass
    class Property:
        a: int = 1

    Property.a = property(lambda self: 2, lambda self, value: None)

    @dataclasses.dataclass
    class Metaclass(metaclass=type("Meta", (type,), {})):
        a: int = 1

    class Inherits(PostInit):
        pass

    PartialInit = with_init(functools.partialmethod(init("", "pass")))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("PostInit", MORE),
        ("New", "it has a __new__"),
        ("Reading", "it has a __getattribute__"),
        ("Frozen", "it has a __setattr__"),
        ("Factory", MORE),
        ("NoInit", "its __init__ does not set a to its argument"),
        ("Property", "its a is not a plain field"),
        ("Metaclass", "it is not a dataclass, or it has a metaclass"),
        ("Inherits", "its __init__ is not a function of its own"),
        ("PartialInit", "its __init__ is not a function of its own"),
    ],
)
def test_a_class_that_does_more(kind, reason):
    assert unsupported_reason(getattr(Refused, kind)).startswith(reason)


def fresh():
    """A class of its own that may be changed."""

    @dataclasses.dataclass
    class Base:
        pass

    @dataclasses.dataclass(init=False)
    class Own(Base):
        a: int
        b: int = 1
        c: int = 2
        copy_with_updates = COPY

        def __init__(self, a, c=2, *, b=1):
            self.a = a
            self.b = b
            self.c = c

    return Own


def put_setattr(cls):
    cls.__setattr__ = lambda self, name, value: object.__setattr__(
        self, name, (name, value)
    )


def put_getattribute(cls):
    def getattribute(self, name):
        if name == "__dict__":
            return {"a": "changed"}
        return object.__getattribute__(self, name)

    cls.__getattribute__ = getattribute


def put_new(cls):
    def new(cls, *args, **kwargs):
        made = object.__new__(cls)
        made.extra = 1
        return made

    cls.__new__ = new


SWAPPED = init("a, b=1", "self.a, self.b, self.c = b, a, 0")
CHANGED = init("a, c=2, *, b=1", "self.a = 'changed'; self.b = b; self.c = c")


@pytest.mark.parametrize(
    "change",
    [
        *(put_setattr, put_getattribute, put_new),
        lambda cls: put_setattr(cls.__bases__[0]),
        lambda cls: setattr(cls, "b", property(abs, lambda *args: None)),
        lambda cls: setattr(cls, "__init__", SWAPPED),
        lambda cls: setattr(cls.__init__, "__kwdefaults__", {"b": "changed"}),
        lambda cls: setattr(cls.__init__, "__defaults__", ("changed",)),
        lambda cls: setattr(cls.__init__, "__code__", CHANGED.__code__),
    ],
)
def test_later_changes_count(change):
    def seen(cls):
        found = []
        for arguments in ({"a": 1}, {"a": 1, "b": 2}, {}):
            try:
                made = cls(**arguments)
                for each in (made, made.copy_with_updates(a=2)):
                    held = object.__getattribute__(each, "__dict__")
                    found.append((each.a, each.b, each.c, held))
            except Exception as error:
                found.append(type(error))
        return found

    plain, quick = fresh(), fresh()
    expected = seen(plain)
    change(plain)
    with enabled(quick):
        assert seen(quick) == expected
        change(quick)
        assert seen(quick) == seen(plain) != expected


def test_a_change_that_is_taken_back():
    cls = fresh()
    original = vars(cls)["__init__"]
    with enabled(cls):
        for _ in range(3):
            assert python_frames(lambda: cls(a=1)) == []
            cls.__init__ = SWAPPED
            assert python_frames(lambda: cls(a=1)) == ["init"]
            cls.__init__ = original
            cls.other = 1


@pytest.mark.parametrize("function", ["enable", "disable"])
def test_what_is_no_class_is_refused(function):
    for given in (5, None):
        with pytest.raises(TypeError, match="expected type"):
            getattr(_fast_dataclass, function)(given)


def test_classes_in_turn():
    first, second = fresh(), fresh()
    with enabled(first):
        method = first.copy_with_updates
        args = first(a=1)
    with enabled(second):
        assert python_frames(lambda: second(a=1)) == []
        assert python_frames(lambda: first(a=1)) == ["__init__"]
        copied = method(args, b=2)
        assert type(copied) is first and (copied.a, copied.b) == (1, 2)


def test_a_call_during_a_garbage_collection_within_a_call():
    # CPython before 3.12 collects garbage where it allocates an object.
    cls = fresh()

    class Garbage:
        def __init__(self):
            self.itself = self

        def __del__(self):
            cls(a=0, c=0)

    threshold = gc.get_threshold()
    gc.disable()
    try:
        with enabled(cls):
            cls(c=None, a=None)
            Garbage()
            # Takes the dictionaries that CPython would use again, so that the
            # copy of the defaults is the allocation that collects.
            used_up = [{} for _ in range(200)]
            gc.set_threshold(1)
            gc.enable()
            made = cls(c=None, a=None)
    finally:
        gc.set_threshold(*threshold)
        gc.enable()
    assert (made.c, made.a) == (None, None)
    assert len(used_up) == 200
