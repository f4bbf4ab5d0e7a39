"""F3: a scope within a hook leaves `exception` as it was."""

import pytest
from robo_orchard_core.utils import hook as core

from robo_orchard_fasthooks import (
    HookContext,
    OptimizerHook,
    PipelineHookArgs,
    PipelineHooks,
)
from robo_orchard_fasthooks._dispatch import in_place


class Subclass(PipelineHookArgs):
    pass


class Foreign:
    exception = None


class Slots:
    __slots__ = ("exception", "lr_scheduler", "optimizer")

    def __init__(self):
        self.exception = None


MAKE_ARGS = {
    "PipelineHookArgs": lambda: PipelineHookArgs(None),
    "a subclass": lambda: Subclass(None),
    "foreign": Foreign,
    "slots": Slots,
}


@pytest.fixture(params=MAKE_ARGS)
def args(request):
    return MAKE_ARGS[request.param]()


def hooks_of(**callbacks):
    hooks = PipelineHooks()
    hooks.register_hook("on_step", HookContext.from_callable(**callbacks))
    return hooks


def fail(error):
    def run(args):
        raise error

    return run


def scope_that_fails_nowhere(args):
    with hooks_of(after=lambda _: None).begin("on_step", args):
        pass


def scope_whose_body_fails(args):
    with pytest.raises(KeyError):
        with hooks_of(after=lambda _: None).begin("on_step", args):
            raise KeyError


def scope_whose_before_fails(args):
    with pytest.raises(KeyError):
        with hooks_of(before=fail(KeyError())).begin("on_step", args):
            raise AssertionError("the body ran")


def scope_whose_after_fails(args):
    with pytest.raises(KeyError):
        with hooks_of(after=fail(KeyError())).begin("on_step", args):
            pass


def scope_whose_body_raises_the_outer_exception(args):
    with pytest.raises(ValueError):
        with hooks_of(after=lambda _: None).begin("on_step", args):
            raise args.exception


def scopes_at_depth_five(args, depth=5):
    inner = hooks_of(
        after=lambda args: (
            scopes_at_depth_five(args, depth - 1)
            if depth
            else scope_whose_body_fails(args)
        )
    )
    with inner.begin("on_step", args):
        pass


def decorated_function(args):
    @hooks_of(after=lambda _: None).begin("on_step", args)
    def function():
        pass

    function()


@pytest.mark.parametrize(
    "within",
    [
        scope_that_fails_nowhere,
        scope_whose_body_fails,
        scope_whose_before_fails,
        scope_whose_after_fails,
        scope_whose_body_raises_the_outer_exception,
        scopes_at_depth_five,
        decorated_function,
    ],
)
@pytest.mark.parametrize("failing", ["before", "body"])
def test_the_outer_failure_outlasts_a_scope_in_an_after(args, within, failing):
    error = ValueError()
    seen = []

    def after(args):
        seen.append(args.exception)
        within(args)
        seen.append(args.exception)

    hooks = hooks_of(after=after)
    hooks.register_hook(
        "on_step",
        HookContext.from_callable(
            before=fail(error) if failing == "before" else None,
            after=lambda args: seen.append(args.exception),
        ),
    )
    with pytest.raises(ValueError) as raised:
        with hooks.begin("on_step", args):
            raise error
    assert raised.value is error
    assert seen == [error] * 3
    assert args.exception is None


def test_an_inner_scope_sees_its_own_outcome(args):
    seen = []
    watched = hooks_of(after=lambda args: seen.append(args.exception))
    inner_error, outer_error = KeyError(), ValueError()

    def after(args):
        with watched.begin("on_step", args):
            pass
        with pytest.raises(KeyError):
            with watched.begin("on_step", args):
                raise inner_error
        seen.append(args.exception)

    with pytest.raises(ValueError):
        with hooks_of(after=after).begin("on_step", args):
            raise outer_error
    assert seen == [None, inner_error, outer_error]


def test_a_scope_in_a_before_leaves_none(args):
    seen = []

    def before(args):
        scope_whose_body_fails(args)
        seen.append(args.exception)

    hooks = hooks_of(
        before=before, after=lambda args: seen.append(args.exception)
    )
    with hooks.begin("on_step", args):
        seen.append(args.exception)
    assert seen == [None] * 3


def test_an_exception_that_was_set_before_the_scope_stays(args):
    args.exception = mine = KeyError()
    with pytest.raises(ValueError):
        with hooks_of(after=lambda _: None).begin("on_step", args):
            raise ValueError
    assert args.exception is mine


def test_the_optimizer_does_not_step_after_a_failed_step(args):
    """The case that this rule is for."""
    steps = []

    class Stepping:
        def step(self):
            steps.append(self)

        zero_grad = step

    args.optimizer = args.lr_scheduler = Stepping()
    optimizer_hook = OptimizerHook()

    def after(args):
        scope_that_fails_nowhere(args)
        optimizer_hook._optimizer_step(args)

    with pytest.raises(ValueError):
        with hooks_of(after=after).begin("on_step", args):
            raise ValueError
    assert steps == []
    with hooks_of(after=after).begin("on_step", args):
        pass
    assert len(steps) == 3


class TestAttributesThatAreLeftAlone:
    def run(self, args, after=lambda _: None):
        with pytest.raises(ValueError):
            with hooks_of(after=after).begin("on_step", args):
                raise ValueError

    def test_one_that_is_no_exception(self):
        class Args:
            exception = "none"

        args = Args()
        self.run(args, lambda args: setattr(args, "exception", None))
        assert args.exception is None

    def test_one_that_a_hook_adds(self):
        class Args:
            pass

        args, error = Args(), KeyError()
        self.run(args, lambda args: setattr(args, "exception", error))
        assert args.exception is error

    def test_one_that_a_hook_deletes(self):
        args = Slots()
        self.run(args, lambda args: delattr(args, "exception"))
        assert not hasattr(args, "exception")


@pytest.mark.parametrize("publishes_exception", [True, False])
def test_in_place_is_as_in_robo_orchard_lab(args, publishes_exception):
    """0.5 leaves the exception of a body set; 0.4 has no such attribute."""
    channel = in_place({"name": "on_step"}, publishes_exception)
    seen = []
    channel.register(
        HookContext.from_callable(
            after=lambda args: seen.append(args.exception)
        )
    )
    error = ValueError()
    with pytest.raises(ValueError):
        with channel.begin(args):
            raise error
    expected = error if publishes_exception else None
    assert seen == [expected] and args.exception is expected
    with channel.begin(args):
        pass
    assert seen == [expected] * 2 and args.exception is expected
    assert isinstance(channel, core.HookContextChannel)
