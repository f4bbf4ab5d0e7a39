"""Ranges of torch's profiler and of NVTX."""

from contextlib import suppress
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from helpers.profiling import failing, passing, rows, step
from robo_orchard_fasthooks import (
    GradientClippingHookConfig,
    HookContext,
)
from robo_orchard_fasthooks.profiler import HookProfiler


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
            "robo_orchard_fasthooks._profiling.rows.label",
            side_effect=lambda _: "a",
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


@pytest.mark.usefixtures("fake_cuda")
class TestNvtxOnAStandIn:
    @pytest.fixture
    def log(self, monkeypatch):
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
        return log

    @pytest.mark.parametrize("callback", [passing, failing])
    def test_lies_within_torch_s_range(self, hooks, callback, log):
        hooks.register_hook(
            "on_step", HookContext.from_callable("{a}", after=callback)
        )
        with HookProfiler(hooks, nvtx=True, record_function=True):
            with suppress(ValueError):
                step(hooks)
        name = "on_step.after:{a}"
        assert log == [
            *(("enter", name), ("push", name), ("pop",), ("exit", name)),
        ]

    def test_one_that_fails_leaves_none_open(self, hooks, log):
        """Nor does it mix up those of the next step."""
        name = "on_step.after:a"
        hooks.register_hook(
            "on_step", HookContext.from_callable("a", after=passing)
        )
        with HookProfiler(hooks, nvtx=True, record_function=True):
            with mock.patch.object(
                torch.cuda.nvtx, "range_push", side_effect=RuntimeError
            ):
                with pytest.raises(RuntimeError):
                    step(hooks)
            assert log == [("enter", name), ("exit", name)]
            log.clear()
            step(hooks)
        assert log == [
            *(("enter", name), ("push", name), ("pop",), ("exit", name)),
        ]
