"""Registrations, handles and channels."""

import functools
import math
import operator
import weakref
from unittest import mock

import pytest
from robo_orchard_core.utils import hook as core

from helpers.hooks import HookContext, Logging
from helpers.implementations import INSTALLED

pytestmark = pytest.mark.also_on(*INSTALLED)


@pytest.mark.contract("K4")
def test_a_hook_is_registered_once(hooks, hook, log, args):
    same = hook("a")
    first = hooks.register_hook("on_step", same)
    hooks.register_hook("on_step", hook("b"))
    second = hooks.register_hook("on_step", same)
    with hooks.begin("on_step", args):
        pass
    assert log[:2] == ["before a", "before b"]
    second()
    assert len(hooks.hooks["on_step"]) == 1
    first()
    assert len(hooks.hooks["on_step"]) == 1


@pytest.mark.contract("K4")
def test_the_same_hook_is_told_by_equality(channel, log):
    class Equal(Logging):
        def __eq__(self, other):
            return isinstance(other, Equal)

        def __hash__(self):
            return 1

    first, second = Equal(log, "a"), Equal(log, "b")
    channel.register(first)
    handle = channel.register(second)
    assert len(channel) == 1 and channel[0] is first
    handle()
    assert len(channel) == 0


@pytest.mark.contract("K4")
def test_an_unhashable_hook_is_a_type_error(channel, log, hook):
    class Unhashable(Logging):
        __hash__ = None

    channel.register(hook("a"))
    with pytest.raises(TypeError, match="unhashable type: 'Unhashable'"):
        channel.register(Unhashable(log, "b"))
    assert len(channel) == 1


@pytest.mark.contract("K5")
def test_a_handle_discards_the_hook_however_often(channel, hook):
    same = hook("a")
    handle = channel.register(same)
    handle()
    handle()
    assert len(channel) == 0
    channel.register(same)
    handle()
    assert len(channel) == 0


@pytest.mark.contract("K5")
def test_a_removed_handle_cannot_be_called(channel, hook):
    handle = channel.register(hook("a"))
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


@pytest.mark.contract("F1")
def test_removing_a_merge_unregisters_all_of_it(ours, hook):
    hooks, other = ours.PipelineHooks(), ours.PipelineHooks()
    other.register_hook("on_step", hook("a"))
    other.register_hook("on_epoch", hook("b"))
    kept = hook("c")
    hooks.register_hook("on_step", kept)
    hooks.register_pipeline_hooks(other).remove()
    assert list(hooks.hooks["on_step"]._context_handlers) == [kept]
    assert len(hooks.hooks["on_epoch"]) == 0
    assert len(other.hooks["on_step"]) == 1


def test_a_failing_removal_can_be_tried_again(ours):
    calls = []

    def undo():
        calls.append(None)
        if len(calls) == 1:
            raise OSError

    handle = ours.RemoveableHandle(undo)
    with pytest.raises(OSError):
        handle.remove()
    handle.remove()
    assert len(calls) == 2 and handle.hook is None


def test_a_handle_passes_on_arguments(lib):
    handle = lib.RemoveableHandle(lambda *args, **kwds: (args, kwds))
    assert handle(1, a=2) == ((1,), {"a": 2})


