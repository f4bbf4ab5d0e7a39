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


class Inits:
    """Functions that do more, or less, than to set fields."""

    def call(self, a, b=1):
        self.a = a
        self.b = abs(b)

    def branch(self, a, b=1):
        self.a = a
        if b:
            self.b = b

    def global_name(self, a, b=1):
        self.a = a
        self.b = COPY

    def generator(self, a, b=1):
        self.a = a
        self.b = b
        yield

    def swapped(self, a, b=1):
        self.a = b
        self.b = a

    def constant(self, a, b=1):
        self.a = a
        self.b = 1

    def missing(self, a, b=1):
        self.a = a

    def nothing(self):
        pass

    def elsewhere(self, a, b=1):
        self.a = a
        a.b = b

    def into_a_property(self, a, b=1, c=2):
        self.a = a
        self.b = b
        self.c = c

    def returned(self, a, b=1):
        self.a = a
        self.b = b
        return b

    def by_position(self, a, /, b=1):
        self.a = a
        self.b = b

    def stars(self, a, *args, b=1):
        self.a = a
        self.b = b


MORE = "its __init__ does more than set fields: "


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((name, MORE) for name in ("call", "branch", "global_name")),
        ("generator", MORE),
        ("swapped", "its __init__ does not set a to its argument"),
        ("constant", "its __init__ does not set b to its argument"),
        ("missing", "its __init__ does not set b to its argument"),
        ("nothing", "its __init__ does not set a to its argument"),
        ("elsewhere", "its __init__ fails: 'object' object has no attribute"),
        ("into_a_property", "its __init__ sets c, which is not a field"),
        ("returned", "its __init__ fails: "),
        ("by_position", "its __init__ fails: "),
        ("stars", "its __init__ has * or ** parameters"),
    ],
)
def test_an_init_that_does_anything_else(name, reason):
    found = unsupported_reason(with_init(vars(Inits)[name]))
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

    PartialInit = with_init(functools.partialmethod(Inits.missing))


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


def put_property(cls):
    cls.b = property(lambda self: "property", lambda self, value: None)


def put_init(cls):
    def init(self, a, b=1):
        self.a, self.b, self.c = b, a, 0

    cls.__init__ = init


def put_new(cls):
    def new(cls, *args, **kwargs):
        made = object.__new__(cls)
        made.extra = 1
        return made

    cls.__new__ = new


def put_setattr(cls):
    def setattr_(self, name, value):
        object.__setattr__(self, name, (name, value))

    cls.__setattr__ = setattr_


def put_setattr_in_base(cls):
    put_setattr(cls.__bases__[0])


def put_getattribute(cls):
    def getattribute(self, name):
        if name == "__dict__":
            return {"a": "changed"}
        return object.__getattribute__(self, name)

    cls.__getattribute__ = getattribute


def put_kwdefaults(cls):
    cls.__init__.__kwdefaults__ = {"b": "changed"}


def put_defaults(cls):
    cls.__init__.__defaults__ = ("changed",)


def put_code(cls):
    def init(self, a, c=2, *, b=1):
        self.a = "changed"
        self.b = b
        self.c = c

    cls.__init__.__code__ = init.__code__


@pytest.mark.parametrize(
    "change",
    [
        *(put_property, put_init, put_new, put_setattr, put_setattr_in_base),
        *(put_getattribute, put_kwdefaults, put_defaults, put_code),
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
    init = vars(cls)["__init__"]
    with enabled(cls):
        for _ in range(3):
            assert python_frames(lambda: cls(a=1)) == []
            put_init(cls)
            assert python_frames(lambda: cls(a=1)) == ["init"]
            cls.__init__ = init
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
