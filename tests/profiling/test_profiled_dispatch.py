"""Programs of hooks again, with a HookProfiler on: nothing else changes.

The tests of dispatch run with a profiler, too: see `PROFILED`.
"""

import pytest
from hypothesis import HealthCheck, given, settings

import robo_orchard_fasthooks as fasthooks
from helpers.implementations import IMPLEMENTATIONS, PROFILED
from helpers.programs import OURS, PROGRAMS, Run
from robo_orchard_fasthooks.profiler import HookProfiler


@pytest.mark.parametrize("name", PROFILED)
def test_the_hooks_of_these_tests_are_profiled(name, hook):
    with IMPLEMENTATIONS[name]() as ours:
        hooks = ours.PipelineHooks()
        hooks.register_hook("on_step", hook("a"))
        with hooks.begin("on_step", ours.PipelineHookArgs(None)):
            pass
    assert hooks.profiler.to_dict()["on_step"]["scope"]["count"] == 1


class ProfiledHooks(fasthooks.PipelineHooks):
    def __init__(self, cfg=None):
        super().__init__(cfg)
        HookProfiler(self).start()


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(PROGRAMS)
def test_programs_do_the_same_while_profiled(program):
    plain = Run(OURS).run(program)
    profiled = Run(OURS._replace(hooks=ProfiledHooks)).run(program)
    assert profiled.events == plain.events
    assert profiled.mended == plain.mended
