"""Registering from several threads, and from the methods of hooks."""

import os
import sys
import threading
import time
import traceback
import warnings
from functools import partial

import pytest
from robo_orchard_core.utils import hook as core

HookContext = core.HookContext

ROUNDS = 20


class Yielding(HookContext):
    """A hook that lets other threads run while it is hashed."""

    def __init__(self, key, log=None):
        super().__init__()
        self.key, self.log = key, log

    def __hash__(self):
        time.sleep(0)
        return hash(self.key)

    def __eq__(self, other):
        time.sleep(0)
        return isinstance(other, Yielding) and self.key == other.key

    def __repr__(self):
        return f"<{self.key}>"

    def before(self, arg):
        if self.log is not None:
            self.log.append(self.key)

    def after(self, arg):
        pass


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
    failures = []

    def run(function):
        try:
            barrier.wait(60)
            function()
        except BaseException:
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=run, args=(f,)) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not failures, "\n".join(failures)


def keys(channel):
    return [hook.key for hook in channel._context_handlers]


def set_of(lib, *hooks, channel="on_step"):
    made = lib.PipelineHooks()
    for hook in hooks:
        made.register_hook(channel, hook)
    return made


def test_merges_lose_no_hook(lib):
    for _ in range(ROUNDS):
        hooks = lib.PipelineHooks()
        others = [
            set_of(lib, *(Yielding((thread, i)) for i in range(5)))
            for thread in range(3)
        ]
        merge = hooks.register_pipeline_hooks
        at_once(*(partial(merge, other) for other in others))
        found = keys(hooks.hooks["on_step"])
        for thread in range(3):
            mine = [key for key in found if key[0] == thread]
            assert mine == [(thread, i) for i in range(5)]
        assert len(found) == 15


def test_registering_merging_and_unregistering_mix(ours):
    for _ in range(ROUNDS):
        hooks = ours.PipelineHooks()
        channel = hooks.hooks["on_step"]
        other = set_of(ours, *(Yielding(("merged", i)) for i in range(5)))

        def register(channel=channel):
            for i in range(5):
                channel.register(Yielding(("registered", i)))

        def come_and_go(channel=channel):
            for i in range(5):
                channel.register(Yielding(("gone", i))).remove()

        at_once(
            partial(hooks.register_pipeline_hooks, other),
            register,
            come_and_go,
        )
        expected = [
            (kind, i) for kind in ("merged", "registered") for i in range(5)
        ]
        assert sorted(keys(channel)) == expected


def test_dispatch_runs_every_hook_after_concurrent_changes(ours):
    for _ in range(ROUNDS):
        log = []
        hooks = ours.PipelineHooks()
        others = [
            set_of(ours, *(Yielding((thread, i), log) for i in range(5)))
            for thread in range(2)
        ]

        def dispatch(hooks=hooks):
            for _ in range(20):
                with hooks.begin("on_step", None):
                    pass

        at_once(
            *(partial(hooks.register_pipeline_hooks, each) for each in others),
            dispatch,
        )
        log.clear()
        with hooks.begin("on_step", None):
            pass
        assert sorted(log) == [(t, i) for t in range(2) for i in range(5)]


@pytest.mark.parametrize("bad", [Unhashable, Incomparable])
def test_a_merge_that_fails_beside_others(ours, bad):
    """It adds nothing, and takes away nothing that another one has added."""
    for _ in range(ROUNDS):
        hooks = set_of(ours, Yielding("first"))
        channel = hooks.hooks["on_step"]
        shared = [Yielding(("shared", i)) for i in range(5)]
        good = set_of(ours, *shared)
        # A channel of robo_orchard_core's holds what ours would refuse.
        failing = core.HookContextChannel("on_step")
        failing._context_handlers = [
            Yielding("failed"),
            *shared,
            bad("first"),
        ]
        also_failing = ours.PipelineHooks()
        also_failing.hooks["on_step"] = failing

        def fail(channel=channel, failing=failing):
            with pytest.raises(TypeError, match="on purpose"):
                channel.register_hook_channel(failing)

        def fail_too(hooks=hooks, also_failing=also_failing):
            with pytest.raises(TypeError, match="on purpose"):
                hooks.register_pipeline_hooks(also_failing)

        at_once(
            fail,
            fail_too,
            partial(hooks.register_pipeline_hooks, good),
        )
        assert keys(channel) == [
            "first",
            *(("shared", i) for i in range(5)),
        ]


