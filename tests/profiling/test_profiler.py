"""HookProfiler, against arithmetic on a clock of our own, and torch."""

import copy
import json
import pickle
import re
import statistics
import sys
import tracemalloc
import warnings
import weakref
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

import upstream
from helpers import processes
from helpers.profiling_ranks import Clock
from robo_orchard_fasthooks import (
    GradientClippingHookConfig,
    HookContext,
    PipelineHooks,
    lab,
)
from robo_orchard_fasthooks._profiling import report
from robo_orchard_fasthooks._record import Stats
from robo_orchard_fasthooks.profiler import HookProfiler

RANKS = str(Path(__file__).parents[1].joinpath("helpers/profiling_ranks.py"))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def hooks():
    return PipelineHooks()


@pytest.fixture
def spending(clock):
    """Makes hooks that take some nanoseconds, by class."""

    class Spending(HookContext):
        def __init__(self, name=None, before=0, after=0):
            super().__init__(name)
            self.times = before, after

        def before(self, args):
            clock.spend(self.times[0])

        def after(self, args):
            clock.spend(self.times[1])

    return Spending


def step(hooks, body=None, channel="on_step"):
    with hooks.begin(channel, None):
        if body is not None:
            body()


def failing(args):
    raise ValueError("it fails")


def rows(profiler, channel="on_step"):
    """The times of a channel's callbacks, by hook and phase."""
    found = profiler.to_dict()[channel]["hooks"]
    result = {(row["hook"], row["phase"]): row for row in found}
    assert len(result) == len(found)
    return result


def counts(profiler, channel="on_step"):
    found = rows(profiler, channel).items()
    return {what: row["count"] for what, row in found}


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


class TestNaming:
    def names(self, hooks, *made):
        for hook in made:
            hooks.register_hook("on_step", hook)
        with HookProfiler(hooks) as profiler:
            step(hooks)
        return profiler.to_dict()["on_step"]["hooks"]

    def test_by_class(self, hooks):
        class Mine(HookContext):
            def before(self, args):
                pass

            after = None

            def __init__(self):
                super().__init__()
                self.after = self.before

        found = self.names(hooks, Mine())
        assert [row["hook"] for row in found] == ["Mine", "Mine"]

    def test_by_the_class_that_a_method_is_of(self):
        config = GradientClippingHookConfig(clip_mode="value", clip_value=1)
        args = SimpleNamespace(
            optimizer=None, accelerator=SimpleNamespace(sync_gradients=False)
        )
        hooks = config()
        with HookProfiler(hooks) as profiler:
            with suppress(Exception):
                with hooks.begin("on_step", args):
                    pass
        names = {row["hook"] for row in profiler.to_dict()["on_step"]["hooks"]}
        assert names == {"GradientClippingHook"}

    def test_by_function(self, hooks):
        (row,) = self.names(hooks, HookContext.from_callable(before=passing))
        assert row["hook"] == "passing"
        line = passing.__code__.co_firstlineno
        assert row["where"] == f"passing ({__file__}:{line})"

    def test_by_name(self, hooks):
        (row,) = self.names(
            hooks, HookContext.from_callable("mine", after=passing)
        )
        assert (row["hook"], row["phase"]) == ("mine", "after")

    def test_by_compiled_function(self, hooks):
        (row,) = self.names(hooks, HookContext.from_callable(after=id))
        assert (row["hook"], row["where"]) == ("id", "id (builtins)")

    def test_equal_ones_are_told_apart(self, hooks, clock, spending):
        for time in (1, 20, 300):
            hooks.register_hook("on_step", spending("a", 0, time))
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks)
        sums = {
            hook: row["sum"]
            for (hook, phase), row in rows(profiler).items()
            if phase == "after"
        }
        assert sums == {
            "Spending 'a'": 1,
            "Spending 'a' #2": 20,
            "Spending 'a' #3": 300,
        }

    def test_a_name_that_is_no_string(self, hooks):
        hook = HookContext.from_callable(5, after=passing)
        hooks.register_hook("on_step", hook)
        with HookProfiler(hooks) as profiler:
            step(hooks)
        assert "passing" in profiler.table()

    def test_functions_of_one_name_are_told_apart(self, hooks):
        callbacks = [
            lambda args: None,
            lambda args: 1,
        ]
        found = self.names(
            hooks, *(HookContext.from_callable(after=f) for f in callbacks)
        )
        assert len({row["hook"] for row in found}) == 2

    def test_a_callback_that_is_given_late(self, hooks, clock):
        hook = HookContext.from_callable("a", before=lambda _: None)
        hooks.register_hook("on_step", hook)
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks)
            hook._after = lambda _: clock.spend(10)
            step(hooks)
        assert rows(profiler)["a", "after"]["sum"] == 10

    def test_a_hook_that_cannot_be_named_runs(self, hooks):
        class Nameless(HookContext):
            ran = 0

            def __init__(self):
                pass

            @property
            def name(self):
                raise RuntimeError("it has no name")

            def before(self, args):
                Nameless.ran += 1

            after = before

        hooks.register_hook("on_step", Nameless())
        with HookProfiler(hooks):
            step(hooks)
        assert Nameless.ran == 2


def passing(args):
    pass


