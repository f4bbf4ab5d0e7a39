"""The warning of slow hooks."""

import warnings

import pytest

from helpers.profiling import step
from robo_orchard_fasthooks import HookProfiler


class TestWarning:
    @pytest.fixture
    def run(self, hooks, clock):
        """Runs steps whose bodies take 80 ns; returns the warnings."""

        def run(steps, **settings):
            settings = {"warn_above": 0.1, "window": 4, **settings}
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                with HookProfiler(hooks, clock=clock, **settings):
                    for _ in range(steps):
                        step(hooks, lambda: clock.spend(80))
            return found

        return run

    def test_names_the_hook_once(self, clock, run, add):
        def slow(args):
            clock.spend(20)

        add(after=slow)
        (warning,) = run(20)
        where = f"{__file__}:{slow.__code__.co_firstlineno}"
        assert "takes 20% of 'on_step', in after: " in str(warning.message)
        assert str(warning.message).endswith(f"slow ({where})")
        code = step.__code__
        assert warning.filename == code.co_filename
        assert warning.lineno == code.co_firstlineno + 1

    @pytest.mark.parametrize(
        ("steps", "settings", "count"),
        [
            *((3, {}, 0), (4, {}, 1)),  # At the end of a window.
            (20, {"warn_above": None}, 0),
            *((8, {"warn_above": 0.19}, 1), (8, {"warn_above": 0.2}, 0)),
        ],
    )
    def test_when(self, add, run, steps, settings, count):
        add("a", 8, 12)  # Both phases together.
        assert len(run(steps, **settings)) == count

    def test_each_window_by_itself(self, add, run):
        """Slow in the second window only, and not in all of the time."""
        add("a", after=[*4 * [0], *3 * [20], *33 * [0]])
        (warning,) = run(40)
        assert f"takes {60 / 380:.0%} of" in str(warning.message)

    def test_after_a_reset(self, hooks, clock, add):
        add("a", after=[*4 * [5], *4 * [20]])
        settings = {"warn_above": 0.1, "window": 4}
        with HookProfiler(hooks, clock=clock, **settings) as profiler:
            for _ in range(4):
                step(hooks, lambda: clock.spend(95))
            profiler.reset()
            for _ in range(3):
                step(hooks, lambda: clock.spend(80))
            with pytest.warns(UserWarning, match="takes 20% of 'on_step'"):
                step(hooks, lambda: clock.spend(80))

    def test_not_of_a_scope_that_was_not_timed(self, hooks, clock, add):
        add("a", after=[1000, 0])
        profiler = HookProfiler(hooks, clock=clock, warn_above=0.5, window=1)
        with hooks.begin("on_step", None):
            profiler.start()
        step(hooks, lambda: clock.spend(10))
        profiler.stop()

    def test_not_of_scopes_without_a_time(self, hooks, clock, add):
        """Within one that has not been left, whose hook took its time."""
        add("a", [20, 0, 0])
        with HookProfiler(hooks, clock=clock, warn_above=0.5, window=2):
            with hooks.begin("on_step", None):
                for _ in range(2):
                    step(hooks)

    def test_as_an_error_hides_no_other(self, hooks, clock, add):
        add("a", after=20)
        with HookProfiler(hooks, clock=clock, warn_above=0.5, window=1):
            with pytest.raises(UserWarning) as raised:
                with hooks.begin("on_step", None):
                    raise ValueError
        assert isinstance(raised.value.__context__, ValueError)
