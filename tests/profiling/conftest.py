"""Fixtures of the tests of HookProfiler."""

import pytest

from helpers.fake_cuda import FakeCuda
from helpers.profiling import Clock, step
from robo_orchard_fasthooks import HookContext, PipelineHooks
from robo_orchard_fasthooks.profiler import HookProfiler


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


@pytest.fixture
def fake_cuda(monkeypatch):
    cuda = FakeCuda()
    cuda.install(monkeypatch)
    return cuda


@pytest.fixture
def profiled(hooks, clock, spending):
    """Known times: of 1000 ns 50 and 100 in a, 250 and 0 in b."""
    hooks.register_hook("on_step", spending("a", 50, 100))
    hooks.register_hook("on_step", spending("b", 250, 0))
    with HookProfiler(hooks, clock=clock) as profiler:
        for _ in range(1500):
            step(hooks, lambda: clock.spend(600))
    return profiler
