"""Fixtures of the tests of HookProfiler."""

import pytest

from helpers.profiling import Clock
from robo_orchard_fasthooks import HookContext, PipelineHooks


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def hooks():
    return PipelineHooks()


@pytest.fixture
def add(hooks, clock):
    """Registers a hook whose callbacks take some nanoseconds."""

    def add(name, before=None, after=None, channel="on_step"):
        callbacks = [
            time if time is None else lambda _, time=time: clock.spend(time)
            for time in (before, after)
        ]
        hook = HookContext.from_callable(name, *callbacks)
        return hooks.register_hook(channel, hook)

    return add
