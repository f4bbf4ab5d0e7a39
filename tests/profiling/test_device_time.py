"""Device times, on a stand-in for CUDA's events and on a GPU."""

import warnings
from unittest import mock

import pytest
import torch

from helpers.fake_cuda import Stream
from helpers.profiling import cells, failing, passing, rows, step
from robo_orchard_fasthooks import HookContext
from robo_orchard_fasthooks.profiler import HookProfiler


@pytest.fixture
def one_hook(hooks):
    hooks.register_hook(
        "on_step", HookContext.from_callable("a", after=passing)
    )
    return hooks


def device_times(profiler, hook="a", phase="after"):
    return rows(profiler)[hook, phase]["device"]


class TestOnAStandIn:
    @pytest.fixture(autouse=True)
    def cuda(self, fake_cuda):
        return fake_cuda

    @pytest.fixture
    def profiler(self, one_hook):
        with HookProfiler(one_hook, device_time=True) as profiler:
            yield profiler

    def test_is_taken_between_two_events(self, hooks, profiler):
        for _ in range(600):
            step(hooks)
        device = device_times(profiler)
        assert (device["count"], device["sum"]) == (600, 600_000_000)
        assert "1 ms" in profiler.table()

    def test_tables_of_callbacks_without_it(self, hooks, cuda):
        """One was given late, the other ran during a capture only."""
        hook = HookContext.from_callable("a", before=passing)
        hooks.register_hook("on_step", hook)
        with HookProfiler(hooks, device_time=True) as profiler:
            with cuda.graph():
                step(hooks)
                hook._after = passing
                step(hooks)
        heads, *lines = cells(profiler.table().split("\n\n")[0])
        assert heads[-1] == "device"
        assert [line[-1] for line in lines] == ["-", "-"]

    def test_of_a_hook_that_raises(self, hooks):
        hooks.register_hook(
            "on_step", HookContext.from_callable("a", after=failing)
        )
        with HookProfiler(hooks, device_time=True) as profiler:
            with pytest.raises(ValueError):
                step(hooks)
        assert device_times(profiler)["count"] == 1

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
        device = device_times(profiler, "r", "before")
        assert (device["min"], device["max"]) == (1e6, 5e6)

    def test_nothing_waits_before_the_times_are_read(
        self, hooks, profiler, cuda
    ):
        cuda.keeps_up = False
        with mock.patch.object(
            Stream, "wait_until", autospec=True, side_effect=Stream.wait_until
        ) as wait:
            for _ in range(300):
                step(hooks)
            assert not wait.called
            assert device_times(profiler)["count"] == 300
            assert wait.called

    def test_reset_forgets_it(self, hooks, profiler):
        step(hooks)
        assert device_times(profiler)["count"] == 1
        profiler.reset()
        step(hooks)
        assert device_times(profiler)["count"] == 1

    def test_reset_forgets_what_has_not_finished(self, hooks, profiler, cuda):
        cuda.keeps_up = False
        for _ in range(3):
            step(hooks)
        profiler.reset()
        step(hooks)
        assert device_times(profiler)["count"] == 1

    def test_a_device_that_is_behind_is_not_queried_all_the_time(
        self, hooks, profiler, cuda
    ):
        cuda.keeps_up = False
        for _ in range(600):
            step(hooks)
        assert cuda.queries < 5 * 600

    def test_events_are_recorded_again(self, hooks, profiler, cuda):
        for _ in range(1000):
            step(hooks)
        assert len(cuda.made) == 2

    def test_as_many_events_as_the_device_is_behind(
        self, hooks, profiler, cuda
    ):
        for _ in range(3):
            cuda.keeps_up = False
            for _ in range(10):
                step(hooks)
            cuda.keeps_up = True
            step(hooks)
        assert device_times(profiler)["count"] == 33
        assert len(cuda.made) == 22

    def test_of_a_hook_on_several_devices(self, hooks, profiler, cuda):
        """Whichever is current when the times are read."""
        cuda.keeps_up = False
        for device in (1, 0, 2, 1):
            with cuda.stream(Stream(device)):
                step(hooks)
        assert device_times(profiler)["count"] == 4
        for device in (0, 1, 2, 0):  # The events are recorded again.
            with cuda.stream(Stream(device)):
                step(hooks)
        device = device_times(profiler)
        assert (device["count"], device["sum"]) == (8, 8e6)

    def test_of_a_hook_that_changes_the_device(self, hooks, cuda):
        """It is timed on the stream on which it began."""
        hooks.register_hook(
            "on_step",
            HookContext.from_callable(
                "a", after=lambda _: cuda.set_stream(Stream(1))
            ),
        )
        with HookProfiler(hooks, device_time=True) as profiler:
            step(hooks)
        device = device_times(profiler)
        assert (device["count"], device["sum"]) == (1, 1e6)

    def test_not_of_a_hook_that_is_captured(self, hooks, profiler, cuda):
        step(hooks)
        with cuda.graph():
            step(hooks)
            step(hooks)
        step(hooks)
        row = rows(profiler)["a", "after"]
        assert (row["count"], row["device"]["count"]) == (4, 2)

    def test_what_has_not_finished_when_a_capture_begins(
        self, hooks, profiler, cuda
    ):
        cuda.keeps_up = False
        step(hooks)
        with cuda.graph():
            step(hooks)
        assert device_times(profiler)["count"] == 1

    def test_read_during_a_capture(self, hooks, profiler, cuda):
        """It gives what is known then, and the rest later."""
        step(hooks)
        cuda.keeps_up = False
        step(hooks)
        with cuda.graph():
            assert device_times(profiler)["count"] == 1
        assert device_times(profiler)["count"] == 2

    def test_of_a_hook_that_captures(self, hooks, cuda):
        def capture(args):
            with cuda.graph():
                pass

        hooks.register_hook(
            "on_step", HookContext.from_callable("a", after=capture)
        )
        with HookProfiler(hooks, device_time=True) as profiler:
            step(hooks)
        assert device_times(profiler)["count"] == 1

    def test_not_of_hooks_that_begin_and_end_a_capture(self, hooks, cuda):
        hooks.register_hook(
            "on_step",
            HookContext.from_callable(
                "a",
                before=lambda _: cuda.capture_begin(),
                after=lambda _: cuda.capture_end(),
            ),
        )
        with HookProfiler(hooks, device_time=True) as profiler:
            step(hooks)
        for phase in ("before", "after"):
            assert device_times(profiler, "a", phase)["count"] == 0

    def test_a_failed_wait_loses_nothing(self, hooks, profiler, cuda):
        """As when another thread captures: only that one can see it."""
        cuda.keeps_up = False
        for _ in range(3):
            step(hooks)
        with cuda.stream(Stream(0)):
            cuda.capture_begin()
        with pytest.raises(RuntimeError, match="when stream is capturing"):
            profiler.to_dict()
        with pytest.raises(RuntimeError, match="due to a previous error"):
            cuda.capture_end()
        device = device_times(profiler)
        assert (device["count"], device["sum"]) == (3, 3e6)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
