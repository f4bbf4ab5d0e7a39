"""What is timed, against arithmetic on a clock of the tests."""

import statistics
import sys
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.profiling import rows, step
from robo_orchard_fasthooks import (
    HookContext,
)
from robo_orchard_fasthooks._record import Stats
from robo_orchard_fasthooks.profiler import HookProfiler


class TestTimes:
    def test_of_hooks_body_and_scope(self, hooks, clock, spending):
        hooks.register_hook("on_step", spending("a", 10, 20))
        hooks.register_hook("on_step", spending("b", 30, 40))
        with HookProfiler(hooks, clock=clock) as profiler:
            for _ in range(3):
                step(hooks, lambda: clock.spend(100))
        found = profiler.to_dict()["on_step"]
        assert (found["scope"]["count"], found["scope"]["sum"]) == (3, 600)
        assert (found["body"]["count"], found["body"]["sum"]) == (3, 300)
        sums = [
            (row["hook"], row["phase"], row["sum"], row["count"])
            for row in found["hooks"]
        ]
        assert sums == [
            ("Spending 'a'", "before", 30, 3),
            ("Spending 'b'", "before", 90, 3),
            ("Spending 'a'", "after", 60, 3),
            ("Spending 'b'", "after", 120, 3),
        ]
        shares = [row["share_of_scope"] for row in found["hooks"]]
        assert shares == [30 / 600, 90 / 600, 60 / 600, 120 / 600]

    def test_of_one_hook_over_steps(self, hooks, clock):
        times = [700, 10, 300, 20, 50]
        left = iter(times)
        hooks.register_hook(
            "on_step",
            HookContext.from_callable(
                "a", after=lambda _: clock.spend(next(left))
            ),
        )
        with HookProfiler(hooks, clock=clock) as profiler:
            for _ in times:
                step(hooks)
        row = rows(profiler)["a", "after"]
        assert row["sum"] == sum(times) and row["count"] == len(times)
        assert row["min"] == 10 and row["max"] == 700
        assert row["mean"] == statistics.mean(times)
        assert row["p50"] == pytest.approx(50, rel=0.13)
        assert row["p95"] == pytest.approx(700, rel=0.13)
        scope = profiler.to_dict()["on_step"]["scope"]
        assert {key: scope[key] for key in ("sum", "min", "max")} == {
            "sum": sum(times),
            "min": 10,
            "max": 700,
        }

    def test_of_nested_scopes(self, hooks, clock, spending):
        hooks.register_hook("on_epoch", spending("outer", 1000, 2000))
        hooks.register_hook("on_step", spending("inner", 10, 20))
        with HookProfiler(hooks, clock=clock) as profiler:
            with hooks.begin("on_epoch", None):
                clock.spend(5)
                for _ in range(4):
                    step(hooks, lambda: clock.spend(100))
        epoch, inner = (profiler.to_dict()[k] for k in ("on_epoch", "on_step"))
        assert epoch["scope"]["sum"] == 3000 + 5 + 4 * 130
        assert epoch["body"]["sum"] == 5 + 4 * 130
        assert inner["scope"]["sum"] == 4 * 130
        assert inner["body"]["sum"] == 4 * 100
        assert rows(profiler)["Spending 'inner'", "after"]["sum"] == 80

    def test_of_scopes_without_hooks(self, hooks, clock):
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks, lambda: clock.spend(7))
        found = profiler.to_dict()
        assert list(found) == ["on_step"]
        assert found["on_step"]["hooks"] == []
        assert found["on_step"]["scope"]["sum"] == 7
        assert found["on_step"]["body"]["sum"] == 7

    def test_by_the_system_s_clock(self, hooks):
        import time

        hooks.register_hook(
            "on_step",
            HookContext.from_callable(after=lambda _: time.sleep(0.02)),
        )
        began = time.monotonic_ns()
        with HookProfiler(hooks) as profiler:
            step(hooks)
        whole = time.monotonic_ns() - began
        ((_, row),) = rows(profiler).items()
        assert 20_000_000 <= row["sum"] <= whole
        scope = profiler.to_dict()["on_step"]["scope"]["sum"]
        assert row["sum"] <= scope <= whole

    def test_nothing_before_anything_ran(self, hooks):
        with HookProfiler(hooks) as profiler:
            pass
        assert profiler.to_dict() == {}

    def test_by_a_clock_that_begins_at_0(self, hooks, clock, spending):
        clock.now = 0
        hooks.register_hook("on_step", spending("a", 10, 20))
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks)
        assert profiler.to_dict()["on_step"]["scope"]["sum"] == 30

    def test_of_a_hook_that_runs_a_scope_of_its_channel(self, hooks, clock):
        depth = []

        def recurse(args):
            clock.spend(10)
            depth.append(None)
            if len(depth) < 3:
                step(hooks, lambda: clock.spend(100))

        hooks.register_hook(
            "on_step", HookContext.from_callable("r", before=recurse)
        )
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks, lambda: clock.spend(100))
        row = rows(profiler)["r", "before"]
        # Each within the one before: 10, 10 + 110 and 10 + 220.
        assert (row["count"], row["sum"]) == (3, 10 + 120 + 230)
        assert (row["min"], row["max"]) == (10, 230)
        found = profiler.to_dict()["on_step"]
        assert found["scope"]["sum"] == 110 + 220 + 330
        assert found["body"]["sum"] == 300