class TestChanges:
    """Hooks that come and go, and a profiler that does."""

    def test_hooks_that_come_and_go_are_one_row(self, hooks, clock, spending):
        with HookProfiler(hooks, clock=clock) as profiler:
            for _ in range(50):
                with hooks.register_hook("on_step", spending("a", 1, 2)):
                    step(hooks)
        assert counts(profiler) == {
            ("Spending 'a'", "before"): 50,
            ("Spending 'a'", "after"): 50,
        }
        assert len(profiler._channels["on_step"].rows) == 2

    @pytest.mark.parametrize("phase", ["before", "after"])
    def test_a_hook_that_unregisters_itself(self, hooks, clock, phase):
        def once(args):
            clock.spend(10)
            handle()

        handle = hooks.register_hook(
            "on_step", HookContext.from_callable("once", **{phase: once})
        )
        late = HookContext.from_callable(
            "late", **{phase: lambda _: clock.spend(20)}
        )
        hooks.register_hook("on_step", late)
        with HookProfiler(hooks, clock=clock) as profiler:
            for _ in range(3):
                step(hooks)
        assert counts(profiler) == {("once", phase): 1, ("late", phase): 3}
        assert rows(profiler)["late", phase]["sum"] == 60

    def test_a_hook_that_registers_another(self, hooks, clock, spending):
        new = spending("new", 1, 20)
        hooks.register_hook(
            "on_step",
            HookContext.from_callable(
                "r", before=lambda _: hooks.register_hook("on_step", new)
            ),
        )
        with HookProfiler(hooks, clock=clock) as profiler:
            for _ in range(2):
                step(hooks)
        assert counts(profiler) == {
            ("r", "before"): 2,
            ("Spending 'new'", "before"): 1,
            ("Spending 'new'", "after"): 2,
        }

    def test_a_hook_that_unregisters_all(self, hooks, clock, spending):
        clear = HookContext.from_callable(
            "c", before=lambda _: hooks.unregister_all()
        )
        for hook in (clear, spending("a", 10, 20)):
            hooks.register_hook("on_step", hook)
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks)
        assert counts(profiler) == {
            ("c", "before"): 1,
            ("Spending 'a'", "before"): 1,
        }
        assert profiler.to_dict()["on_step"]["scope"]["sum"] == 10

    @pytest.mark.parametrize("phase", ["before", "after"])
    def test_a_hook_that_stops_the_profiler(
        self, hooks, clock, spending, phase
    ):
        profiler = HookProfiler(hooks, clock=clock)
        stop = HookContext.from_callable(
            "stop", **{phase: lambda _: profiler.stop()}
        )
        ran = []
        hooks.register_hook("on_step", stop)
        hooks.register_hook(
            "on_step", HookContext.from_callable(after=ran.append)
        )
        profiler.start()
        step(hooks)
        assert len(ran) == 1
        with pytest.raises(RuntimeError, match="was not started"):
            profiler.stop()

    @pytest.mark.parametrize("phase", ["before", "after"])
    def test_a_hook_that_starts_the_profiler(self, hooks, clock, phase):
        profiler = HookProfiler(hooks, clock=clock)
        handle = hooks.register_hook(
            "on_step",
            HookContext.from_callable(
                "start", **{phase: lambda _: profiler.start()}
            ),
        )
        ran = []
        hooks.register_hook(
            "on_step", HookContext.from_callable(after=ran.append)
        )
        step(hooks)
        handle()
        step(hooks, lambda: clock.spend(7))
        profiler.stop()
        assert len(ran) == 2
        assert profiler.to_dict()["on_step"]["scope"]["count"] == 1
        assert profiler.to_dict()["on_step"]["scope"]["sum"] == 7

    def test_stopped_in_a_body(self, hooks, clock, spending):
        hooks.register_hook("on_step", spending("a", 10, 20))
        profiler = HookProfiler(hooks, clock=clock)
        profiler.start()
        step(hooks)
        with hooks.begin("on_step", None):
            profiler.stop()
        assert profiler.to_dict()["on_step"]["scope"]["sum"] == 30
        assert rows(profiler)["Spending 'a'", "after"]["sum"] == 20

    def test_started_in_a_body(self, hooks, clock, spending):
        hooks.register_hook("on_step", spending("a", 10, 20))
        profiler = HookProfiler(hooks, clock=clock)
        with hooks.begin("on_step", None):
            profiler.start()
        step(hooks)
        profiler.stop()
        assert profiler.to_dict()["on_step"]["scope"]["sum"] == 30
        assert profiler.to_dict()["on_step"]["scope"]["count"] == 1

    def test_the_share_of_a_hook_is_at_most_all_of_it(
        self, hooks, clock, spending
    ):
        hooks.register_hook("on_step", spending("a", 0, 20))
        profiler = HookProfiler(hooks, clock=clock)
        for _ in range(2):
            with hooks.begin("on_step", None):
                profiler.start()
            profiler.stop()
        with profiler:
            step(hooks)
        row = rows(profiler)["Spending 'a'", "after"]
        assert row["share_of_scope"] <= 1

    def test_another_profiler_takes_over_in_a_body(self, hooks, spending):
        first, second = Clock(), Clock()
        first.now = 1000
        hooks.register_hook("on_step", spending("a", 10, 20))
        one = HookProfiler(hooks, clock=first)
        other = HookProfiler(hooks, clock=second)
        one.start()
        with hooks.begin("on_step", None):
            one.stop()
            other.start()
        other.stop()
        found = other.to_dict().get("on_step", {"scope": {"sum": 0}})
        assert found["scope"]["sum"] >= 0

    def test_a_hook_that_profiles_others(self, hooks, clock, spending):
        others = PipelineHooks()
        others.register_hook("on_step", spending("other", 1, 2))
        found = []

        def profile_others(args):
            with HookProfiler(others, clock=clock) as inner:
                step(others)
            found.append(inner)

        hooks.register_hook(
            "on_step", HookContext.from_callable("p", after=profile_others)
        )
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks)
        assert rows(profiler)["p", "after"]["sum"] == 3
        assert rows(found[0])["Spending 'other'", "after"]["sum"] == 2

    def test_hooks_registered_while_it_is_on(self, hooks, clock, spending):
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks)
            hooks.register_hook("on_step", spending("a", 1, 2))
            step(hooks)
        assert counts(profiler) == {
            ("Spending 'a'", "before"): 1,
            ("Spending 'a'", "after"): 1,
        }
        assert profiler.to_dict()["on_step"]["scope"]["count"] == 2

    def test_an_unregistered_hook_is_let_go_at_the_stop(self, hooks):
        hook = HookContext.from_callable(before=passing)
        handle = hooks.register_hook("on_step", hook)
        with HookProfiler(hooks) as profiler:
            step(hooks)
            handle.remove()
        alive = weakref.ref(hook)
        del hook, handle
        assert alive() is None
        assert profiler.to_dict()

    def test_stopped_within_its_own_with(self, hooks):
        """What the body raised is raised."""
        with pytest.raises(KeyError):
            with HookProfiler(hooks) as profiler:
                profiler.stop()
                raise KeyError