@pytest.mark.contract("K8")
class TestChannel:
    def test_len_and_indexing(self, channel, hook):
        a, b, c = hook("a"), hook("b"), hook("c")
        assert len(channel) == 0
        for each in (a, b, c):
            channel.register(each)
        assert len(channel) == 3
        assert [channel[0], channel[-1]] == [a, c]
        assert list(channel[1:]) == [b, c]
        assert list(channel._context_handlers) == [a, b, c]
        with pytest.raises(IndexError, match="index out of range"):
            channel[3]
        with pytest.raises(TypeError):
            channel["a"]

    def test_adding(self, lib, channel, hook):
        a, b = hook("a"), hook("b")
        other = lib.HookContextChannel("on_step")
        other.register(b)
        same = channel
        same += a
        same += other
        assert same is channel
        assert list(channel._context_handlers) == [a, b]
        with pytest.raises(TypeError, match="Cannot add <class 'int'> to"):
            same += 1

    def test_merging(self, lib, channel, hook):
        a, b, c = hook("a"), hook("b"), hook("c")
        other = lib.HookContextChannel("on_step")
        for each in (b, c):
            other.register(each)
        channel.register(a)
        channel.register(c)
        handle = channel.register_hook_channel(other)
        assert list(channel._context_handlers) == [a, c, b]
        handle()
        assert list(channel._context_handlers) == [a]
        channel.register_hook_channel(channel)
        assert list(channel._context_handlers) == [a]

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

    def test_unregistering_all(self, channel, hook, log):
        channel.register(hook("a"))
        channel.unregister_all()
        assert len(channel) == 0
        with channel.begin(None):
            pass
        assert log == []

    @pytest.mark.also_on()
    def test_name_and_repr(self, ours, theirs, hook):
        hooks = [hook("a"), hook("b")]
        shown = []
        for lib in (ours, theirs):
            for count in (0, 1, 2):
                channel = lib.HookContextChannel("on_step")
                assert channel.name == "on_step"
                for each in hooks[:count]:
                    channel.register(each)
                cls = type(channel)
                shown.append(
                    repr(channel).replace(f"{cls.__module__}.", "", 1)
                )
        assert shown[:3] == shown[3:]

    @pytest.mark.also_on()
    @pytest.mark.contract("K10")
    def test_types(self, ours, hook):
        channel = ours.HookContextChannel("on_step")
        assert isinstance(channel, core.HookContextChannel)
        assert isinstance(channel.register(hook("a")), core.RemoveableHandle)
        assert ours.HookContext is core.HookContext
        assert isinstance(
            ours.HookContextChannel[int]("on_step"), ours.HookContextChannel
        )
        assert isinstance(
            ours.RemoveableHandle[print](print), core.RemoveableHandle
        )

    def test_subclass_without_init(self, ours, hook, log):
        class Nameless(ours.HookContextChannel):
            def __init__(self):
                pass

        channel = Nameless()
        channel.register(hook("a"))
        with channel.begin(None):
            pass
        assert log == ["before a", "after a"]

    def test_subclass_without_init_and_a_failing_hook(self, ours, hook, log):
        class Nameless(ours.HookContextChannel):
            def __init__(self):
                pass

        channel = Nameless()
        channel.register(hook("a", ["before"]))
        with pytest.raises(ValueError, match="^before a$"):
            with channel.begin(None):
                pass
        assert log == ["before a", "after a"]

    def test_weak_references(self, channel, hook):
        target = hook("a")
        channel.register(target)
        references = weakref.ref(channel), weakref.ref(target)
        assert [reference() for reference in references] == [channel, target]


@pytest.mark.parametrize("given", [print, 1, None, "hook", object()])
@pytest.mark.contract("F4")
def test_what_is_no_hook_is_refused(ours, given):
    hooks = ours.PipelineHooks()
    with pytest.raises(TypeError) as raised:
        hooks.register_hook("on_step", given)
    assert str(raised.value) == (
        f"cannot register {given!r}: it has no callable `before`. A hook has "
        "the methods `before` and `after`; HookContext.from_callable makes "
        "one from functions"
    )
    assert len(hooks.hooks["on_step"]) == 0


@pytest.mark.contract("F4")
def test_a_merge_with_what_is_no_hook_adds_nothing(ours, hook):
    hooks, other = ours.PipelineHooks(), ours.PipelineHooks()
    other.register_hook("on_loop", hook("a"))
    foreign = core.HookContextChannel("on_step")
    foreign.register(1)
    other.hooks["on_step"] = foreign
    with pytest.raises(TypeError, match="cannot register 1"):
        hooks += other
    assert all(len(channel) == 0 for channel in hooks.hooks.values())


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
@pytest.mark.also_on()
@pytest.mark.contract("F6")
def test_any_callable_can_be_shown(ours, name):
    hooks = ours.PipelineHooks()
    hook = HookContext.from_callable(name, after=CALLABLES[name])
    hooks.register_hook("on_step", hook)
    for text in (repr(hooks), repr(hooks.hooks["on_step"]), hooks.describe()):
        assert name in text and "after" in text
