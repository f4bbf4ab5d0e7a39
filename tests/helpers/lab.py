"""RoboOrchardLab's own classes, with `lab.install()` and without."""

import copy
import dataclasses
import sys

import torch
from accelerate import Accelerator
from robo_orchard_core.utils import hook as core

import upstream
from robo_orchard_fasthooks import lab

Args = upstream.mixin.PipelineHookArgs
PipelineHooks = upstream.mixin.PipelineHooks
HookContext = core.HookContext
HOOKS = "robo_orchard_lab.pipeline.hooks"
NAMES = [
    f"{HOOKS}.mixin.PipelineHooks.__init__",
    f"{HOOKS}.mixin.PipelineHooks.begin",
    f"{HOOKS}.mixin.PipelineHooks.register_hook",
    f"{HOOKS}.mixin.PipelineHooks.register_pipeline_hooks",
    f"{HOOKS}.mixin.PipelineHooks.from_hooks",
    f"{HOOKS}.mixin.PipelineHookArgs.__init__",
    f"{HOOKS}.mixin.PipelineHookArgs.copy_with_updates",
    f"{HOOKS}.grad_clip.GradientClippingHook._gradient_clipping",
    f"{HOOKS}.optimizer.OptimizerHook._optimizer_step",
]
# Calls of the class are replaced; this attribute stays as it is.
CONSTRUCTION = f"{HOOKS}.mixin.PipelineHookArgs.__init__"


def found(name):
    module, cls, attribute = name.rsplit(".", 2)
    return vars(getattr(sys.modules[module], cls))[attribute]


ORIGINALS = {name: found(name) for name in NAMES}


def python_frames(call):
    """Returns the names of the Python functions that a call runs."""
    names = []

    def profile(frame, event, arg):
        if event == "call":
            names.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return names[1:]  # The first is `call` itself.


def outcome(call):
    try:
        return call()
    except Exception as error:
        return type(error), str(error)


def assert_same_installed(call):
    """Asserts that a call has the same outcome with `lab.install()`."""
    off = outcome(call)
    with lab.install():
        assert outcome(call) == off
    return off


def run(hooks, args=None, channel="on_step"):
    with hooks.begin(channel, args):
        pass


def failing(hooks, args, error):
    with hooks.begin("on_step", args):
        if error is not None:
            raise error


def logging_hook(log, name="a"):
    return HookContext.from_callable(name, after=lambda args: log.append(name))


def shown(args):
    """Everything that can be read from a PipelineHookArgs."""
    return (
        type(args),
        list(vars(args).items()),
        repr(args),
        list(dataclasses.asdict(args).items()),
        dataclasses.astuple(args),
        vars(dataclasses.replace(args, step_id=-1)),
        [args == other for other in (copy.copy(args), Args(0), None)],
    )


class Value:
    """Equal to nothing else, and shown alike."""

    def __repr__(self):
        return "Value"

    def __deepcopy__(self, memo):
        return self


class Stepped:
    """Stands in for an optimizer and for a scheduler."""

    def __init__(self):
        self.calls = []

    def step(self):
        self.calls.append("step")

    def zero_grad(self):
        self.calls.append("zero")


def train(hooks):
    """Takes a step with a gradient of norm 5; returns the parameter."""
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([3.0, 4.0])
    args = Args(Accelerator(cpu=True), lr_scheduler=Stepped())
    args.optimizer = torch.optim.SGD([param], lr=1.0)
    run(hooks, args)
    assert args.lr_scheduler.calls == ["step"]
    return param.tolist()


class Counting(PipelineHooks):
    """A subclass that existed before `lab.install()` and overrides `begin`."""

    def __init__(self):
        super().__init__()
        self.begun = []
        self.register_hook("on_step", logging_hook(self.begun))

    def begin(self, channel, arg):
        self.begun.append(channel)
        return super().begin(channel, arg)
