"""The order in which callbacks run, and the scopes that run them."""

from contextlib import ExitStack

import pytest

from helpers.hooks import HookContext
from helpers.implementations import INSTALLED, PROFILED

pytestmark = pytest.mark.also_on(*INSTALLED, *PROFILED)
also_on_twins = pytest.mark.also_on("twins", *INSTALLED, *PROFILED)
ONCE = "^a scope can be entered once: call begin again for each step$"


def chain(error):
    """What an exception and its contexts say, outermost first."""
    return [] if error is None else [str(error), *chain(error.__context__)]


@also_on_twins
@pytest.mark.contract("K1")
def test_callbacks_run_in_the_order_of_registration(hooks, hook, log, args):
    for name in "abc":
        hooks.register_hook("on_step", hook(name))
    with hooks.begin("on_step", args):
        log.append("body")
    assert log == [
        *("before a", "before b", "before c", "body"),
        *("after a", "after b", "after c"),
    ]


@also_on_twins
@pytest.mark.contract("K2")
def test_a_failing_before_skips_to_all_afters(hooks, hook, log, args):
    for name, fail in (("a", ()), ("b", ["before"]), ("c", ())):
        hooks.register_hook("on_step", hook(name, fail))
    with pytest.raises(ValueError, match="before b"):
        with hooks.begin("on_step", args):
            log.append("body")
    assert log == ["before a", "before b", "after a", "after b", "after c"]


@also_on_twins
@pytest.mark.contract("K3")
@pytest.mark.parametrize("earlier", ["body", "before a"])
def test_a_failing_after_skips_later_afters(hooks, hook, log, args, earlier):
    fail = ["after"] if earlier == "body" else ["before", "after"]
    for name in "ab":
        hooks.register_hook("on_step", hook(name, fail))
    with pytest.raises(ValueError) as raised:
        with hooks.begin("on_step", args):
            raise ValueError(earlier)
    assert log[-1] == "after a"
    assert chain(raised.value) == ["after a", earlier]


@pytest.mark.parametrize(
    "error",
    [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration],
)
def test_the_body_s_exception_is_raised_as_it_is(
    hooks, hook, log, args, error
):
    hooks.register_hook("on_step", hook("a"))
    given = error("x")
    with pytest.raises(error) as raised:
        with hooks.begin("on_step", args):
            raise given
    assert raised.value is given
    assert log == ["before a", "after a"]


@pytest.mark.also_on(*PROFILED)
def test_stop_iteration_of_a_hook_stays_one(ours, theirs):
    def stop(args):
        raise StopIteration

    for lib, expected in ((ours, StopIteration), (theirs, RuntimeError)):
        hooks = lib.PipelineHooks()
        hooks.register_hook("on_step", HookContext.from_callable(before=stop))
        with pytest.raises(expected):
            with hooks.begin("on_step", None):
                pass


@pytest.mark.contract("K6")
def test_begin_runs_nothing_until_entered(hooks, hook, log, args):
    scopes = [
        hooks.begin("on_step", args),
        hooks.begin(arg=args, channel="on_step"),
        hooks.hooks["on_step"].begin(arg=args),
    ]
    hooks.register_hook("on_step", hook("late"))
    for scope in scopes:
        assert log == []
        with ExitStack() as stack:
            assert stack.enter_context(scope) is args
            assert log == ["before late"]
        assert log.pop() == "after late"
        log.clear()


@pytest.mark.contract("K6")
def test_a_scope_decorates(hooks, hook, log, args):
    hooks.register_hook("on_step", hook("a"))

    @hooks.begin("on_step", args)
    def double(number, *, plus=0):
        """Doubles."""
        log.append("body")
        return 2 * number + plus

    assert double.__name__ == "double" and double.__doc__ == "Doubles."
    assert [double(2), double(3, plus=1)] == [4, 7]
    assert log == ["before a", "body", "after a"] * 2


@pytest.mark.contract("K6")
@pytest.mark.also_on()
def test_a_decorated_generator_outlasts_its_scope(hooks, hook, log, args):
    hooks.register_hook("on_step", hook("a"))

    @hooks.begin("on_step", args)
    def steps():
        yield log.append("generator")

    list(steps())
    assert log == ["before a", "after a", "generator"]


@pytest.mark.contract("K6")
def test_entering_and_leaving_by_hand(hooks, hook, log, args):
    hooks.register_hook("on_step", hook("a"))
    scope = hooks.begin("on_step", args)
    assert scope.__enter__() is args
    for _ in range(2):
        assert not scope.__exit__(None, None, None)
        assert log == ["before a", "after a"]


@pytest.mark.contract("F11")
def test_a_scope_is_entered_once(ours, hook, log):
    hooks = ours.PipelineHooks()
    hooks.register_hook("on_step", hook("a"))
    scope = hooks.begin("on_step", None)
    with scope:
        with pytest.raises(RuntimeError, match=ONCE):
            scope.__enter__()
    with pytest.raises(RuntimeError, match=ONCE):
        scope.__enter__()
    assert log == ["before a", "after a"]


def test_begin_says_what_is_missing_or_misplaced(lib):
    hooks, args = lib.PipelineHooks(), lib.PipelineHookArgs(None)
    for call in (
        lambda: hooks.begin("on_step"),
        lambda: hooks.begin(channel="on_step"),
    ):
        with pytest.raises(TypeError, match="missing 1 required .*: 'arg'$"):
            call()
    misplaced = "unhashable type: '.*PipelineHookArgs'"
    if lib.name == "ours":
        misplaced += ": the name of the channel comes first"
    with pytest.raises(TypeError, match=misplaced):
        hooks.begin(args, "on_step").__enter__()


def test_a_scope_is_left_after_it_was_entered(ours):
    scope = ours.PipelineHooks().begin("on_step", None)
    not_made_by_begin = type(scope)()
    for each in (scope, not_made_by_begin):
        with pytest.raises(
            RuntimeError, match="^a scope has to be entered before it is left$"
        ):
            each.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match=ONCE):
        not_made_by_begin.__enter__()


@pytest.mark.parametrize("phase", ["before", "after"])
def test_a_hook_that_leaves_its_scope(ours, hook, log, phase):
    """It may while the scope is being left, not while it is entered."""
    hooks = ours.PipelineHooks()
    leaving = HookContext.from_callable(
        **{phase: lambda args: scope.__exit__(None, None, None)}
    )
    hooks.register_hook("on_step", leaving)
    hooks.register_hook("on_step", hook("a"))
    scope = hooks.begin("on_step", None)
    if phase == "before":
        with pytest.raises(RuntimeError, match="^a scope has to be entered"):
            scope.__enter__()
    else:
        with scope:
            pass
    assert log[-1] == "after a"
