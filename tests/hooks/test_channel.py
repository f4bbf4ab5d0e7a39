"""Registrations, handles and channels."""

import functools
import math
import operator
from unittest import mock

import pytest
from robo_orchard_core.utils import hook as core

from helpers.hooks import HookContext, Logging
from helpers.implementations import INSTALLED

pytestmark = pytest.mark.also_on(*INSTALLED)


@pytest.mark.contract("K4")
def test_of_equal_hooks_one_is_registered(channel, hook, log):
    class Equal(Logging):
        def __eq__(self, other):
            return isinstance(other, Equal)

        def __hash__(self):
            return 1

    first, other = Equal(log, "a"), hook("b")
    channel.register(first)
    channel.register(other)
    handle = channel.register(Equal(log, "c"))
    assert list(channel._context_handlers) == [first, other]
    assert channel[0] is first
    handle()
    assert list(channel._context_handlers) == [other]


@pytest.mark.contract("K4")
def test_an_unhashable_hook_is_a_type_error(channel, log):
    class Unhashable(Logging):
        __hash__ = None

    with pytest.raises(TypeError, match="unhashable type: 'Unhashable'"):
        channel.register(Unhashable(log, "b"))
    assert len(channel) == 0


@pytest.mark.contract("K5")
def test_handles(channel, hook):
    same = hook("a")
    handle = channel.register(same)
    handle()
    handle()
    assert len(channel) == 0
    channel.register(same)
    handle()
    assert len(channel) == 0
    handle.remove()
    handle.remove()
    with pytest.raises(RuntimeError, match="^The handle has been removed$"):
        handle()


@pytest.mark.also_on()
@pytest.mark.contract("F1")
def test_remove_unregisters(ours, theirs, hook):
    for lib, left in ((ours, 0), (theirs, 1)):
        channel = lib.HookContextChannel("on_step")
        channel.register(hook("a")).remove()
        assert len(channel) == left
        with channel.register(hook("b")):
            assert len(channel) == left + 1
        assert len(channel) == 2 * left


def test_a_failing_removal_can_be_tried_again(ours):
    undo = mock.Mock(side_effect=[OSError, None])
    handle = ours.RemoveableHandle(undo)
    with pytest.raises(OSError):
        handle.remove()
    handle.remove()
    assert undo.call_count == 2 and handle.hook is None


def test_a_handle_passes_on_arguments(lib):
    handle = lib.RemoveableHandle(lambda *args, **kwds: (args, kwds))
    assert handle(1, a=2) == ((1,), {"a": 2})


@pytest.mark.contract("K8")
class TestChannel:
    def test_len_and_indexing(self, channel, hook):
        registered = [hook("a"), hook("b"), hook("c")]
        for each in registered:
            channel.register(each)
        assert len(channel) == 3 and channel.name == "on_step"
        assert [channel[0], channel[-1]] == registered[::2]
        assert list(channel[1:]) == registered[1:]
        assert list(channel._context_handlers) == registered
        with pytest.raises(IndexError, match="^list index out of range$"):
            channel[3]
        with pytest.raises(TypeError):
            channel["a"]

    def test_merging(self, lib, channel, hook):
        a, b, c = hook("a"), hook("b"), hook("c")
        other = lib.HookContextChannel("on_step")
        for each in (b, c):
            other.register(each)
        channel.register(a)
        same = channel
        same += c
        handle = channel.register_hook_channel(other)
        same += other
        assert same is channel
        assert list(channel._context_handlers) == [a, c, b]
        handle()
        channel.register_hook_channel(channel)
        assert list(channel._context_handlers) == [a]
        with pytest.raises(TypeError, match="Cannot add <class 'int'> to"):
            same += 1
        channel.unregister_all()
        assert len(channel) == 0

    def test_merging_other_names_is_refused(self, lib, channel, hook):
        other = lib.HookContextChannel("on_epoch")
        other.register(hook("a"))
        with pytest.raises(
            ValueError,
            match="Cannot register hook channel on_epoch to on_step",
        ):
            channel.register_hook_channel(other)
        assert len(channel) == 0

    def test_merging_with_robo_orchard_core_both_ways(self, ours, hook):
        mine = ours.HookContextChannel("on_step")
        theirs = core.HookContextChannel("on_step")
        a, b = hook("a"), hook("b")
        mine.register(a)
        theirs.register(b)
        mine.register_hook_channel(theirs)
        theirs.register_hook_channel(mine)
        assert list(mine._context_handlers) == [a, b]
        assert list(theirs._context_handlers) == [b, a]

    @pytest.mark.also_on()
    @pytest.mark.contract("K10")
    def test_types(self, ours, hook):
        channel = ours.HookContextChannel("on_step")
        assert isinstance(channel, core.HookContextChannel)
        assert isinstance(channel.register(hook("a")), core.RemoveableHandle)
        assert ours.HookContext is core.HookContext
        generic = ours.HookContextChannel[int]("on_step")
        assert isinstance(generic, ours.HookContextChannel)
        assert ours.RemoveableHandle[print](print).hook is print

    def test_without_init(self, ours, hook, log):
        channel = ours.HookContextChannel.__new__(ours.HookContextChannel)
        channel.register(hook("a", ["before"]))
        with pytest.raises(ValueError, match="^before a$"):
            with channel.begin(None):
                pass
        assert log == ["before a", "after a"]


