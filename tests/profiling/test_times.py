"""What is timed, against arithmetic on a clock of the tests."""

import statistics
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.profiling import counts, rows, step, sums
from robo_orchard_fasthooks import HookProfiler
from robo_orchard_fasthooks._record import Stats


class TestTimes:
    @pytest.mark.also_on("installed")
    def test_of_hooks_body_and_scope(self, add, timed):
        add("a", 10, 20)
        add("b", 30, 40)
        found = timed(3, 100).to_dict()["on_step"]
        assert (found["scope"]["count"], found["scope"]["sum"]) == (3, 600)
        assert (found["body"]["count"], found["body"]["sum"]) == (3, 300)
        keys = "hook", "phase", "count", "sum", "share_of_scope"
        assert [tuple(map(row.get, keys)) for row in found["hooks"]] == [
            ("a", "before", 3, 30, 30 / 600),
            ("b", "before", 3, 90, 90 / 600),
            ("a", "after", 3, 60, 60 / 600),
            ("b", "after", 3, 120, 120 / 600),
        ]

    def test_of_one_hook_over_steps(self, add, timed):
        times = [700, 10, 300, 20, 50]
        add("a", after=times)
        profiler = timed(len(times))
        scope = profiler.to_dict()["on_step"]["scope"]
        for row in (rows(profiler)["a", "after"], scope):
            assert (row["count"], row["sum"]) == (len(times), sum(times))
            assert (row["min"], row["max"]) == (10, 700)
            assert row["mean"] == statistics.mean(times)
            assert row["p50"] == pytest.approx(50, rel=0.07)
            assert row["p95"] == pytest.approx(700, rel=0.07)

    def test_of_nested_scopes(self, hooks, clock, add):
        add("outer", 1000, 2000, channel="on_epoch")
        add("inner", 10, 20)
        with HookProfiler(hooks, clock=clock) as profiler:
            assert profiler.to_dict() == {}
            with hooks.begin("on_epoch", None):
                clock.spend(5)
                for _ in range(4):
                    step(hooks, lambda: clock.spend(100))
        found = profiler.to_dict()
        assert list(found) == ["on_epoch", "on_step"]  # Only those that ran.
        assert found["on_epoch"]["scope"]["sum"] == 3000 + 5 + 4 * 130
        assert found["on_epoch"]["body"]["sum"] == 5 + 4 * 130
        assert found["on_step"]["scope"]["sum"] == 4 * 130
        assert found["on_step"]["body"]["sum"] == 4 * 100

    def test_by_the_system_s_clock(self, hooks, add):
        add("s", after=lambda _: time.sleep(0.02))
        began = time.monotonic_ns()
        with HookProfiler(hooks) as profiler:
            step(hooks)
        whole = time.monotonic_ns() - began
        scope = profiler.to_dict()["on_step"]["scope"]["sum"]
        assert 20_000_000 <= sums(profiler)["s", "after"] <= scope <= whole


class TestFailures:
    """What raises is timed, and raises as without a profiler."""

    @pytest.mark.parametrize(
        ("phase", "whole"), [("before", 123), ("after", 113)]
    )
    def test_of_a_hook(self, hooks, clock, add, phase, whole):
        def fail(args):
            clock.spend(100)
            raise ValueError

        add("a", 1, 2)
        add("f", **{phase: fail})
        add("b", 10, 20)
        with HookProfiler(hooks, clock=clock) as profiler:
            with pytest.raises(ValueError):
                step(hooks)
        assert sums(profiler)["f", phase] == 100
        assert ("b", phase) not in counts(profiler)
        found = profiler.to_dict()["on_step"]
        assert found["scope"]["sum"] == whole
        # A body that did not run is not counted.
        assert found["body"]["count"] == (phase == "after")

    def test_of_a_body(self, hooks, clock, add):
        def body():
            clock.spend(100)
            raise KeyboardInterrupt

        add("a", 10, 20)
        with HookProfiler(hooks, clock=clock) as profiler:
            with pytest.raises(KeyboardInterrupt):
                step(hooks, body)
        found = profiler.to_dict()["on_step"]
        assert (found["scope"]["sum"], found["body"]["sum"]) == (130, 100)


class TestStats:
    @given(
        st.lists(st.integers(0, 2**51), min_size=1, max_size=50),
        st.floats(0, 1),
    )
    def test_a_quantile_is_within_13_percent(self, times, q):
        stats = Stats()
        for each in times:
            stats.record(each)
        expected = sorted(times)[max(1, int(q * len(times) + 0.5)) - 1]
        assert abs(stats.quantile(q) - expected) <= 0.07 * expected
        assert stats.minimum <= stats.quantile(q) <= stats.maximum
        assert (stats.count, stats.sum) == (len(times), sum(times))
        assert (stats.minimum, stats.maximum) == (min(times), max(times))

    def test_no_time_and_one_beyond_the_last_bucket(self):
        stats = Stats()
        assert stats.count == stats.minimum == stats.quantile(0.5) == 0
        stats.record(2**62)
        assert stats.quantile(0.5) == stats.maximum == 2**62


@pytest.mark.filterwarnings("ignore:.* takes ")
def test_memory_is_flat_over_the_steps(hooks, add):
    add(None, id, id)
    with HookProfiler(hooks, warn_above=0.99) as profiler:
        for count in (1000, 50_000):
            before = sys.getallocatedblocks()
            for _ in range(count):
                with hooks.begin("on_step", None):
                    pass
    assert sys.getallocatedblocks() - before < 100
    assert profiler.to_dict()["on_step"]["scope"]["count"] == 51_000
