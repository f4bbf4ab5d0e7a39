"""The rows of dispatch again, with a HookProfiler on: nothing else changes."""

from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from test_differential import OURS, PROGRAMS, Run

import conftest
import robo_orchard_fasthooks as fasthooks
from robo_orchard_fasthooks.profiler import HookProfiler
from test_dispatch import (  # noqa: F401  Collected here too.
    TestChangesWhileDispatching,
    TestException,
    TestNote,
    TestPatching,
    args,
    hooks,
    test_a_failing_after_has_a_failing_before_as_context,
    test_a_failing_after_skips_later_afters,
    test_a_failing_before_skips_to_all_afters,
    test_a_hook_cannot_leave_the_scope_that_is_being_entered,
    test_a_hook_is_registered_once,
    test_a_hook_may_leave_the_scope_that_is_being_left,
    test_a_scope_decorates,
    test_a_scope_is_entered_once,
    test_a_scope_is_left_after_it_was_entered,
    test_a_scope_works_in_an_exit_stack,
    test_begin_yields_its_argument,
    test_callbacks_run_in_the_order_of_registration,
    test_entering_and_leaving_by_hand,
    test_nothing_runs_before_a_scope_is_entered,
    test_stop_iteration_of_a_body_passes,
    test_stop_iteration_of_a_hook_stays_one,
    test_the_body_s_exception_is_raised_as_it_is,
)

KINDS = {"times": {}, "ranges": {"record_function": True}}


@pytest.fixture(params=KINDS)
def ours(request):
    """Ours, whose hooks are profiled from the start."""

    class Profiled(fasthooks.PipelineHooks):
        def __init__(self, cfg=None):
            super().__init__(cfg)
            self.profiler = HookProfiler(self, **KINDS[request.param])
            self.profiler.start()

    names = vars(conftest.LIBRARIES["ours"])
    return SimpleNamespace(**{**names, "PipelineHooks": Profiled})


@pytest.fixture
def lib(ours):
    return ours


def test_the_hooks_of_these_tests_are_profiled(hooks, hook, args):  # noqa: F811
    hooks.register_hook("on_step", hook("a"))
    with hooks.begin("on_step", args):
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
