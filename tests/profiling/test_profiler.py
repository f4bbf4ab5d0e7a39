"""HookProfiler: starting, stopping, and what it refuses."""

import copy

import pytest
import torch

from helpers.profiling import counts, passing, step, sums
from robo_orchard_fasthooks import (
    HookContext,
    HookProfiler,
    PipelineHooks,
)
from robo_orchard_fasthooks._dispatch import set_recorder
from robo_orchard_fasthooks._record import Recorder, Stats


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "error", "match"),
        [
            ({"warn_above": 0}, ValueError, "between 0 and 1: 0"),
            ({"warn_above": 1}, ValueError, "between 0 and 1: 1"),
            ({"warn_above": float("nan")}, ValueError, "between 0 and 1: nan"),
            ({"window": 0}, ValueError, "window has to be positive: 0"),
            ({"nvtx": True}, RuntimeError, "nvtx=True needs CUDA"),
        ],
    )
    def test_of_settings(self, hooks, monkeypatch, settings, error, match):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(error, match=match):
            HookProfiler(hooks, **settings)

    def test_hooks_that_are_not_registered(self):
        with pytest.raises(TypeError, match="a list: pass the PipelineHooks"):
            HookProfiler([HookContext.from_callable(passing)])

    def test_started_twice(self, hooks):
        with HookProfiler(hooks) as profiler:
            with pytest.raises(RuntimeError, match="been started already"):
                profiler.start()
            step(hooks)
        assert profiler.to_dict()["on_step"]["scope"]["count"] == 1

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

    def test_one_channel_of_another_changes_nothing(self, hooks, theirs):
        channel = hooks.hooks["on_model_backward"]
        other = theirs.PipelineHooks().hooks["on_model_backward"]
        hooks.hooks["on_model_backward"] = other
        profiler = HookProfiler(hooks)
        with pytest.raises(
            TypeError, match=r"'on_model_backward'.*lab\.install\(\)"
        ):
            profiler.start()
        hooks.hooks["on_model_backward"] = channel
        with profiler:
            pass

    def test_stopped_without_a_start(self, hooks):
        profiler = HookProfiler(hooks)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="was not started"):
                profiler.stop()
            with pytest.raises(KeyError):  # What the body raised is raised.
                with profiler:
                    profiler.stop()
                    raise KeyError


def test_a_start_after_a_stop_goes_on(hooks, clock, add):
    add("a", 10, 20)
    profiler = HookProfiler(hooks, clock=clock)
    for _ in range(2):
        with profiler:
            step(hooks)
        step(hooks)
    assert profiler.to_dict()["on_step"]["scope"]["sum"] == 60
    assert sums(profiler) == {("a", "before"): 20, ("a", "after"): 40}


def test_a_reset_discards_all_times(hooks, clock, add):
    add("a", 10, 20)
    with HookProfiler(hooks, clock=clock) as profiler:
        step(hooks, lambda: clock.spend(70))
        profiler.reset()
        assert profiler.to_dict() == {}
        step(hooks, lambda: clock.spend(5))
    with HookProfiler(hooks, clock=clock) as other:
        step(hooks, lambda: clock.spend(5))
    assert profiler.to_dict() == other.to_dict()


@pytest.mark.also_on("installed")
def test_a_copy_can_have_a_profiler_of_its_own(hooks, add):
    add(after=passing)
    with HookProfiler(hooks) as profiler:
        other = copy.deepcopy(hooks)
        step(other)
        assert profiler.to_dict() == {}
        with HookProfiler(other) as second:
            step(other)
            step(other)
        step(hooks)
    assert counts(profiler) == {("passing", "after"): 1}
    assert counts(second) == {("passing", "after"): 2}


class TestRecorder:
    """What would crash the interpreter if it were not refused."""

    def test_of_wrong_arguments(self):
        with pytest.raises(TypeError):
            set_recorder(None, None)
        with pytest.raises(TypeError):
            Recorder.__new__(Recorder)  # Not initialised.

    @pytest.mark.parametrize("rows", [(None,), (1,), (), [Stats()], None])
    def test_rows_that_are_no_stats(self, hooks, add, rows):
        add("a", 1, 2)
        channel = hooks.hooks["on_step"]
        set_recorder(channel, Recorder(lambda hooks, phase: rows))
        with pytest.raises(TypeError, match="one Stats for each hook"):
            step(hooks)

    def test_a_scope_while_one_is_removed(self, hooks):
        """Which a finalizer, or another thread meanwhile, may run."""

        class Clock:
            def __call__(self):
                return 0

            def __del__(self):
                step(hooks)
                ran.append(True)

        ran = []
        channel = hooks.hooks["on_step"]
        set_recorder(channel, Recorder(lambda hooks, phase: (), Clock()))
        set_recorder(channel, None)
        assert ran
