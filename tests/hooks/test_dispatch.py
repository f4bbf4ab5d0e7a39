"""The order in which callbacks run, and the scopes that run them."""

import subprocess
import sys
from contextlib import ExitStack

import pytest

from helpers.hooks import HookContext
from helpers.implementations import INSTALLED, PROFILED

pytestmark = pytest.mark.also_on(*INSTALLED, *PROFILED)


def chain(error):
    """An exception and its contexts, outermost first."""
    found = []
    while error is not None:
        found.append((type(error), str(error)))
        error = error.__context__
    return found


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


@pytest.mark.contract("K2")
def test_a_failing_before_skips_to_all_afters(hooks, hook, log, args):
    for name, fail in (("a", ()), ("b", ["before"]), ("c", ())):
        hooks.register_hook("on_step", hook(name, fail))
    with pytest.raises(ValueError, match="before b"):
        with hooks.begin("on_step", args):
            log.append("body")
    assert log == ["before a", "before b", "after a", "after b", "after c"]


@pytest.mark.contract("K3")
def test_a_failing_after_skips_later_afters(hooks, hook, log, args):
    for name, fail in (("a", ()), ("b", ["after"]), ("c", ())):
        hooks.register_hook("on_step", hook(name, fail))
    with pytest.raises(ValueError) as raised:
        with hooks.begin("on_step", args):
            raise KeyError("body")
    assert log[-2:] == ["after a", "after b"]
    assert chain(raised.value) == [
        (ValueError, "after b"),
        (KeyError, "'body'"),
    ]


@pytest.mark.contract("K3")
def test_a_failing_after_has_a_failing_before_as_context(hooks, hook, args):
    hooks.register_hook("on_step", hook("a", ["before", "after"]))
    with pytest.raises(ValueError) as raised:
        with hooks.begin("on_step", args):
            pass
    assert chain(raised.value) == [
        (ValueError, "after a"),
        (ValueError, "before a"),
    ]


@pytest.mark.parametrize(
    "error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit]
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


def test_stop_iteration_of_a_body_passes(hooks, hook, args):
    hooks.register_hook("on_step", hook("a"))
    with pytest.raises(StopIteration):
        with hooks.begin("on_step", args):
            raise StopIteration


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
def test_begin_yields_its_argument(hooks, args):
    with hooks.begin("on_step", args) as given:
        assert given is args
    with hooks.begin(arg=args, channel="on_step") as given:
        assert given is args
    with hooks.hooks["on_step"].begin(arg=args) as given:
        assert given is args


@pytest.mark.contract("K6")
def test_nothing_runs_before_a_scope_is_entered(hooks, hook, log, args):
    hooks.register_hook("on_step", hook("a"))
    scope = hooks.begin("on_step", args)
    hooks.register_hook("on_step", hook("b"))
    assert log == []
    with scope:
        assert log == ["before a", "before b"]


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
def test_a_scope_works_in_an_exit_stack(hooks, hook, log, args):
    hooks.register_hook("on_step", hook("a"))
    with ExitStack() as stack:
        assert stack.enter_context(hooks.begin("on_step", args)) is args
        assert log == ["before a"]
    assert log == ["before a", "after a"]


@pytest.mark.contract("K6")
def test_entering_and_leaving_by_hand(hooks, hook, log, args):
    hooks.register_hook("on_step", hook("a"))
    scope = hooks.begin("on_step", args)
    assert scope.__enter__() is args
    assert not scope.__exit__(None, None, None)
    assert log == ["before a", "after a"]
    assert not scope.__exit__(None, None, None)
    assert log == ["before a", "after a"]


@pytest.mark.contract("F11")
def test_a_scope_is_entered_once(ours, hook, log):
    hooks = ours.PipelineHooks()
    hooks.register_hook("on_step", hook("a"))
    scope = hooks.begin("on_step", None)
    for _ in range(2):
        with scope:
            with pytest.raises(
                RuntimeError, match="^a scope can be entered once$"
            ):
                with scope:
                    raise AssertionError("entered twice")
        scope = hooks.begin("on_step", None)
    with hooks.begin("on_step", None) as _:
        pass
    with scope:
        pass
    with pytest.raises(RuntimeError, match="^a scope can be entered once$"):
        with scope:
            pass
    assert log == ["before a", "after a"] * 4


def test_a_scope_is_left_after_it_was_entered(ours):
    with pytest.raises(
        RuntimeError, match="^a scope has to be entered before it is left$"
    ):
        ours.PipelineHooks().begin("on_step", None).__exit__(None, None, None)


def test_a_scope_that_begin_did_not_make(ours):
    scope = type(ours.PipelineHooks().begin("on_step", None))()
    for call in (
        scope.__enter__,
        lambda: scope.__exit__(None, None, None),
    ):
        with pytest.raises(RuntimeError, match="^a scope"):
            call()


def test_a_hook_cannot_leave_the_scope_that_is_being_entered(lib, hook, log):
    hooks = lib.PipelineHooks()
    hooks.register_hook(
        "on_step",
        HookContext.from_callable(
            before=lambda args: scope.__exit__(None, None, None)
        ),
    )
    for name in "ab":
        hooks.register_hook("on_step", hook(name))
    scope = hooks.begin("on_step", None)
    error = RuntimeError if lib.name == "ours" else ValueError
    with pytest.raises(error):
        with scope:
            pass
    assert log == ["after a", "after b"]


def test_a_hook_may_leave_the_scope_that_is_being_left(ours, hook, log):
    hooks = ours.PipelineHooks()
    hooks.register_hook(
        "on_step",
        HookContext.from_callable(
            after=lambda args: scope.__exit__(None, None, None)
        ),
    )
    hooks.register_hook("on_step", hook("a"))
    scope = hooks.begin("on_step", None)
    with scope:
        pass
    assert log == ["before a", "after a"]


def test_a_channel_that_is_restored_while_a_hook_is_registered():
    """The dictionary of hooks is in use, by way of the hook's `__eq__`."""
    script = """
from robo_orchard_fasthooks import HookContext, PipelineHooks

class Evil(HookContext):
    before = after = print

    def __hash__(self):
        return 1

    def __eq__(self, other):
        channel.__setstate__({"_context_handlers": [one]})
        return False

one = HookContext.from_callable()
channel = PipelineHooks().hooks["on_step"]
for _ in range(50):
    channel.register(Evil())
    channel.register(Evil())
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_channels_in_a_dictionary_of_another_class(hooks, args):
    class Aliases(dict):
        def __getitem__(self, key):
            return super().__getitem__("on_" + key)

    hooks.hooks = Aliases(hooks.hooks)
    ran = []
    hooks.hooks["step"].register(HookContext.from_callable(before=ran.append))
    with hooks.begin("step", args):
        assert ran == [args]