CRASHES = {
    "a callback whose `__wrapped__` registers hooks": """
class Callback:
    count = 0

    def __call__(self, args):
        pass

    @property
    def __wrapped__(self):
        Callback.count += 1
        if Callback.count < 200:
            for _ in range(50):
                hooks.register_hook("on_step", hook())
        raise AttributeError

hooks.register_hook("on_step", HookContext.from_callable(before=Callback()))
with HookProfiler(hooks):
    step()
""",
    "threads that register hooks": """
import sys, threading, time
sys.setswitchinterval(1e-6)

def churn():
    while time.monotonic() < end:
        for handle in [
            hooks.register_hook("on_step", hook()) for _ in range(20)
        ]:
            handle.remove()

hooks.register_hook("on_step", hook())
end = time.monotonic() + 2
with HookProfiler(hooks):
    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        step()
    for thread in threads:
        thread.join()
""",
}


@pytest.mark.parametrize("what", CRASHES)
def test_hooks_that_change_while_they_are_named(what):
    script = f"""
from robo_orchard_fasthooks import HookContext, PipelineHooks
from robo_orchard_fasthooks.profiler import HookProfiler

hooks = PipelineHooks()

def hook():
    return HookContext.from_callable(before=lambda _: 0, after=lambda _: 0)

def step():
    with hooks.begin("on_step", None):
        pass
{CRASHES[what]}"""
    processes.run([sys.executable, "-c", script])


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


def copied(hooks):
    return copy.deepcopy(hooks)


def pickled(hooks):
    return pickle.loads(pickle.dumps(hooks))


@pytest.mark.parametrize("copied", [copied, pickled])
class TestCopies:
    def test_are_not_profiled(self, hooks, copied):
        hooks.register_hook(
            "on_step", HookContext.from_callable(after=passing)
        )
        with HookProfiler(hooks) as profiler:
            other = copied(hooks)
            step(other)
            assert profiler.to_dict() == {}
            step(hooks)
        assert counts(profiler) == {("passing", "after"): 1}

    def test_can_have_a_profiler_of_their_own(self, hooks, copied):
        hooks.register_hook(
            "on_step", HookContext.from_callable(after=passing)
        )
        with HookProfiler(hooks) as profiler:
            other = copied(hooks)
            with HookProfiler(other) as second:
                step(other)
                step(other)
            step(hooks)
        assert counts(profiler) == {("passing", "after"): 1}
        assert counts(second) == {("passing", "after"): 2}


class TestLab:
    """RoboOrchardLab's own hooks."""

    def test_installed(self, clock, spending):
        with lab.install():
            hooks = upstream.mixin.PipelineHooks()
            hooks.register_hook("on_step", spending("a", 10, 20))
            with HookProfiler(hooks, clock=clock) as profiler:
                step(hooks, lambda: clock.spend(100))
            other = copy.deepcopy(hooks)
            with HookProfiler(other, clock=clock) as second:
                step(other)
        assert profiler.to_dict()["on_step"]["scope"]["sum"] == 130
        assert rows(profiler)["Spending 'a'", "after"]["sum"] == 20
        assert counts(second)["Spending 'a'", "after"] == 1

    def test_not_installed(self):
        hooks = upstream.mixin.PipelineHooks()
        with pytest.raises(
            TypeError, match=r"channel 'on_loop'.*lab\.install\(\)"
        ):
            HookProfiler(hooks).start()

    def test_one_channel_of_another_changes_nothing(self, hooks):
        channel = hooks.hooks["on_model_backward"]
        other = upstream.mixin.PipelineHooks().hooks["on_model_backward"]
        hooks.hooks["on_model_backward"] = other
        profiler = HookProfiler(hooks)
        with pytest.raises(TypeError, match="channel 'on_model_backward'"):
            profiler.start()
        with pytest.raises(RuntimeError, match="was not started"):
            profiler.stop()
        hooks.hooks["on_model_backward"] = channel
        with HookProfiler(hooks):
            pass


