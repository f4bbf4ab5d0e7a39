"""Which classes are constructed and copied quickly, and that nobody can tell.

The oracle is the same class, before it is enabled.
"""

import dataclasses
import functools
import pickle
import sys
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

import upstream
from robo_orchard_fasthooks import _fast_dataclass
from robo_orchard_fasthooks._fast_dataclass import unsupported_reason

COPY = upstream.mixin.PipelineHookArgs.copy_with_updates


class UnreadableError(Exception):
    pass


def unreadable(self):
    raise UnreadableError


@dataclasses.dataclass(init=False)
class ByHand:
    """Has the shape of RoboOrchardLab 0.5's."""

    accelerator: object
    step_id: int = 0
    micro_step: object = None
    is_boundary: bool = True
    batch: object = None
    model_outputs: object = None
    exception: object = None

    def __init__(
        self,
        accelerator: object,
        step_id: int = 0,
        micro_step: object = None,
        is_boundary: bool = True,
        batch: object = None,
        model_outputs: object = None,
        exception: object = None,
        retired: object = None,
    ) -> None:
        """Drops one argument."""
        del retired
        self.accelerator = accelerator
        self.step_id = step_id
        self.micro_step = micro_step
        self.is_boundary = is_boundary
        self.batch = batch
        self.model_outputs = model_outputs
        self.exception = exception

    retired = property(unreadable)
    reduce_loss = property(unreadable)
    copy_with_updates = COPY


@contextmanager
def enabled(cls):
    original = vars(cls).get("copy_with_updates", COPY)
    _fast_dataclass.enable(cls)
    cls.copy_with_updates = _fast_dataclass.copying(cls, original)
    try:
        yield
    finally:
        _fast_dataclass.disable(cls)
        cls.copy_with_updates = original


def python_functions(call):
    names = []

    def profile(frame, event, arg):
        if event == "call":
            names.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return names[1:]


def outcome(call):
    try:
        made = call()
        return type(made), list(vars(made).items())
    except Exception as error:
        return type(error), str(error)


def assert_same_enabled(cls, call):
    expected = outcome(call)
    with enabled(cls):
        assert outcome(call) == expected
    return expected


class Supported:
    """Classes whose `__init__` only sets fields."""

    @dataclasses.dataclass
    class Generated:
        a: int
        b: int = 1

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


@pytest.mark.parametrize(
    "cls", [ByHand, *(c for n, c in vars(Supported).items() if n[0] != "_")]
)
def test_supported(cls):
    assert unsupported_reason(cls) is None
    names = [field.name for field in dataclasses.fields(cls)]
    required = {names[0]: 1}
    given = {name: object() for name in names}
    with enabled(cls):
        assert python_functions(lambda: cls(**required)) == []
    for arguments in (required, given, dict(reversed(given.items())), {}):
        assert_same_enabled(cls, functools.partial(cls, **arguments))


def test_of_roboorchardlab():
    assert unsupported_reason(upstream.mixin.PipelineHookArgs) is None


def with_init(init):
    """A dataclass of the fields a and b with this `__init__`."""

    class Own:
        a: int
        b: int = 1
        c = property(lambda self: 0, unreadable)
        __init__ = init

    return dataclasses.dataclass(init=False)(Own)


