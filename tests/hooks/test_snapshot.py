"""The snapshot of a channel's hooks that a phase runs over."""

import copy
import gc
import pickle
import tracemalloc

import pytest

from helpers.hooks import HookContext, Logging
from robo_orchard_fasthooks import HookContextChannel
from robo_orchard_fasthooks._dispatch import in_place, set_recorder
from robo_orchard_fasthooks._record import Recorder, Stats


def run(channel):
    with channel.begin(None):
        pass


def quiet():
    return HookContext.from_callable()


@pytest.fixture(params=["ours", "in place"])
def channel(request):
    if request.param == "ours":
        return HookContextChannel("on_step")
    return in_place({"name": "on_step"}, False)


def test_is_made_once_after_a_change(channel):
    """A recorder finds out by identity whether the hooks have changed."""
    channel.register(quiet())
    first = channel._context_handlers
    run(channel)
    assert channel._context_handlers is first
    extra = quiet()
    handle = channel.register(extra)
    assert channel._context_handlers == (*first, extra)
    handle()
    assert channel._context_handlers == first
    channel.unregister_all()
    assert channel._context_handlers == ()


@pytest.mark.parametrize(
    "clone",
    [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))],
)
@pytest.mark.parametrize("dispatched", [False, True])
def test_a_copy_has_the_hooks_and_changes_alone(channel, clone, dispatched):
    channel.register(quiet())
    if dispatched:
        run(channel)
    copied = clone(channel)
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


class TestRecording:
    """A scope is timed if it is entered and left during one recording."""

    @pytest.fixture
    def rows(self):
        return {phase: (Stats(),) for phase in ("before", "after")}

    @pytest.fixture
    def make(self, rows):
        return lambda: Recorder(lambda hooks, phase: rows[phase])

    def counts(self, recorder, rows):
        return (
            *(recorder.scopes.count, recorder.bodies.count),
            *(rows[phase][0].count for phase in ("before", "after")),
        )

    @pytest.mark.parametrize(
        ("at_first", "within", "expected"),
        [
            (True, (), (1, 1, 1, 1)),
            (False, (True,), (0, 0, 0, 0)),
            (True, (False,), (0, 0, 1, 0)),
            (True, (False, True), (0, 0, 1, 0)),
        ],
    )
    @pytest.mark.parametrize("phase", ["body", "before"])
    def test_from_one_end_to_the_other(
        self, channel, make, rows, at_first, within, expected, phase
    ):
        def change(arg=None):
            for on in within:
                set_recorder(channel, recorder if on else None)

        recorder = make()
        before = change if phase == "before" else None
        channel.register(HookContext.from_callable(before=before))
        set_recorder(channel, recorder if at_first else None)
        with channel.begin(None):
            if phase == "body":
                change()
        assert self.counts(recorder, rows) == expected

    def test_not_by_another_recorder(self, channel, make):
        """Also where it lies in memory where the first one lay."""
        channel.register(quiet())
        for _ in range(20):
            set_recorder(channel, make())
            with channel.begin(None):
                set_recorder(channel, None)
                second = make()
                set_recorder(channel, second)
            assert second.scopes.count == 0
            set_recorder(channel, None)
            del second
