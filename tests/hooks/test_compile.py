"""Scopes and copies within functions that torch.compile compiles."""

import subprocess
import sys
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo import decorators
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounter

import robo_orchard_fasthooks
from helpers.hooks import HookContext
from helpers.implementations import INSTALLED
from robo_orchard_fasthooks import HookProfiler, _dynamo

pytestmark = pytest.mark.also_on(*INSTALLED)


@pytest.fixture
def backend():
    torch._dynamo.reset()
    return CompileCounter()


class Counting(HookContext):
    """Counts its calls in the arguments."""

    def before(self, args):
        args.step_id += 1

    def after(self, args):
        args.step_id += 10


def raises(args):
    raise ValueError("from a hook")


def plain(hooks, args, x):
    with hooks.begin("on_step", args) as given:
        return x + given.step_id


def nested(hooks, args, x):
    scope = hooks.hooks["on_epoch"].begin(args)
    with scope, hooks.begin(channel="on_step", arg=args):
        with type(hooks).begin(hooks, "on_step", args):
            return x + args.step_id


def on_a_stack(hooks, args, x):
    with ExitStack() as stack:
        stack.enter_context(hooks.begin("on_step", args))
        return x + args.step_id


def as_a_decorator(hooks, args, x):
    @hooks.begin("on_step", args)
    def double(x):
        return 2 * x

    return double(x) + args.step_id


def that_fails(hooks, args, x):
    try:
        with hooks.begin("on_step", args):
            raise KeyError
    except KeyError:
        return x + args.step_id


def whose_hooks_fail(hooks, args, x):
    for channel in ("on_epoch", "on_batch"):
        try:
            with hooks.begin(channel, args):
                x = x + 1
        except ValueError:
            x = x + args.step_id
    return x


def unknown(hooks, args, x):
    try:
        with hooks.begin("on_stop", args):
            return x
    except KeyError:
        return x + 1


STEPS = (
    *(plain, nested, on_a_stack, as_a_decorator),
    *(that_fails, whose_hooks_fail, unknown),
)


def run(lib, step, compiled=lambda function: function):
    """The result and the count of a step, for hooks of three channels."""
    hooks = lib.PipelineHooks()
    for channel, phase in (
        *(("on_step", None), ("on_step", None)),
        *(("on_epoch", "before"), ("on_batch", "after")),
    ):
        hooks.register_hook(channel, Counting())
        if phase and step is whose_hooks_fail:
            failing = HookContext.from_callable(**{phase: raises})
            hooks.register_hook(channel, failing)
    args = lib.PipelineHookArgs(accelerator=None)
    result = compiled(step)(hooks, args, torch.ones(2))
    return result.tolist(), args.step_id


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_a_step_is_one_graph(lib, step, backend):
    compiled = torch.compile(backend=backend, fullgraph=True)
    assert run(lib, step, compiled) == run(lib, step)
    assert backend.frame_count == 1


@pytest.mark.also_on("installed 0.5")  # 0.4's arguments have none.
@pytest.mark.parametrize("failing", [False, True])
def test_the_exception_within_a_graph(ours, failing, backend):
    """Hooks see it, and RoboOrchardLab 0.5 keeps it."""
    hooks = ours.PipelineHooks()

    def after(args):
        args.step_id = 1 if isinstance(args.exception, KeyError) else 2

    hooks.register_hook("on_step", HookContext.from_callable(after=after))

    def step(args, x):
        try:
            with hooks.begin("on_step", args):
                if failing:
                    raise KeyError
        except KeyError:
            x = x + 1
        return x + args.step_id

    seen = []
    for function in (step, torch.compile(step, backend=backend)):
        args = ours.PipelineHookArgs(accelerator=None)
        result = function(args, torch.ones(2)).tolist()
        seen.append((result, args.step_id, type(args.exception)))
    assert seen[0] == seen[1] and backend.frame_count == 1


def test_a_hook_that_is_registered_later_runs(lib, backend):
    hooks = lib.PipelineHooks()
    args = lib.PipelineHookArgs(accelerator=None)
    compiled = torch.compile(plain, backend=backend, fullgraph=True)
    counts = []
    handle = hooks.register_hook("on_step", Counting())
    for change in (lambda: None, handle, lambda: None):
        compiled(hooks, args, torch.ones(2))
        change()
        counts.append(args.step_id)
    assert counts == [11, 22, 22]


def test_a_hook_that_cannot_be_traced_runs(lib, backend):
    """The scope runs as it does without torch.compile, also upstream."""
    hooks = lib.PipelineHooks()
    print_it = HookContext.from_callable(
        before=lambda args: sys.stdout.flush()
    )
    hooks.register_hook("on_step", print_it)
    hooks.register_hook("on_step", Counting())
    args = lib.PipelineHookArgs(accelerator=None)
    torch.compile(plain, backend=backend)(hooks, args, torch.ones(2))
    assert args.step_id == 11 and backend.frame_count == 0


def test_a_scope_that_is_profiled_is_timed(backend):
    """So it breaks the graph, and does not once the profiler has stopped."""
    hooks = robo_orchard_fasthooks.PipelineHooks()
    args = robo_orchard_fasthooks.PipelineHookArgs(accelerator=None)
    step = torch.compile(plain, backend=backend, fullgraph=True)
    with HookProfiler(hooks) as profiler:
        torch.compile(plain, backend=backend)(hooks, args, torch.ones(2))
        torch._dynamo.reset()
        with pytest.raises(Unsupported, match="a HookProfiler times"):
            step(hooks, args, torch.ones(2))
    assert profiler.to_dict()["on_step"]["scope"]["count"] == 1
    step(hooks, args, torch.ones(2))
    assert backend.frame_count == 1


def copy(args, x):
    x = x + 1
    copied = args.copy_with_updates(batch=x, step_id=5)
    return copied, copied.batch + copied.step_id + x


def build(args, x):
    x = x + 1
    built = type(args)(accelerator=None, batch=x, step_id=5)
    return built, built.batch + built.step_id + x


@pytest.mark.parametrize("make", [copy, build])
def test_arguments_within_a_graph(lib, make, backend):
    """The graph breaks around this package's own."""
    cls = lib.PipelineHookArgs
    args = cls(accelerator=None, epoch_id=3)
    made, total = torch.compile(make, backend=backend)(args, torch.ones(2))
    assert type(made) is cls and made.batch.tolist() == [2, 2]
    assert (made.step_id, total.tolist()) == (5, [9, 9])
    assert made.epoch_id == (3 if make is copy else 0)
    compiled = cls is robo_orchard_fasthooks.PipelineHookArgs
    assert backend.frame_count == (2 if compiled else 1)


def test_twins_are_registered_whoever_imports_torch_dynamo():
    """This package does not: it takes seconds."""
    script = """
import importlib.util, sys
from robo_orchard_fasthooks import PipelineHooks
importlib.util.find_spec("torch._dynamo")
assert "torch._dynamo" not in sys.modules
from torch._dynamo.trace_rules import is_polyfilled_callable
assert is_polyfilled_callable(PipelineHooks.begin)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_a_torch_that_differs_is_left_alone(monkeypatch):
    is_function = decorators.is_function
    broken = SimpleNamespace()
    monkeypatch.setattr(decorators, "substitute_in_graph", broken)
    _dynamo.substitute(len, len)
    assert decorators.is_function is is_function