def true_quantile(times, q):
    return sorted(times)[max(1, int(q * len(times) + 0.5)) - 1]


class TestStats:
    @given(
        st.lists(st.integers(4, 2**42 - 1), min_size=1, max_size=50),
        st.floats(0, 1),
    )
    def test_a_quantile_is_within_13_percent(self, times, q):
        stats = Stats()
        for time in times:
            stats.record(time)
        expected = true_quantile(times, q)
        assert abs(stats.quantile(q) - expected) <= 0.13 * expected
        assert stats.minimum <= stats.quantile(q) <= stats.maximum
        assert (stats.count, stats.sum) == (len(times), sum(times))
        assert (stats.minimum, stats.maximum) == (min(times), max(times))

    def test_a_quantile_of_few_nanoseconds(self):
        stats = Stats()
        for time in (0, 1, 2):
            stats.record(time)
        assert stats.quantile(0.5) == 1

    def test_a_quantile_of_hours(self):
        hour = 3_600_000_000_000
        stats = Stats()
        for time in [hour // 60, *9 * [10 * hour]]:
            stats.record(time)
        assert stats.quantile(0.5) == pytest.approx(10 * hour, rel=0.13)

    def test_no_times(self):
        assert Stats().quantile(0.5) == 0
        assert (Stats().count, Stats().minimum, Stats().maximum) == (0, 0, 0)

    def test_clearing(self):
        stats = Stats()
        for time in (1000, 20, 20, 20, 10):
            stats.record(time)
        stats.clear()
        for time in (40, 100, 500):
            stats.record(time)
        assert stats.quantile(0.5) == pytest.approx(100, rel=0.13)
        assert (stats.minimum, stats.maximum, stats.sum) == (40, 500, 640)

    @pytest.mark.parametrize("time", [0, 1, 2**42, 2**62])
    def test_extreme_times(self, time):
        stats = Stats()
        stats.record(time)
        assert stats.count == 1 and stats.sum == stats.minimum == time
        assert stats.quantile(0.5) == stats.maximum == time


class TestFailures:
    """What raises is timed, and raises as without a profiler."""

    @pytest.mark.parametrize("phase", ["before", "after"])
    def test_of_a_hook(self, hooks, clock, spending, phase):
        def fail(args):
            clock.spend(100)
            raise ValueError

        hooks.register_hook("on_step", spending("a", 1, 2))
        hooks.register_hook(
            "on_step", HookContext.from_callable("f", **{phase: fail})
        )
        hooks.register_hook("on_step", spending("b", 10, 20))
        with HookProfiler(hooks, clock=clock) as profiler:
            with pytest.raises(ValueError):
                step(hooks)
        assert rows(profiler)["f", phase]["sum"] == 100
        missing = ("Spending 'b'", phase)
        assert missing not in rows(profiler)
        sums = {"before": 1 + 100 + 2 + 20, "after": 1 + 10 + 2 + 100}
        found = profiler.to_dict()["on_step"]
        assert found["scope"]["sum"] == sums[phase]
        assert found["body"]["sum"] == 0

    def test_a_body_that_did_not_run_is_not_counted(self, hooks, clock):
        fail = iter([True, False])

        def before(args):
            if next(fail):
                raise ValueError

        hooks.register_hook("on_step", HookContext.from_callable(None, before))
        with HookProfiler(hooks, clock=clock) as profiler:
            for _ in range(2):
                with suppress(ValueError):
                    step(hooks, lambda: clock.spend(100))
        body = profiler.to_dict()["on_step"]["body"]
        assert (body["count"], body["min"]) == (1, 100)

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_of_a_body(self, hooks, clock, spending, error):
        hooks.register_hook("on_step", spending("a", 10, 20))
        given = error()

        def body():
            clock.spend(100)
            raise given

        with HookProfiler(hooks, clock=clock) as profiler:
            with pytest.raises(error) as raised:
                step(hooks, body)
        assert raised.value is given
        found = profiler.to_dict()["on_step"]
        assert (found["scope"]["sum"], found["body"]["sum"]) == (130, 100)


@pytest.mark.filterwarnings("ignore:.* takes ")
def test_memory_is_flat_over_a_million_steps(hooks):
    hooks.register_hook("on_step", HookContext.from_callable(None, id, id))
    begin = hooks.begin

    def run(count):
        for _ in range(count):
            with begin("on_step", None):
                pass

    with HookProfiler(hooks, warn_above=0.99) as profiler:
        run(1000)
        before = sys.getallocatedblocks()
        run(1_000_000)
        assert sys.getallocatedblocks() - before < 100
        tracemalloc.start()
        try:
            run(1000)
            began = tracemalloc.get_traced_memory()[0]
            run(20_000)
            assert tracemalloc.get_traced_memory()[0] - began < 2000
        finally:
            tracemalloc.stop()
    assert profiler.to_dict()["on_step"]["scope"]["count"] == 1_022_000