class Inits:
    """Functions that do more, or less, than to set fields."""

    def call(self, a, b=1):
        self.a = a
        self.b = abs(b)

    def method(self, a, b=1):
        self.a = a
        self.b = b
        self.setup()

    def branch(self, a, b=1):
        self.a = a
        if b:
            self.b = b

    def expression(self, a, b=1):
        self.a = a
        self.b = b + 1

    def alternative(self, a, b=None):
        self.a = a
        self.b = b or 1

    def global_name(self, a, b=1):
        self.a = a
        self.b = COPY

    def nested(self, a, b=1):
        self.a = a
        self.b = lambda: b

    def attempt(self, a, b=1):
        try:
            self.a = a
        finally:
            self.b = b

    def deletion(self, a, b=1):
        self.a = a
        self.b = b
        del self.a

    def reading(self, a, b=1):
        self.a = a
        self.b = b
        self.b  # noqa: B018

    def generator(self, a, b=1):
        self.a = a
        self.b = b
        yield

    def swapped(self, a, b=1):
        self.a = b
        self.b = a

    def same(self, a, b=1):
        self.a = a
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

    def extra(self, a, b=1, d=2):
        self.a = a
        self.b = b
        self.d = d

    def into_a_property(self, a, b=1, c=2):
        self.a = a
        self.b = b
        self.c = c

    def demanding(self, a, d, b=1):
        self.a = a
        self.b = b

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

    def double_stars(self, a, b=1, **kwargs):
        self.a = a
        self.b = b


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *(
            (name, "its __init__ does more than set fields: ")
            for name in (
                *("call", "method", "branch", "expression", "alternative"),
                *("global_name", "nested", "deletion", "reading"),
                "generator",
            )
        ),
        ("swapped", "its __init__ does not set a to its argument"),
        ("same", "its __init__ does not set b to its argument"),
        ("constant", "its __init__ does not set b to its argument"),
        ("missing", "its __init__ does not set b to its argument"),
        ("nothing", "its __init__ does not set a to its argument"),
        ("elsewhere", "its __init__ fails: 'object' object has no attribute"),
        ("extra", "its __init__ sets d, which is not a field"),
        ("into_a_property", "its __init__ sets c, which is not a field"),
        ("demanding", "its __init__ requires d, which is not a field"),
        ("returned", "its __init__ fails: it returns a value"),
        ("by_position", "its __init__ has positional-only parameters"),
        ("stars", "its __init__ has * or ** parameters"),
        ("double_stars", "its __init__ has * or ** parameters"),
    ],
)
def test_an_init_that_does_anything_else(name, reason):
    found = unsupported_reason(with_init(vars(Inits)[name]))
    assert found is not None and found.startswith(reason)


def test_an_init_that_may_not_reach_its_end():
    # What `finally` compiles to differs between the versions of CPython.
    reason = unsupported_reason(with_init(Inits.attempt))
    assert reason is None or "does more than set fields" in reason


def test_an_init_in_disguise():
    plain = vars(ByHand)["__init__"]

    @functools.wraps(plain)
    def wrapper(*args, **kwargs):
        return plain(*args, **kwargs)

    assert "parameters" in unsupported_reason(with_init(wrapper))
    partial = with_init(functools.partialmethod(plain))
    assert "not a function" in unsupported_reason(partial)


def test_what_is_refused_is_not_run():
    ran = []

    def init(self, a, b=1):
        self.a = a
        ran.append(b)
        self.b = b

    assert "more than set" in unsupported_reason(with_init(init))
    assert ran == []


@dataclasses.dataclass
class Reading:
    a: int = 1

    def __getattribute__(self, name):
        return super().__getattribute__(name)


class Descriptor:
    """What is assigned to it goes elsewhere."""

    def __get__(self, instance, owner):
        return 1

    def __set__(self, instance, value):
        pass


@dataclasses.dataclass
class DescriptorField:
    a: int = Descriptor()


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Reading, "it has a __getattribute__"),
        (DescriptorField, "its a is not a plain field"),
    ],
)
def test_a_class_that_does_more(cls, reason):
    assert unsupported_reason(cls) == reason


CALLS = {
    "trainer": lambda: ByHand(accelerator=1, step_id=2, batch=None),
    "equal to the default": lambda: ByHand(accelerator=1, is_boundary=1),
    "dropped": lambda: ByHand(accelerator=1, retired=2),
    "dropped by position": lambda: ByHand(*range(8)),
    "dropped alone": lambda: ByHand(retired=2),
    "unknown": lambda: ByHand(accelerator=1, nope=2),
    "a name made at run time": lambda: ByHand(
        accelerator=1, **{"".join(["step", "_id"]): 3}
    ),
    "replaced": lambda: dataclasses.replace(ByHand(1, 2), batch=3),
    "pickled": lambda: pickle.loads(pickle.dumps(ByHand(accelerator=1))),
    "copied": lambda: ByHand(1, 2).copy_with_updates(batch=3),
    "copied with all": lambda: ByHand(accelerator=1).copy_with_updates(
        batch=1, model_outputs=2, exception=3, step_id=4
    ),
    "copied with the loss": lambda: ByHand(1).copy_with_updates(reduce_loss=1),
    "copied with what is dropped": lambda: ByHand(1).copy_with_updates(
        batch=1, retired=1
    ),
    "copied, two errors": lambda: ByHand(1).copy_with_updates(
        nope=1, reduce_loss=2
    ),
    "copied, two errors the other way": lambda: ByHand(1).copy_with_updates(
        reduce_loss=2, nope=1
    ),
}


