"""Fixtures of the tests of HookProfiler."""

from itertools import repeat

import pytest

from helpers.profiling import Clock, step
from robo_orchard_fasthooks import HookContext, HookProfiler


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def hooks(ours):
    return ours.PipelineHooks()


@pytest.fixture
def add(hooks, clock):
    """Registers a hook whose callbacks are given, or the times they take."""

    def spend(times):
        left = repeat(times) if isinstance(times, int) else iter(times)
        return lambda _: clock.spend(next(left))

    def add(name=None, before=None, after=None, channel="on_step"):
        callbacks = [
            each if each is None or callable(each) else spend(each)
            for each in (before, after)
        ]
        hook = HookContext.from_callable(name, *callbacks)
        return hooks.register_hook(channel, hook)

    return add


@pytest.fixture
def timed(hooks, clock):
    """Profiles steps whose bodies take some nanoseconds."""

    def timed(steps=1, body=0, **settings):
        with HookProfiler(hooks, clock=clock, **settings) as profiler:
            for _ in range(steps):
                step(hooks, lambda: clock.spend(body))
        return profiler

    return timed