@pytest.mark.parametrize("bad", [Unhashable, Incomparable])
@pytest.mark.parametrize("mine", ["ours", "robo_orchard_core's"])
def test_a_merge_that_fails_in_a_later_channel_adds_nothing(ours, bad, mine):
    hooks = ours.PipelineHooks()
    if mine != "ours":
        hooks.hooks["on_batch"] = core.HookContextChannel("on_batch")
    hooks.register_hook("on_batch", Yielding("first"))
    other = set_of(ours, Yielding("a"), channel="on_loop")
    other.hooks["on_batch"] = core.HookContextChannel("on_batch")
    other.hooks["on_batch"]._context_handlers = [Yielding("b"), bad("first")]
    with pytest.raises(TypeError, match="on purpose"):
        hooks.register_pipeline_hooks(other)
    assert keys(hooks.hooks["on_loop"]) == []
    assert keys(hooks.hooks["on_batch"]) == ["first"]


def test_a_hash_may_register(lib):
    class Registering(Yielding):
        def __hash__(self):
            channel.register(extra)
            return super().__hash__()

    channel = lib.HookContextChannel("on_step")
    extra = Yielding("extra")
    other = core.HookContextChannel("on_step")
    other._context_handlers = [Yielding("a"), Registering("b")]
    handle = channel.register_hook_channel(other)
    assert sorted(keys(channel)) == ["a", "b", "extra"]
    channel.register(Registering("c"))
    assert sorted(keys(channel)) == ["a", "b", "c", "extra"]
    handle()
    assert sorted(keys(channel)) == ["c", "extra"]


def test_a_hook_that_was_unregistered_before_an_error_does_not_run(ours):
    class Stubborn(Yielding):
        def __eq__(self, other):
            if stubborn:
                raise TypeError("incomparable on purpose")
            return super().__eq__(other)

        __hash__ = Yielding.__hash__

    stubborn, log = False, []
    channel = ours.HookContextChannel("on_step")
    other = ours.HookContextChannel("on_step")
    # One equal to "b" is registered first, so that unregistering compares.
    channel.register(Stubborn("b", log))
    for hook in (Yielding("a", log), Stubborn("b", log)):
        other.register(hook)
    handle = channel.register_hook_channel(other)
    with channel.begin(None):
        pass
    assert log == ["b", "a"]
    log.clear()
    stubborn = True
    with pytest.raises(TypeError, match="on purpose"):
        handle()
    with channel.begin(None):
        pass
    assert log == keys(channel) == ["b"]


def test_a_child_registers_though_a_thread_was_registering(ours):
    """No lock that a thread of the parent holds is left locked in a child."""
    within, go_on = threading.Event(), threading.Event()

    class Waiting(Yielding):
        def __hash__(self):
            if threading.current_thread() is thread:
                within.set()
                go_on.wait(60)
            return super().__hash__()

    channel = ours.HookContextChannel("on_step")
    other = core.HookContextChannel("on_step")
    other._context_handlers = [Yielding("a"), Waiting("b")]
    thread = threading.Thread(
        target=channel.register_hook_channel, args=(other,)
    )
    thread.start()
    assert within.wait(60)
    with warnings.catch_warnings():
        # From 3.12 on: threads and fork() together may deadlock.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            channel.register(Yielding("c"))
            os._exit(0 if keys(channel) == ["c"] else 1)
        finally:
            os._exit(2)
    deadline = time.monotonic() + 60
    while (status := os.waitpid(child, os.WNOHANG))[0] == 0:
        assert time.monotonic() < deadline, "the child hangs"
        time.sleep(0.01)
    go_on.set()
    thread.join(60)
    assert os.waitstatus_to_exitcode(status[1]) == 0
    assert keys(channel) == ["a", "b"]
