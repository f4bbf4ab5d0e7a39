"""The snapshot of a channel's hooks that a phase runs over."""

import gc
import tracemalloc

import pytest

from helpers.hooks import HookContext, Logging
from robo_orchard_fasthooks import HookContextChannel
from robo_orchard_fasthooks._dispatch import lab_channel


def run(channel):
    with channel.begin(None):
        pass


def quiet():
    return HookContext.from_callable()


@pytest.fixture(params=["ours", "in place"])
def channel(request):
    if request.param == "ours":
        return HookContextChannel("on_step")
    return lab_channel({"name": "on_step"}, False)


@pytest.mark.parametrize("dispatched", [False, True])
def test_a_copy_has_the_hooks_and_changes_alone(channel, clone, dispatched):
    channel.register(quiet())
    if dispatched:
        run(channel)
    channel.note, channel.begin = "mine", "patched"
    copied = clone(channel)
    assert (copied.note, copied.begin) == ("mine", "patched")
    assert len(tuple(copied._context_handlers)) == 1
    copied.register(quiet())
    assert len(tuple(copied._context_handlers)) == 2
    assert len(channel._context_handlers) == 1


def test_registering_copies_no_other_hooks(channel):
    """Without it, the time of many registrations would be quadratic."""
    for _ in range(10_000):
        channel.register(quiet())
    other = HookContextChannel("on_step")
    other.register(quiet())
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        channel.register(quiet())()
        channel.register_hook_channel(other)()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 10,000 references are 80,000 bytes.
    assert peak - before < 20_000
    assert len(channel) == 10_000


def test_a_finalizer_that_registers_while_it_is_made_is_not_lost():
    """Up to CPython 3.11 any allocation may run the garbage collector."""

    class Garbage:
        def __init__(self, channel, hook):
            self.cycle, self.channel, self.hook = self, channel, hook

        def __del__(self):
            self.channel.register(self.hook)

    log = []
    threshold = gc.get_threshold()
    gc.collect()
    gc.freeze()  # Of what there is already, collections would take seconds.
    try:
        for allocations in range(1, 60):
            channel = HookContextChannel("on_step")
            for _ in range(30):  # CPython keeps shorter tuples for reuse.
                channel.register(quiet())
            gc.collect()
            Garbage(channel, Logging(log, "late"))
            gc.set_threshold(allocations)
            run(channel)
            gc.set_threshold(*threshold)
            gc.collect()
            log.clear()
            run(channel)
            assert log == ["before late", "after late"], allocations
    finally:
        gc.set_threshold(*threshold)
        gc.unfreeze()