class TestErrors:
    def test_started_twice(self, hooks, clock, spending):
        hooks.register_hook("on_step", spending("a", 10, 20))
        with HookProfiler(hooks, clock=clock) as profiler:
            with pytest.raises(RuntimeError, match="channel 'on_loop' is"):
                profiler.start()
            step(hooks)
        assert counts(profiler)["Spending 'a'", "after"] == 1

    def test_profiled_already(self, hooks, clock, spending):
        hooks.register_hook("on_step", spending("a", 10, 20))
        other = HookProfiler(hooks, clock=clock)
        with HookProfiler(hooks, clock=clock) as profiler:
            with pytest.raises(RuntimeError, match="channel 'on_loop' is"):
                other.start()
            step(hooks)
        assert counts(profiler)["Spending 'a'", "after"] == 1
        assert other.to_dict() == {}
        with other:
            step(hooks)
        assert counts(profiler)["Spending 'a'", "after"] == 1
        assert counts(other)["Spending 'a'", "after"] == 1

    def test_one_channel_profiled_already_changes_nothing(self, hooks):
        other = PipelineHooks()
        other.hooks["on_batch"] = hooks.hooks["on_batch"]
        with HookProfiler(hooks):
            profiler = HookProfiler(other)
            with pytest.raises(RuntimeError, match="channel 'on_batch' is"):
                profiler.start()
            step(other)
            assert profiler.to_dict() == {}
        with HookProfiler(other):
            pass

    def test_stopped_without_a_start(self, hooks):
        profiler = HookProfiler(hooks)
        with pytest.raises(RuntimeError, match="was not started"):
            profiler.stop()
        with profiler:
            pass
        with pytest.raises(RuntimeError, match="was not started"):
            profiler.stop()

    def test_a_start_after_a_stop_goes_on(self, hooks, clock, spending):
        hooks.register_hook("on_step", spending("a", 10, 20))
        profiler = HookProfiler(hooks, clock=clock)
        for _ in range(2):
            with profiler:
                step(hooks)
            step(hooks)
        assert profiler.to_dict()["on_step"]["scope"]["sum"] == 60
        assert counts(profiler)["Spending 'a'", "after"] == 2

    def test_reset(self, hooks, clock, spending):
        hooks.register_hook("on_step", spending("a", 10, 20))
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks, lambda: clock.spend(70))
            profiler.reset()
            assert profiler.to_dict() == {}
            step(hooks, lambda: clock.spend(5))
        found = profiler.to_dict()["on_step"]
        assert (found["scope"]["sum"], found["scope"]["max"]) == (35, 35)
        assert (found["body"]["sum"], found["body"]["max"]) == (5, 5)
        assert rows(profiler)["Spending 'a'", "after"]["count"] == 1

    @pytest.mark.parametrize("share", [0, 1, -0.1, 5, float("nan")])
    def test_bad_shares(self, hooks, share):
        with pytest.raises(ValueError, match=r"warn_above is not in \(0, 1\)"):
            HookProfiler(hooks, warn_above=share)

    @pytest.mark.parametrize("window", [0, -1])
    def test_bad_windows(self, hooks, window):
        with pytest.raises(ValueError, match=f"not positive: {window}"):
            HookProfiler(hooks, window=window)

    @pytest.mark.parametrize("name", ["nvtx", "device_time"])
    def test_without_cuda(self, hooks, name, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(RuntimeError, match=f"{name}=True needs CUDA"):
            HookProfiler(hooks, **{name: True})


class TestWarning:
    @pytest.fixture
    def run(self, hooks, clock):
        def run(steps, **settings):
            settings = {"warn_above": 0.1, "window": 4, **settings}
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                with HookProfiler(hooks, clock=clock, **settings):
                    for _ in range(steps):
                        step(hooks, lambda: clock.spend(80))
            return found

        return run

    def test_names_the_hook_once(self, hooks, clock, run):
        def slow(args):
            clock.spend(20)

        hooks.register_hook("on_step", HookContext.from_callable(after=slow))
        (warning,) = run(20)
        where = f"{__file__}:{slow.__code__.co_firstlineno}"
        assert "takes 20% of 'on_step', in after: " in str(warning.message)
        assert str(warning.message).endswith(f"slow ({where})")
        line = step.__code__.co_firstlineno
        assert (warning.filename, warning.lineno) == (__file__, line + 1)

    def test_at_the_end_of_a_window(self, hooks, spending, run):
        hooks.register_hook("on_step", spending("a", 0, 20))
        assert len(run(3)) == 0
        assert len(run(4)) == 1

    def test_off_by_default(self, hooks, spending, run):
        hooks.register_hook("on_step", spending("a", 0, 20))
        assert run(20, warn_above=None) == []

    @pytest.mark.parametrize(("limit", "count"), [(0.19, 1), (0.2, 0)])
    def test_above_its_share(self, hooks, spending, run, limit, count):
        hooks.register_hook("on_step", spending("a", 0, 20))
        assert len(run(8, warn_above=limit)) == count

    def test_each_window_by_itself(self, hooks, clock, run):
        """Slow in the second window only, and not in all of the time."""
        steps = iter(range(100))
        slow = [4, 5, 6]
        hooks.register_hook(
            "on_step",
            HookContext.from_callable(
                "s", after=lambda _: clock.spend(20 * (next(steps) in slow))
            ),
        )
        (warning,) = run(40)
        assert f"takes {60 / 380:.0%} of" in str(warning.message)

    def test_each_hook(self, hooks, spending, run):
        for name in "ab":
            hooks.register_hook("on_step", spending(name, 0, 50))
        assert len(run(40)) == 2

    def test_after_a_reset(self, hooks, clock):
        times = iter([*4 * [5], *4 * [20]])
        hooks.register_hook(
            "on_step",
            HookContext.from_callable(
                "a", after=lambda _: clock.spend(next(times))
            ),
        )
        settings = {"warn_above": 0.1, "window": 4}
        with HookProfiler(hooks, clock=clock, **settings) as profiler:
            for _ in range(4):
                step(hooks, lambda: clock.spend(95))
            profiler.reset()
            for _ in range(3):
                step(hooks, lambda: clock.spend(80))
            with pytest.warns(UserWarning, match="takes 20% of 'on_step'"):
                step(hooks, lambda: clock.spend(80))

    def test_of_both_phases_together(self, hooks, spending, run):
        hooks.register_hook("on_step", spending("a", 6, 6))
        assert len(run(4)) == 1

    def test_once_for_both_phases(self, hooks, spending, run):
        hooks.register_hook("on_step", spending("a", 50, 50))
        assert len(run(4)) == 1

    def test_started_in_a_body(self, hooks, clock, spending):
        times = iter([1000, 0])
        hooks.register_hook(
            "on_step",
            HookContext.from_callable(
                "a", after=lambda _: clock.spend(next(times))
            ),
        )
        profiler = HookProfiler(hooks, clock=clock, warn_above=0.5, window=1)
        with hooks.begin("on_step", None):
            profiler.start()
        step(hooks, lambda: clock.spend(10))
        profiler.stop()

    def test_as_an_error_hides_no_other(self, hooks, clock, spending):
        hooks.register_hook("on_step", spending("a", 0, 20))
        with HookProfiler(hooks, clock=clock, warn_above=0.5, window=1):
            with pytest.raises(UserWarning) as raised:
                with hooks.begin("on_step", None):
                    raise ValueError
        assert isinstance(raised.value.__context__, ValueError)


def trace(call):
    """The ranges of hooks in a trace of torch's: (name, parent's name)."""
    with profile(activities=[ProfilerActivity.CPU]) as traced:
        call()
    events = [event for event in traced.events() if ":" in event.name]
    events.sort(key=lambda event: event.time_range.start)
    return [
        (event.name, event.cpu_parent and event.cpu_parent.name)
        for event in events
        if event.name.startswith("on_")
    ]


class TestRanges:
    def make(self, hooks, **settings):
        return HookProfiler(hooks, record_function=True, **settings)

    def test_names_and_nesting(self, hooks, spending):
        hooks.register_hook("on_step", spending("a"))
        hooks.register_hook(
            "on_epoch",
            HookContext.from_callable("e", before=lambda _: step(hooks)),
        )
        with self.make(hooks):
            found = trace(lambda: step(hooks, channel="on_epoch"))
        assert found == [
            ("on_epoch.before:e", None),
            ("on_step.before:Spending 'a'", "on_epoch.before:e"),
            ("on_step.after:Spending 'a'", "on_epoch.before:e"),
        ]

    def test_of_a_clipping_hook(self):
        hooks = GradientClippingHookConfig(clip_mode="norm", max_norm=1)()
        args = SimpleNamespace(
            accelerator=SimpleNamespace(sync_gradients=False), optimizer=None
        )

        def run():
            with suppress(Exception):
                with hooks.begin("on_step", args):
                    pass

        with self.make(hooks):
            found = trace(run)
        assert found == [("on_step.after:GradientClippingHook", None)]

    def test_what_a_callback_does_is_in_its_range(self, hooks):
        hooks.register_hook(
            "on_step",
            HookContext.from_callable("a", after=lambda _: torch.ones(3) + 1),
        )
        with self.make(hooks), profile() as traced:
            step(hooks)
        (event,) = [e for e in traced.events() if e.name == "on_step.after:a"]
        assert "aten::add" in [child.name for child in event.cpu_children]

    @pytest.mark.parametrize("phase", ["before", "after"])
    def test_are_closed_when_a_hook_raises(self, hooks, phase):
        fail = HookContext.from_callable("f", **{phase: failing})
        hooks.register_hook("on_step", fail)

        def run():
            for _ in range(2):
                with pytest.raises(ValueError):
                    step(hooks)
            with torch.profiler.record_function("on_top:"):
                pass

        with self.make(hooks):
            found = trace(run)
        name = f"on_step.{phase}:f"
        assert found == [(name, None), (name, None), ("on_top:", None)]

    def test_of_a_hook_that_runs_itself(self, hooks):
        depth = []

        def recurse(args):
            torch.ones(1)  # A range that is all of another is left out.
            depth.append(None)
            if len(depth) < 3:
                step(hooks)

        hooks.register_hook(
            "on_step", HookContext.from_callable("r", before=recurse)
        )
        with self.make(hooks):
            found = trace(lambda: step(hooks))
        name = "on_step.before:r"
        assert found == [(name, None), (name, name), (name, name)]

    def test_are_named_once(self, hooks, spending):
        hooks.register_hook("on_step", spending("a"))
        with mock.patch(
            "robo_orchard_fasthooks.profiler.label", side_effect=lambda _: "a"
        ) as label:
            with self.make(hooks):
                for _ in range(20):
                    step(hooks)
        assert label.call_count == 2

    def test_equal_hooks_have_names_of_their_own(self, hooks, spending):
        for _ in range(2):
            hooks.register_hook("on_batch", spending("a"))
        with self.make(hooks):
            found = trace(lambda: step(hooks, channel="on_batch"))
        assert [name for name, _ in found] == [
            f"on_batch.{phase}:Spending 'a'{number}"
            for phase in ("before", "after")
            for number in ("", " #2")
        ]

    def test_stopped_in_a_hook_the_range_is_closed(self, hooks):
        profiler = self.make(hooks)
        hooks.register_hook(
            "on_step",
            HookContext.from_callable("s", before=lambda _: profiler.stop()),
        )
        profiler.start()

        def run():
            step(hooks)
            with torch.profiler.record_function("on_top:"):
                pass

        assert trace(run) == [("on_step.before:s", None), ("on_top:", None)]

    def test_are_not_timed(self, hooks, clock, spending, monkeypatch):
        class Slow(torch.profiler.record_function):
            def __enter__(self):
                clock.spend(1000)
                return super().__enter__()

            def __exit__(self, *error):
                clock.spend(1000)
                return super().__exit__(*error)

        monkeypatch.setattr(torch.profiler, "record_function", Slow)
        hooks.register_hook("on_step", spending("a", 10, 20))
        with self.make(hooks, clock=clock) as profiler:
            step(hooks)
        assert rows(profiler)["Spending 'a'", "before"]["sum"] == 10
        assert rows(profiler)["Spending 'a'", "after"]["sum"] == 20

    def test_none_without_being_asked_for(self, hooks, spending):
        hooks.register_hook("on_step", spending("a"))
        with HookProfiler(hooks):
            assert trace(lambda: step(hooks)) == []


class FakeEvent:
    """Stands in for a CUDA event; its time is its number, in ms."""

    made = []
    done = True

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.made.append(self)
        self.time = len(self.made)

    def query(self):
        return FakeEvent.done

    def elapsed_time(self, end):
        return end.time - self.time


@pytest.fixture
def fake_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(FakeEvent, "made", [])
    monkeypatch.setattr(FakeEvent, "done", True)


@pytest.mark.usefixtures("fake_cuda")
class TestDeviceTimeOnAStandIn:
    @pytest.fixture
    def one_hook(self, hooks):
        hooks.register_hook(
            "on_step", HookContext.from_callable("a", after=passing)
        )
        return hooks

    def test_is_taken_between_two_events(self, one_hook):
        with HookProfiler(one_hook, device_time=True) as profiler:
            for _ in range(600):
                step(one_hook)
        device = rows(profiler)["a", "after"]["device"]
        assert (device["count"], device["sum"]) == (600, 600_000_000)
        assert "1 ms" in profiler.table()

    def test_of_a_hook_that_raises(self, hooks):
        hooks.register_hook(
            "on_step", HookContext.from_callable("a", after=failing)
        )
        with HookProfiler(hooks, device_time=True) as profiler:
            with pytest.raises(ValueError):
                step(hooks)
        assert rows(profiler)["a", "after"]["device"]["count"] == 1

    def test_is_waited_for_when_it_is_asked_for(self, one_hook, monkeypatch):
        FakeEvent.done = False
        monkeypatch.setattr(
            torch.cuda, "synchronize", lambda: setattr(FakeEvent, "done", True)
        )
        with HookProfiler(one_hook, device_time=True) as profiler:
            for _ in range(300):
                step(one_hook)
            assert not FakeEvent.done
            assert rows(profiler)["a", "after"]["device"]["count"] == 300

    def test_memory_does_not_grow_with_a_device_that_keeps_up(self, one_hook):
        with HookProfiler(one_hook, device_time=True) as profiler:
            for _ in range(1000):
                step(one_hook)
        (row,) = (
            r for r in profiler._channels["on_step"].rows.values() if r.device
        )
        assert len(row.device._pending) < 256

    def test_reset_forgets_it(self, one_hook):
        with HookProfiler(one_hook, device_time=True) as profiler:
            step(one_hook)
            assert rows(profiler)["a", "after"]["device"]["count"] == 1
            profiler.reset()
            step(one_hook)
        assert rows(profiler)["a", "after"]["device"]["count"] == 1

    def test_of_a_hook_that_runs_itself(self, hooks):
        depth = []

        def recurse(args):
            depth.append(None)
            if len(depth) < 3:
                step(hooks)

        hooks.register_hook(
            "on_step", HookContext.from_callable("r", before=recurse)
        )
        with HookProfiler(hooks, device_time=True) as profiler:
            step(hooks)
        # Events 1 to 6: each of the ranges lies within the one before.
        device = rows(profiler)["r", "before"]["device"]
        assert (device["min"], device["max"]) == (1e6, 5e6)

    def test_reset_forgets_what_is_not_resolved(self, one_hook):
        with HookProfiler(one_hook, device_time=True) as profiler:
            for _ in range(3):
                step(one_hook)
            profiler.reset()
            step(one_hook)
        assert rows(profiler)["a", "after"]["device"]["count"] == 1

    def test_a_device_that_is_behind_is_not_asked_all_the_time(self, one_hook):
        FakeEvent.done = False
        with mock.patch.object(
            FakeEvent, "query", return_value=False
        ) as asked:
            with HookProfiler(one_hook, device_time=True):
                for _ in range(600):
                    step(one_hook)
        assert asked.call_count < 5 * 600


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("callback", [passing, failing])
def test_nvtx_on_a_stand_in(hooks, callback, monkeypatch):
    log = []

    class Range:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            log.append(("enter", self.name))

        def __exit__(self, *error):
            log.append(("exit", self.name))

    nvtx = SimpleNamespace(
        range_push=lambda name: log.append(("push", name)),
        range_pop=lambda: log.append(("pop",)),
    )
    monkeypatch.setattr(torch.cuda, "nvtx", nvtx)
    monkeypatch.setattr(torch.profiler, "record_function", Range)
    hooks.register_hook(
        "on_step", HookContext.from_callable("a", after=callback)
    )
    with HookProfiler(hooks, nvtx=True, record_function=True):
        with suppress(ValueError):
            step(hooks)
    name = "on_step.after:a"
    assert log == [("enter", name), ("push", name), ("pop",), ("exit", name)]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
class TestCuda:
    def busy(self, hooks):
        matrix = torch.ones(2000, 2000, device="cuda")
        hooks.register_hook(
            "on_step",
            HookContext.from_callable("mm", after=lambda _: matrix @ matrix),
        )
        step(hooks)
        torch.cuda.synchronize()

    def test_device_time(self, hooks):
        self.busy(hooks)
        with HookProfiler(hooks, device_time=True) as profiler:
            torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(300):
                    step(hooks)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        device = rows(profiler)["mm", "after"]["device"]
        assert device["count"] == 300
        assert 0 < device["min"] <= device["mean"] <= device["max"]
        assert "device" in profiler.table().splitlines()[0]

    def test_nvtx_balances(self, hooks):
        self.busy(hooks)
        depth = torch.cuda.nvtx.range_push("outer")
        with HookProfiler(hooks, nvtx=True, record_function=True):
            step(hooks)
        assert torch.cuda.nvtx.range_pop() == depth


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


@pytest.fixture
def profiled(hooks, clock, spending):
    """Known times: of 1000 ns 50 and 100 in a, 250 and 0 in b."""
    hooks.register_hook("on_step", spending("a", 50, 100))
    hooks.register_hook("on_step", spending("b", 250, 0))
    with HookProfiler(hooks, clock=clock) as profiler:
        for _ in range(1500):
            step(hooks, lambda: clock.spend(600))
    return profiler


def cells(table):
    return [re.split(r"  +", line.strip()) for line in table.splitlines()]


class TestReport:
    def test_table(self, profiled):
        heads, *hooks, empty, channel_heads, channel = cells(profiled.table())
        assert heads == [
            *("hook", "at", "share", "of scope", "count", "mean", "p50"),
            *("p95", "max"),
        ]
        a, b, times = "Spending 'a'", "Spending 'b'", 4 * ["100 ns"]
        assert hooks == [
            [b, "on_step.before", "62.5%", "25.0%", "1,500", *4 * ["250 ns"]],
            [a, "on_step.after", "25.0%", "10.0%", "1,500", *times],
            [a, "on_step.before", "12.5%", "5.0%", "1,500", *4 * ["50 ns"]],
            [b, "on_step.after", "0.0%", "0.0%", "1,500", *4 * ["0 ns"]],
        ]
        assert empty == [""]
        assert channel_heads == [
            "channel",
            "scopes",
            "mean",
            "body",
            "hooks",
        ]
        assert channel == ["on_step", "1,500", "1 µs", "60.0%", "40.0%"]

    def test_table_over_channels_is_sorted(self, hooks, clock, spending):
        for channel, time in (("on_loop", 5), ("on_epoch", 9), ("on_step", 7)):
            hooks.register_hook(channel, spending("a", time, time - 5))
        with HookProfiler(hooks, clock=clock) as profiler:
            for channel in ("on_loop", "on_epoch", "on_step"):
                step(hooks, channel=channel)
        found = [line[1] for line in cells(profiler.table())[1:7]]
        assert found == [
            *("on_epoch.before", "on_step.before", "on_loop.before"),
            *("on_epoch.after", "on_step.after", "on_loop.after"),
        ]

    def test_table_is_sorted_by_sum_and_not_by_mean(
        self, hooks, clock, spending
    ):
        hooks.register_hook("on_loop", spending("once", 30))
        hooks.register_hook("on_step", spending("b", 5))
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks, channel="on_loop")
            for _ in range(10):
                step(hooks)
        _, first, second, *_ = profiler.table().splitlines()
        assert first.startswith("Spending 'b'     on_step.before  62.5%")
        assert second.startswith("Spending 'once'  on_loop.before  37.5%")

    def test_table_of_no_time(self, hooks, clock, spending):
        hooks.register_hook("on_step", spending("a"))
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks)
        assert "0.0%" in profiler.table()

    def test_table_of_nothing(self, hooks):
        assert HookProfiler(hooks).table().startswith("hook  at")

    def test_table_is_aligned(self, profiled):
        first, second = profiled.table().split("\n\n")
        for part in (first, second):
            assert len({len(line) for line in part.splitlines()}) == 1

    @pytest.mark.parametrize(
        ("ns", "text"),
        [
            *((0, "0 ns"), (999, "999 ns"), (1000, "1 µs")),
            *((1234, "1.23 µs"), (5_600_000, "5.6 ms"), (2e9, "2 s")),
            pytest.param(999.6, "1 µs"),
            pytest.param(999_600, "1 ms"),
            pytest.param(3_600e9, "3,600 s"),  # Not 3.6e+03.
        ],
    )
    def test_times_in_words(self, ns, text):
        assert report._time(ns) == text

    def test_to_json(self, profiled, tmp_path):
        path = tmp_path / "profile.json"
        profiled.to_json(path)
        assert json.loads(path.read_text()) == profiled.to_dict()
        profiled.to_json(str(path))
        assert json.loads(path.read_text()) == profiled.to_dict()

    def test_to_dict_has_what_it_says(self, profiled):
        times = {"count", "sum", "mean", "p50", "p95", "min", "max"}
        (channel,) = profiled.to_dict().values()
        assert set(channel) == {"scope", "body", "hooks"}
        assert set(channel["scope"]) == set(channel["body"]) == times
        for row in channel["hooks"]:
            assert set(row) == times | {
                *("hook", "phase", "where", "share_of_scope"),
            }

    def bars(self, profiler, path):
        """The widths of the bars drawn, by phase and label."""
        from matplotlib.figure import Figure

        drawn = []
        with mock.patch.object(
            Figure,
            "savefig",
            lambda figure, path: drawn.append(figure),
        ):
            profiler.plot(path)
        (axes,) = drawn[0].axes
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert legend == ["before", "after"]
        self.labels = [text.get_text() for text in axes.texts]
        labels = [text.get_text() for text in axes.get_yticklabels()]
        return labels, {
            container.get_label(): [bar.get_width() for bar in container]
            for container in axes.containers
        }

    def test_plot_has_bars_of_both_phases(self, profiled, tmp_path):
        labels, bars = self.bars(profiled, tmp_path / "p.png")
        # From the bottom to the top.
        assert labels == ["Spending 'a'\non_step", "Spending 'b'\non_step"]
        assert bars["before"] == pytest.approx([75e-6, 375e-6])
        assert bars["after"] == pytest.approx([150e-6, 0])
        assert self.labels == ["75 µs", "375 µs", "150 µs", ""]

    def test_plot_writes_a_picture(self, profiled, tmp_path):
        path = tmp_path / "profile.png"
        profiled.plot(path)
        assert path.read_bytes().startswith(b"\x89PNG\r\n")
        assert path.stat().st_size > 5000

    def test_plot_of_nothing(self, hooks, tmp_path):
        HookProfiler(hooks).plot(tmp_path / "p.png")
        assert (tmp_path / "p.png").exists()

    @pytest.mark.parametrize(
        "name", ["long" * 80, r"costs $\some$"], ids=["long", "mathtext"]
    )
    def test_plot_of_any_name(self, hooks, tmp_path, name):
        hooks.register_hook("on_step", HookContext.from_callable(name, id))
        with HookProfiler(hooks) as profiler:
            step(hooks)
        profiler.plot(tmp_path / "p.png")

    def test_plot_draws_all_time(self, hooks, clock, tmp_path):
        callbacks = [
            lambda args: clock.spend(1000),
            lambda args: clock.spend(30),
        ]
        for callback in callbacks:
            hooks.register_hook(
                "on_step", HookContext.from_callable(after=callback)
            )
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks)
        _, bars = self.bars(profiler, tmp_path / "p.png")
        assert sum(bars["after"]) == pytest.approx(1030e-9)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two real processes found, by rank and case."""
    folder = tmp_path_factory.mktemp("ranks")
    processes.run([*processes.TORCHRUN, "2", RANKS, str(folder)])
    files = [folder / f"{rank}.json" for rank in range(2)]
    return [json.loads(file.read_text()) for file in files]


class TestRanks:
    """Each rank finds the same."""

    expected = {
        "falling": [
            *("on_step.after", "300 ns", "350 ns", "400 ns", "rank 0", "2"),
        ],
        "rising": ["on_step.after", "10 ns", "15 ns", "20 ns", "rank 1", "2"],
        "only 1": ["on_loop.before", *3 * ["0 ns"], "rank 1", "1"],
    }

    def test_least_median_greatest_and_straggler(self, found):
        for rank in found:
            assert rank["first"] == self.expected
            assert list(rank["first"]) == ["falling", "rising", "only 1"]

    def test_a_second_time(self, found):
        """After a reset, and ten times slower."""
        for rank in found:
            times = {hook: row[1:4] for hook, row in rank["again"].items()}
            assert times == {
                "falling": ["3 µs", "3.5 µs", "4 µs"],
                "rising": ["100 ns", "150 ns", "200 ns"],
                "only 1": ["0 ns", "0 ns", "0 ns"],
            }

    def test_by_another_profiler(self, found):
        for rank in found:
            assert rank["another profiler"]["falling"][1:4] == [
                *("300 µs", "350 µs", "400 µs"),
            ]

    def test_one_rank_alone_is_told_which_did_not_come(self, found):
        alone = found[0]["alone"]
        assert "within 0.5 s rank 1 did not" in alone["error"]
        assert 0.4 < alone["after"] < 5

    def test_after_one_rank_was_alone(self, found):
        for rank in found:
            assert rank["after alone"] == self.expected

    def test_of_three(self):
        profiles = [
            {
                "on_step": {
                    "hooks": [
                        {"hook": "a", "phase": "after", "sum": 1, "mean": mean}
                    ]
                }
            }
            for mean in (30, 50, 10)
        ]
        table = report.table_of_ranks(profiles)
        assert cells(table) == [
            ["hook", "at", "min", "median", "max", "slowest", "ranks"],
            [
                "a",
                "on_step.after",
                *("10 ns", "30 ns", "50 ns"),
                "rank 1",
                "3",
            ],
        ]

    def test_one_process(self, profiled):
        found = cells(profiled.table(reduce=Accelerator(cpu=True)))
        assert found[1] == [
            *("Spending 'b'", "on_step.before", "250 ns", "250 ns", "250 ns"),
            *("rank 0", "1"),
        ]