@pytest.mark.parametrize("how", CALLS)
def test_calls_and_copies_are_the_same(how):
    kind, _ = assert_same_enabled(ByHand, CALLS[how])
    if "loss" in how or "what is dropped" in how:
        assert kind is UnreadableError


NAMES = [field.name for field in dataclasses.fields(ByHand)]
ARGUMENTS = st.dictionaries(
    st.sampled_from([*NAMES, "retired", "reduce_loss", "nope"]),
    st.one_of(st.none(), st.booleans(), st.integers(0, 1)),
)


@given(st.lists(ARGUMENTS, max_size=4), ARGUMENTS)
def test_any_calls_in_turn_are_the_same(calls, updates):
    def run():
        for arguments in calls:
            yield outcome(lambda: ByHand(**arguments))  # noqa: B023
            args = ByHand(**{"accelerator": 1} | arguments)
            yield outcome(lambda: args)  # noqa: B023
            yield outcome(lambda: args.copy_with_updates(**updates))  # noqa: B023
            yield outcome(lambda: args)  # noqa: B023

    calls = [{k: v for k, v in c.items() if k in NAMES} for c in calls]
    expected = list(run())
    with enabled(ByHand):
        assert list(run()) == expected


def exchange(deleted, *added, through=None):
    """Arguments of which some attributes were deleted, then some added."""

    def call():
        args = ByHand(accelerator=1, batch=2)
        for name in deleted:
            delattr(args, name)
        for name in added:
            setattr(args, name, 3)
        if through is not None:
            args = through(args)
        return args.copy_with_updates(step_id=4)

    return call


@pytest.mark.parametrize(
    "call",
    [
        exchange(["batch"], "extra"),
        exchange(["exception"], "extra"),
        exchange(["accelerator"], "extra"),
        exchange(["accelerator"], "accelerator"),
        exchange(["batch"], "batch"),
        exchange(["exception"], "exception"),
        exchange(["batch"], "extra", through=dataclasses.replace),
        exchange(
            ["batch"],
            "extra",
            through=lambda args: pickle.loads(pickle.dumps(args)),
        ),
    ],
)
def test_an_attribute_deleted_and_another_added(call):
    assert_same_enabled(ByHand, call)


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
        put_property,
        put_init,
        put_setattr,
        put_setattr_in_base,
        put_getattribute,
        put_kwdefaults,
        put_defaults,
        put_code,
    ],
)
def test_later_changes_count(change):
    def seen(cls):
        found = []
        for arguments in ({"a": 1}, {"a": 1, "b": 2}, {}):
            try:
                made = cls(**arguments)
                copied = (COPY if cls is plain else cls.copy)(made)
                for each in (made, copied):
                    held = object.__getattribute__(each, "__dict__")
                    found.append((each.a, each.b, each.c, held))
            except Exception as error:
                found.append(type(error))
        return found

    plain, quick = fresh(), fresh()
    expected = seen(plain)
    change(plain)
    quick.copy = COPY
    with enabled(quick):
        quick.copy = quick.copy_with_updates
        assert seen(quick) == expected
        change(quick)
        assert seen(quick) == seen(plain) != expected


def test_a_change_that_is_taken_back():
    cls = fresh()
    init = vars(cls)["__init__"]
    with enabled(cls):
        for _ in range(3):
            assert python_functions(lambda: cls(a=1)) == []
            put_init(cls)
            assert python_functions(lambda: cls(a=1)) == ["init"]
            cls.__init__ = init
            cls.other = 1


def test_classes_in_turn():
    first, second = fresh(), fresh()
    with enabled(first):
        method = first.copy_with_updates
        args = first(a=1)
    with enabled(second):
        assert python_functions(lambda: second(a=1)) == []
        assert python_functions(lambda: first(a=1)) == ["__init__"]
        copied = method(args, b=2)
        assert type(copied) is first and (copied.a, copied.b) == (1, 2)


def test_nothing_of_a_call_is_kept():
    value = object()
    count = sys.getrefcount(value)
    with enabled(ByHand):
        made = ByHand(accelerator=value, batch=value)
        made.copy_with_updates(batch=value)
        del made
        assert sys.getrefcount(value) == count