class TestOnAGpu:
    @pytest.fixture
    def busy(self, hooks):
        """Hooks that have the device work; they have run once."""
        matrix = torch.ones(2000, 2000, device="cuda")
        hooks.register_hook(
            "on_step",
            HookContext.from_callable("a", after=lambda _: matrix @ matrix),
        )
        step(hooks)
        torch.cuda.synchronize()
        return hooks

    def test_nothing_waits_before_the_times_are_read(self, busy):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with HookProfiler(busy, device_time=True) as profiler:
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", ".*is a prototype feature", UserWarning
                )
                try:
                    torch.cuda.set_sync_debug_mode("error")
                    begin.record()
                    for _ in range(300):
                        step(busy)
                    end.record()
                finally:
                    torch.cuda.set_sync_debug_mode("default")
        device = device_times(profiler)
        assert device["count"] == 300
        assert 0 < device["min"] <= device["mean"] <= device["max"]
        end.synchronize()
        # torch's events have a resolution of about half a microsecond.
        assert device["sum"] <= begin.elapsed_time(end) * 1e6 + 300 * 1e3
        assert "device" in profiler.table().splitlines()[0]

    def test_of_a_side_stream(self, busy):
        with HookProfiler(busy, device_time=True) as profiler:
            with torch.cuda.stream(torch.cuda.Stream()):
                step(busy)
        device = device_times(profiler)
        assert device["count"] == 1 and device["min"] > 0

    def test_not_of_a_hook_that_is_captured(self, hooks):
        numbers = torch.zeros(1000, device="cuda")
        hooks.register_hook(
            "on_step",
            HookContext.from_callable("a", after=lambda _: numbers.add_(1)),
        )
        graph = torch.cuda.CUDAGraph()
        with HookProfiler(hooks, device_time=True) as profiler:
            step(hooks)
            with torch.cuda.graph(graph):
                step(hooks)
            graph.replay()
            step(hooks)
        row = rows(profiler)["a", "after"]
        assert (row["count"], row["device"]["count"]) == (3, 2)
        assert numbers.tolist() == 1000 * [3.0]  # It was captured.

    def test_of_each_device(self, busy):
        """Whichever is current when the times are read."""
        with HookProfiler(busy, device_time=True) as profiler:
            for device in range(torch.cuda.device_count()):
                with torch.cuda.device(device):
                    step(busy)
        device = device_times(profiler)
        assert device["count"] == torch.cuda.device_count()

    def test_nvtx_takes_and_balances_ranges(self, busy):
        """Without a tool that listens, NVTX itself tells no depth."""
        nvtx = torch.cuda.nvtx
        with (
            mock.patch.object(
                nvtx, "range_push", side_effect=nvtx.range_push
            ) as push,
            mock.patch.object(
                nvtx, "range_pop", side_effect=nvtx.range_pop
            ) as pop,
            HookProfiler(busy, nvtx=True, record_function=True),
        ):
            step(busy)
        push.assert_called_once_with("on_step.after:a")
        pop.assert_called_once_with()