def plain(args):
    pass


async def coroutine(args):
    pass


def generator(args):
    yield


async def async_generator(args):
    yield


class Called:
    async def __call__(self, args):
        pass

    async def method(self, args):
        pass


class Namespace:
    before = classmethod(lambda cls, args: None)
    after = staticmethod(lambda args: None)


@pytest.mark.contract("F4")
class TestMistakes:
    """What upstream leaves without effect, or lets fail at the first step."""

    LATER = (
        *(coroutine, generator, async_generator),
        *(Called(), Called().method),
        functools.partial(functools.partial(coroutine)),
        functools.partial(Called()),
    )
    ALLOWED = (
        *(plain, print, Called, len, functools.partial(plain)),
        *(mock.Mock(), mock.MagicMock(), mock.AsyncMock(), mock.call),
        *(mock.Mock(spec=coroutine), mock.Mock(spec=functools.partial)),
    )

    @pytest.mark.parametrize("phase", ["before", "after"])
    @pytest.mark.parametrize("callback", LATER)
    def test_callbacks_that_would_never_run(self, ours, callback, phase):
        other = "after" if phase == "before" else "before"
        methods = {phase: lambda *args: None, other: plain}
        subclass = type("Own", (HookContext,), methods)()
        setattr(subclass, phase, callback)
        from_callable = HookContext.from_callable(**{phase: callback})
        channel = ours.HookContextChannel("on_step")
        for hook in (from_callable, subclass):
            with pytest.raises(
                TypeError, match=f"`{phase}` is an async or generator function"
            ):
                channel.register(hook)
        assert len(channel) == 0

    @pytest.mark.parametrize("callback", ALLOWED)
    def test_other_callbacks_are_allowed(self, channel, callback):
        channel.register(HookContext.from_callable(before=callback))
        channel.register(HookContext.from_callable("a", after=callback))
        channel.register(mock.Mock())
        # One to be patched later, and a callable name that does no harm.
        channel.register(HookContext.from_callable())
        channel.register(HookContext.from_callable(plain, plain))
        assert len(channel) == 5

    def test_a_class_of_classmethods_works(self, channel):
        channel.register(Namespace)
        with channel.begin(None):
            pass


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda lib: print, "built-in function print>: it has no callable"),
        (lambda lib: "hook", "from_callable makes one from functions"),
        (lambda lib: HookContext.from_callable(plain), "whose name is plain"),
        (lambda lib: HookContext.from_callable(plain), "Pass before= or"),
        (lambda lib: Logging, "the class Logging: call it, Logging()"),
        (lambda lib: lib.PipelineHooks, "the class PipelineHooks: call it"),
        (lambda lib: lib.HookContextChannel(""), "use register_hook_channel"),
        (lambda lib: lib.OptimizerHookConfig(), "which is a config: "),
        (lambda lib: lib.OptimizerHook(), "use register_pipeline_hooks"),
    ],
)
@pytest.mark.contract("F4")
def test_what_is_no_hook_says_what_to_do(ours, make, expected):
    hooks = ours.PipelineHooks()
    with pytest.raises(TypeError) as raised:
        hooks.register_hook("on_step", make(ours))
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(hooks.hooks["on_step"]) == 0


@pytest.mark.contract("K8")
def test_a_merge_that_fails_halfway_is_undone(ours, hook):
    hooks, other = ours.PipelineHooks(), ours.PipelineHooks()
    mine, shared, theirs = hook("mine"), hook("shared"), hook("theirs")
    for each in (mine, shared):
        hooks.register_hook("on_epoch", each)
    for channel in ("on_loop", "on_epoch"):
        for each in (shared, theirs):
            other.register_hook(channel, each)
    hooks.hooks["on_loop"] = core.HookContextChannel("on_loop")
    hooks.hooks["on_step"].register_hook_channel = mock.Mock(
        side_effect=MemoryError
    )
    with pytest.raises(MemoryError):
        hooks += other
    assert [*hooks.hooks["on_epoch"]._context_handlers] == [mine, shared]
    assert len(hooks.hooks["on_loop"]) == 0


CALLABLES = {
    "partial": functools.partial(print, 1),
    "builtin": math.sqrt,
    "type": dict,
    "compiled": operator.attrgetter("a"),
    "lambda": lambda args: None,
    "mock": mock.Mock(),
    "endless proxy": mock.call,
}


@pytest.mark.parametrize("name", CALLABLES)
@pytest.mark.also_on("installed")  # The stand-in for 0.5 has no `repr`.
@pytest.mark.contract("F6")
def test_any_callable_can_be_shown(ours, name):
    hooks = ours.PipelineHooks()
    hook = HookContext.from_callable(name, after=CALLABLES[name])
    hooks.register_hook("on_step", hook)
    describe = getattr(hooks, "describe", hooks.__repr__)  # Not in place.
    for text in (repr(hooks), repr(hooks.hooks["on_step"]), describe()):
        assert name in text and "after" in text
