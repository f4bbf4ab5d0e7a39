"""The warning of slow hooks."""

import warnings

import pytest

from helpers.profiling import step
from robo_orchard_fasthooks import (
    HookContext,
)
from robo_orchard_fasthooks.profiler import HookProfiler


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
        code = step.__code__
        assert warning.filename == code.co_filename
        assert warning.lineno == code.co_firstlineno + 1

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

    def test_scopes_without_a_time(self, hooks, clock):
        """Within one that has not been left, whose hook took its time."""
        times = iter([20, 0, 0])
        hooks.register_hook(
            "on_step",
            HookContext.from_callable(
                "a", before=lambda _: clock.spend(next(times))
            ),
        )
        with HookProfiler(hooks, clock=clock, warn_above=0.5, window=2):
            with hooks.begin("on_step", None):
                for _ in range(2):
                    step(hooks)

    def test_as_an_error_hides_no_other(self, hooks, clock, spending):
        hooks.register_hook("on_step", spending("a", 0, 20))
        with HookProfiler(hooks, clock=clock, warn_above=0.5, window=1):
            with pytest.raises(UserWarning) as raised:
                with hooks.begin("on_step", None):
                    raise ValueError
        assert isinstance(raised.value.__context__, ValueError)
