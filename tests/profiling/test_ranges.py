"""Ranges of torch's profiler and of NVTX."""

from contextlib import contextmanager, suppress
from functools import partial
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from helpers.profiling import passing, step, sums
from robo_orchard_fasthooks import HookProfiler


def failing(args):
    raise ValueError("it fails")


def trace(call):
    """The ranges in a trace of torch's: (name, parent's name)."""
    with profile(activities=[ProfilerActivity.CPU]) as traced:
        call()
    events = sorted(traced.events(), key=lambda each: each.time_range.start)
    return [
        (event.name, event.cpu_parent and event.cpu_parent.name)
        for event in events
        if event.name.startswith(("on_", "aten::add"))
    ]


ranged = partial(HookProfiler, record_function=True)


class TestRanges:
    def test_names_and_nesting(self, hooks, add):
        for _ in range(2):
            add("a", 0)
        add("e", before=lambda _: step(hooks), channel="on_epoch")
        with HookProfiler(hooks):
            assert trace(lambda: step(hooks, channel="on_epoch")) == []
        with ranged(hooks):
            found = trace(lambda: step(hooks, channel="on_epoch"))
        assert found == [
            ("on_epoch.before:e", None),
            ("on_step.before:a", "on_epoch.before:e"),
            ("on_step.before:a #2", "on_epoch.before:e"),
        ]

    @pytest.mark.parametrize("phase", ["before", "after"])
    def test_are_closed_when_a_hook_raises(self, hooks, phase, add):
        add("f", **{phase: failing})

        def run():
            for _ in range(2):
                with pytest.raises(ValueError):
                    step(hooks)
            torch.ones(1) + 1

        with ranged(hooks):
            found = trace(run)
        name = f"on_step.{phase}:f"
        assert found == [(name, None), (name, None), ("aten::add", None)]

    def test_stopped_in_a_hook_the_range_is_closed(self, hooks, add):
        profiler = ranged(hooks)
        add("s", lambda _: profiler.stop())
        profiler.start()

        def run():
            step(hooks)
            torch.ones(1) + 1

        assert trace(run) == [("on_step.before:s", None), ("aten::add", None)]

    def test_are_not_timed(self, hooks, clock, add, monkeypatch):
        @contextmanager
        def slow(name):
            clock.spend(1000)
            yield
            clock.spend(1000)

        monkeypatch.setattr(torch.profiler, "record_function", slow)
        add("a", 10, 20)
        with ranged(hooks, clock=clock) as profiler:
            step(hooks)
        assert sums(profiler) == {("a", "before"): 10, ("a", "after"): 20}


class TestNvtx:
    """On a stand-in for torch.cuda.nvtx."""

    @pytest.fixture
    def log(self, monkeypatch):
        log = []
        nvtx = SimpleNamespace(
            range_push=log.append, range_pop=lambda: log.append("pop")
        )
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "nvtx", nvtx)
        return log

    @pytest.mark.parametrize("record_function", [False, True])
    @pytest.mark.parametrize("callback", [passing, failing])
    def test_is_opened_and_closed(
        self, hooks, callback, record_function, log, add
    ):
        add("{a}", after=callback)
        with HookProfiler(hooks, nvtx=True, record_function=record_function):
            with suppress(ValueError):
                step(hooks)
        assert log == ["on_step.after:{a}", "pop"]

    def test_one_that_fails_leaves_none_open(self, hooks, log, add):
        add("a", after=passing)

        def run():
            with mock.patch.object(
                torch.cuda.nvtx, "range_push", side_effect=RuntimeError
            ):
                with pytest.raises(RuntimeError):
                    step(hooks)
            torch.ones(1) + 1

        with HookProfiler(hooks, nvtx=True, record_function=True):
            assert trace(run) == [("aten::add", None)]
            step(hooks)
        assert log == ["on_step.after:a", "pop"]
