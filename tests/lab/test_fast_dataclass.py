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


AB = [("a", int), ("b", int, 1)]
DEMANDING = with_init(init("a, b, d", "self.a = a; self.b = b"))


@pytest.mark.parametrize(
    "cls",
    [
        dataclasses.make_dataclass(
            "Generated", AB, namespace={"c": property(abs)}
        ),
        dataclasses.make_dataclass("KeywordOnly", AB, kw_only=True),
        dataclasses.make_dataclass(
            "BareInitVar", [*AB, ("c", dataclasses.InitVar[int], 2)]
        ),
        with_init(init("b=5, *, c=None, a", "self.b = b; self.a = a")),
        with_init(init("a, b=1, c=0, d=0", "del d, c; self.a, self.b = a, b")),
        DEMANDING,
    ],
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
        if cls is not DEMANDING:
            assert python_frames(lambda: cls(a=1)) == []
        assert seen() == expected


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


def made(a=1, namespace=None, **settings):
    fields = [("a", int, a)]
    return dataclasses.make_dataclass(
        "Own", fields, namespace=namespace, **settings
    )


POST_INIT = made(namespace={"__post_init__": print})
PROPERTY = made()
PROPERTY.a = property(abs, print)
META = type("Meta", (type,), {})("Base", (), {})


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (POST_INIT, MORE),
        (
            made(namespace={"__new__": lambda c, *args: object.__new__(c)}),
            "it has a __new__",
        ),
        (
            made(namespace={"__getattribute__": lambda self, name: None}),
            "it has a __getattribute__",
        ),
        (made(frozen=True), "it has a __setattr__"),
        (made(dataclasses.field(default_factory=list)), MORE),
        (made(dataclasses.field(default=1, init=False)), A_IS_NOT_SET),
        (PROPERTY, "its a is not a plain field"),
        (made(bases=(META,)), "it is not a dataclass, or it has a metaclass"),
        (
            type("Inherits", (POST_INIT,), {}),
            "its __init__ is not a function of its own",
        ),
        (
            with_init(functools.partialmethod(init("", "pass"))),
            "its __init__ is not a function of its own",
        ),
    ],
)
def test_a_class_that_does_more(cls, reason):
    assert unsupported_reason(cls).startswith(reason)


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
