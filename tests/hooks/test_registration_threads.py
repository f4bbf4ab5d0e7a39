"""Registering from several threads, and from the methods of hooks."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context

import pytest
from robo_orchard_core.utils import hook as core

from helpers.hooks import Logging
from robo_orchard_fasthooks import HookContextChannel, PipelineHooks

ROUNDS = 10


class Yielding(Logging):
    """A hook that lets other threads run while it is hashed."""

    def __init__(self, name, log=()):
        super().__init__(log, name)

    def __hash__(self):
        time.sleep(0)
        return hash(self.name)

    def __eq__(self, other):
        time.sleep(0)
        return isinstance(other, Yielding) and self.name == other.name


class Unhashable(Yielding):
    def __hash__(self):
        time.sleep(0)
        raise TypeError("unhashable on purpose")


class Incomparable(Yielding):
    """It has the hash of another hook, which it cannot be compared with."""

    def __eq__(self, other):
        time.sleep(0)
        raise TypeError("incomparable on purpose")

    __hash__ = Yielding.__hash__


@pytest.fixture(autouse=True)
def switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(*functions):
    """Runs functions in threads of their own that begin together."""
    barrier = threading.Barrier(len(functions))

    def run(function):
        barrier.wait(60)
        function()

    with ThreadPoolExecutor(len(functions)) as pool:
        for future in [pool.submit(run, each) for each in functions]:
            future.result(60)


def names(channel):
    return [hook.name for hook in channel._context_handlers]


def five(group):
    return [f"{group} {number}" for number in range(5)]


def channel_of_core(*hooks):
    """It holds what ours would refuse."""
    made = core.HookContextChannel("on_step")
    made._context_handlers = list(hooks)
    return made


def set_of(*hooks):
    made = PipelineHooks()
    for hook in hooks:
        made.register_hook("on_step", hook)
    return made


def test_changes_at_once_lose_no_hook():
    for _ in range(ROUNDS):
        steady = Yielding("steady", [])
        hooks = set_of(steady)
        channel = hooks.hooks["on_step"]

        def register(hooks=hooks):
            for name in five("registered"):
                hooks.register_hook("on_step", Yielding(name, []))

        def come_and_go(channel=channel):
            for name in five("gone"):
                channel.register(Yielding(name, [])).remove()

        def dispatch(channel=channel):
            for _ in range(20):
                with channel.begin(None):
                    pass

        merged = [
            partial(
                hooks.register_pipeline_hooks,
                set_of(*(Yielding(name, []) for name in five(group))),
            )
            for group in ("first", "second")
        ]
        at_once(*merged, register, come_and_go, dispatch, dispatch)
        assert len(steady.log) == 80
        found = names(channel)
        for group in ("first", "second", "registered"):
            assert [n for n in found if group in n] == five(group)
        assert len(found) == 16
        log = []
        for hook in channel._context_handlers:
            hook.log = log
        with channel.begin(None):
            pass
        assert log[:16] == [f"before {name}" for name in found]


@pytest.mark.parametrize("bad", [Unhashable, Incomparable])
def test_a_merge_that_fails_beside_others(bad):
    """It adds nothing, and takes away nothing that another one has added."""
    for _ in range(ROUNDS):
        hooks = set_of(Yielding("first"))
        channel = hooks.hooks["on_step"]
        shared = [Yielding(name) for name in five("shared")]
        failing = channel_of_core(Yielding("failed"), *shared, bad("first"))
        also_failing = set_of()
        also_failing.hooks["on_step"] = failing

        def fail(merge, other):
            with pytest.raises(TypeError, match="on purpose"):
                merge(other)

        at_once(
            partial(fail, channel.register_hook_channel, failing),
            partial(fail, hooks.register_pipeline_hooks, also_failing),
            partial(hooks.register_pipeline_hooks, set_of(*shared)),
        )
        assert names(channel) == ["first", *five("shared")]


@pytest.mark.parametrize("bad", [Unhashable, Incomparable, str])
@pytest.mark.parametrize("mine", ["ours", "robo_orchard_core's"])
def test_a_merge_that_fails_in_a_later_channel_adds_nothing(bad, mine):
    hooks = set_of()
    if mine != "ours":
        hooks.hooks["on_step"] = core.HookContextChannel("on_step")
    hooks.register_hook("on_step", Yielding("first"))
    other = set_of()
    other.register_hook("on_loop", Yielding("a"))
    other.hooks["on_step"] = channel_of_core(Yielding("b"), bad("first"))
    with pytest.raises(TypeError, match="on purpose|cannot register 'first'"):
        hooks.register_pipeline_hooks(other)
    assert names(hooks.hooks["on_loop"]) == []
    assert names(hooks.hooks["on_step"]) == ["first"]


def test_a_hash_may_register(lib):
    class Registering(Yielding):
        def __hash__(self):
            channel.register(extra)
            return super().__hash__()

    channel = lib.HookContextChannel("on_step")
    extra = Yielding("extra")
    other = channel_of_core(Yielding("a"), Registering("b"))
    handle = channel.register_hook_channel(other)
    assert sorted(names(channel)) == ["a", "b", "extra"]
    channel.register(Registering("c"))
    handle()
    assert sorted(names(channel)) == ["c", "extra"]


def test_a_hook_that_was_unregistered_before_an_error_does_not_run():
    class Stubborn(Yielding):
        def __eq__(self, other):
            if stubborn:
                raise TypeError("incomparable on purpose")
            return super().__eq__(other)

        __hash__ = Yielding.__hash__

    stubborn, log = False, []
    # One equal to "b" is registered first, so that unregistering compares.
    channel = set_of(Stubborn("b", log)).hooks["on_step"]
    other = set_of(Yielding("a", log), Stubborn("b", log)).hooks["on_step"]
    handle = channel.register_hook_channel(other)
    stubborn = True
    with pytest.raises(TypeError, match="on purpose"):
        handle()
    with channel.begin(None):
        pass
    assert log == ["before b", "after b"] and names(channel) == ["b"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_registers_though_a_thread_was_registering():
    """No lock that a thread of the parent holds is left locked in a child."""
    within, go_on = threading.Event(), threading.Event()

    class Waiting(Yielding):
        def __hash__(self):
            if threading.current_thread() is thread:
                within.set()
                go_on.wait(60)
            return super().__hash__()

    def register():
        channel.register(Yielding("c"))
        assert names(channel) == ["c"]

    channel = HookContextChannel("on_step")
    thread = threading.Thread(
        target=channel.register_hook_channel,
        args=(channel_of_core(Yielding("a"), Waiting("b")),),
    )
    thread.start()
    assert within.wait(60)
    child = get_context("fork").Process(target=register, daemon=True)
    child.start()
    child.join(60)
    go_on.set()
    thread.join(60)
    assert child.exitcode == 0  # None if it hangs.
    assert names(channel) == ["a", "b"]
