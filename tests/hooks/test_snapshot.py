"""The snapshot of a channel's hooks that a phase runs over."""

import copy
import gc
import pickle
import tracemalloc

import pytest
from robo_orchard_core.utils import hook as core

from robo_orchard_fasthooks import HookContextChannel
from robo_orchard_fasthooks._dispatch import in_place, set_recorder
from robo_orchard_fasthooks._record import Recorder, Stats

HookContext = core.HookContext


class Quiet(HookContext):
    def before(self, arg):
        pass

    def after(self, arg):
        pass


def run(channel):
    with channel.begin(None):
        pass


@pytest.fixture(params=["ours", "in place"])
def channel(request):
    if request.param == "ours":
        return HookContextChannel("on_step")
    return in_place({"name": "on_step"}, False)


def test_is_made_once_after_a_change(channel):
    """A recorder finds out by identity whether the hooks have changed."""
    channel.register(Quiet())
    first = channel._context_handlers
    run(channel)
    assert channel._context_handlers is first
    extra = Quiet()
    handle = channel.register(extra)
    second = channel._context_handlers
    assert second == (*first, extra)
    run(channel)
    assert channel._context_handlers is second
    handle()
    assert channel._context_handlers == first
    channel.unregister_all()
    assert channel._context_handlers == ()


@pytest.mark.parametrize(
    "clone",
    [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))],
    ids=["copy", "deepcopy", "pickle"],
)
@pytest.mark.parametrize("dispatched", [False, True])
def test_a_copy_has_the_hooks_and_changes_alone(channel, clone, dispatched):
    for _ in range(3):
        channel.register(Quiet())
    if dispatched:
        run(channel)
    copied = clone(channel)
    assert len(copied) == 3
    copied.register(Quiet())
    assert (len(copied), len(channel)) == (4, 3)
    assert len(tuple(copied._context_handlers)) == 4
    assert len(channel._context_handlers) == 3


def test_registering_copies_no_other_hooks(channel):
    """Without it, the time of many registrations would be quadratic."""
    for _ in range(10_000):
        channel.register(Quiet())
    other = HookContextChannel("on_step")
    for _ in range(4):
        other.register(Quiet())
    hook = Quiet()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        channel.register(hook)()
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
                channel.register(Quiet())
            late = HookContext.from_callable(after=log.append)
            gc.collect()
            Garbage(channel, late)
            gc.set_threshold(allocations)
            run(channel)
            gc.set_threshold(*threshold)
            gc.collect()
            log.clear()
            run(channel)
            assert len(log) == 1, allocations
    finally:
        gc.set_threshold(*threshold)
        gc.unfreeze()


class TestRecording:
    """A scope is timed if it is entered and left during one recording."""

    @pytest.fixture
    def rows(self):
        return {phase: (Stats(),) for phase in ("before", "after")}

    @pytest.fixture
    def recorder(self, rows):
        return self.make(rows)

    def make(self, rows):
        return Recorder(lambda hooks, phase: rows[phase])

    def counts(self, recorder, rows):
        return (
            recorder.scopes.count,
            recorder.bodies.count,
            rows["before"][0].count,
            rows["after"][0].count,
        )

    def test_from_one_end_to_the_other(self, channel, recorder, rows):
        channel.register(Quiet())
        set_recorder(channel, recorder)
        run(channel)
        assert self.counts(recorder, rows) == (1, 1, 1, 1)

    @pytest.mark.parametrize("at_first", [True, False])
    def test_not_if_it_is_on_at_one_end(
        self, channel, recorder, rows, at_first
    ):
        channel.register(Quiet())
        set_recorder(channel, recorder if at_first else None)
        with channel.begin(None):
            set_recorder(channel, None if at_first else recorder)
        assert self.counts(recorder, rows) == (0, 0, int(at_first), 0)

    def test_not_if_it_was_off_in_between(self, channel, recorder, rows):
        channel.register(Quiet())
        set_recorder(channel, recorder)
        with channel.begin(None):
            set_recorder(channel, None)
            set_recorder(channel, recorder)
        assert self.counts(recorder, rows) == (0, 0, 1, 0)
        run(channel)
        assert self.counts(recorder, rows) == (1, 1, 2, 1)

    def test_not_by_another_recorder(self, channel, rows):
        """Also where it lies in memory where the first one lay."""
        channel.register(Quiet())
        for _ in range(20):
            set_recorder(channel, self.make(rows))
            with channel.begin(None):
                set_recorder(channel, None)
                second = self.make(rows)
                set_recorder(channel, second)
            assert second.scopes.count == 0
            set_recorder(channel, None)
            del second

    def test_stopped_by_a_callback(self, channel, recorder, rows):
        channel.register(
            HookContext.from_callable(
                before=lambda arg: set_recorder(channel, None)
            )
        )
        set_recorder(channel, recorder)
        run(channel)
        assert self.counts(recorder, rows) == (0, 0, 1, 0)
