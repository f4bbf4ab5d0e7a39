"""HookProfiler: starting, stopping, and what it refuses."""

import copy
import pickle

import pytest
import torch

from helpers.profiling import (
    counts,
    passing,
    rows,
    step,
)
from robo_orchard_fasthooks import (
    HookContext,
    PipelineHooks,
    lab,
)
from robo_orchard_fasthooks.profiler import HookProfiler


class TestErrors:
    def test_started_twice(self, hooks, clock, spending):
        hooks.register_hook("on_step", spending("a", 10, 20))
        with HookProfiler(hooks, clock=clock) as profiler:
            with pytest.raises(RuntimeError, match="been started already"):
                profiler.start()
            step(hooks)
        assert counts(profiler)["Spending 'a'", "after"] == 1

    def test_profiled_already(self, hooks, clock, spending):
        hooks.register_hook("on_step", spending("a", 10, 20))
        other = HookProfiler(hooks, clock=clock)
        with HookProfiler(hooks, clock=clock) as profiler:
            with pytest.raises(
                RuntimeError, match="channel 'on_loop' is already"
            ):
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
        with pytest.raises(ValueError, match="warn_above has to be between"):
            HookProfiler(hooks, warn_above=share)

    @pytest.mark.parametrize("window", [0, -1])
    def test_bad_windows(self, hooks, window):
        with pytest.raises(ValueError, match=f"has to be positive: {window}"):
            HookProfiler(hooks, window=window)

    @pytest.mark.parametrize("name", ["nvtx", "device_time"])
    def test_without_cuda(self, hooks, name, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(RuntimeError, match=f"{name}=True needs CUDA"):
            HookProfiler(hooks, **{name: True})


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

    def test_installed(self, clock, spending, theirs):
        with lab.install():
            hooks = theirs.PipelineHooks()
            hooks.register_hook("on_step", spending("a", 10, 20))
            with HookProfiler(hooks, clock=clock) as profiler:
                step(hooks, lambda: clock.spend(100))
            other = copy.deepcopy(hooks)
            with HookProfiler(other, clock=clock) as second:
                step(other)
        assert profiler.to_dict()["on_step"]["scope"]["sum"] == 130
        assert rows(profiler)["Spending 'a'", "after"]["sum"] == 20
        assert counts(second)["Spending 'a'", "after"] == 1

    def test_not_installed(self, theirs):
        hooks = theirs.PipelineHooks()
        with pytest.raises(
            TypeError, match=r"channel 'on_loop'.*lab\.install\(\)"
        ):
            HookProfiler(hooks).start()

    def test_one_channel_of_another_changes_nothing(self, hooks, theirs):
        channel = hooks.hooks["on_model_backward"]
        other = theirs.PipelineHooks().hooks["on_model_backward"]
        hooks.hooks["on_model_backward"] = other
        profiler = HookProfiler(hooks)
        with pytest.raises(TypeError, match="channel 'on_model_backward'"):
            profiler.start()
        with pytest.raises(RuntimeError, match="was not started"):
            profiler.stop()
        hooks.hooks["on_model_backward"] = channel
        with HookProfiler(hooks):
            pass
