"""Random programs of hooks do on each implementation what the rules say."""

import sys
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from robo_orchard_core.utils import hook as core

import robo_orchard_fasthooks as fasthooks
from helpers.programs import (
    KEPT,
    MENDED,
    OURS,
    PROGRAMS,
    SITUATIONS,
    THEIRS,
    FromCallable,
    PlannedError,
    Run,
    assert_same,
    seen,
)


def every_program_does_what_the_rules_say(program):
    kept, mended = Run(KEPT).run(program), Run(MENDED).run(program)
    assert_same(Run(THEIRS).run(program), kept)
    assert_same(Run(OURS).run(program), mended)
    seen.update(mended.seen)
    seen["programs"] += 1
    seen["events"] += len(mended.events)
    seen["programs without a difference"] += kept.events == mended.events


@pytest.mark.parametrize(
    ("examples", "least"),
    [(300, 0), pytest.param(2000, 20, marks=pytest.mark.slow)],
)
def test_programs_differ_from_upstream_by_the_mended_rules_alone(
    examples, least
):
    seen.clear()
    settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )(given(PROGRAMS)(every_program_does_what_the_rules_say))()
    rare = {name: seen[name] for name in SITUATIONS if seen[name] < least}
    assert not rare, "the generated programs have become poor"


# What the programs leave out, because ours does not do it yet.


@pytest.mark.parametrize("library", [THEIRS, OURS], ids=["upstream", "ours"])
class TestFoundByThePrograms:
    @pytest.fixture
    def hooks(self, library):
        return library.hooks()

    @pytest.fixture
    def log(self):
        return []

    def test_an_index_past_the_end_is_the_error_of_a_list(self, hooks):
        with pytest.raises(IndexError, match="^list index out of range$"):
            hooks.hooks["on_step"][0]


def test_a_note_says_where_a_patched_class_raised():
    def fail(hook, arg):
        raise PlannedError

    hooks = fasthooks.PipelineHooks()
    hooks.register_hook("on_step", core.HookContext.from_callable())
    with mock.patch.object(FromCallable, "before", fail):
        with pytest.raises(PlannedError) as raised:
            with hooks.begin("on_step", None):
                pass
    if sys.version_info >= (3, 11):
        assert f"{__file__}:" in raised.value.__notes__[0]
