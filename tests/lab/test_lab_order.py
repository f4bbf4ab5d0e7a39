"""The warning of a wrong order for RoboOrchardLab's own hooks, in place."""

import inspect

import pytest
import torch
from accelerate import Accelerator

import robo_orchard_fasthooks as ours
import upstream
from robo_orchard_fasthooks import lab

pytestmark = pytest.mark.contract("F8")

FAMILIES = {
    "ours": (
        ours.PipelineHooks,
        ours.PipelineHookArgs,
        ours.GradientClippingHookConfig,
        ours.OptimizerHookConfig,
    ),
    "lab": (
        upstream.mixin.PipelineHooks,
        upstream.mixin.PipelineHookArgs,
        upstream.grad_clip.GradientClippingHookConfig,
        upstream.optimizer.OptimizerHookConfig,
    ),
}


@pytest.fixture(autouse=True)
def installed():
    with lab.install():
        yield


@pytest.fixture(params=FAMILIES)
def hooks(request):
    return FAMILIES[request.param][0]()


@pytest.fixture(params=FAMILIES)
def clipping(request):
    return FAMILIES[request.param][2](clip_mode="norm", max_norm=1)()


@pytest.fixture(params=FAMILIES)
def stepping(request):
    return FAMILIES[request.param][3]()()


class Scheduler:
    def step(self):
        pass


@pytest.fixture(params=FAMILIES)
def args(request):
    accelerator = Accelerator(cpu=True)
    param = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([param], lr=1)
    return FAMILIES[request.param][1](
        accelerator=accelerator,
        optimizer=accelerator.prepare_optimizer(optimizer),
        lr_scheduler=Scheduler(),
    )


def param_of(args):
    return args.optimizer.param_groups[0]["params"][0]


def test_the_wrong_order(hooks, clipping, stepping, args):
    hooks += stepping
    hooks.hooks["on_step"].register(clipping.hooks["on_step"][0])
    param_of(args).grad = torch.tensor([3.0, 4.0])
    with pytest.warns(UserWarning) as caught:
        with hooks.begin("on_step", args):
            line = inspect.currentframe().f_lineno - 1
    assert [str(each.message) for each in caught] == [
        "GradientClippingHook is at position 1 of 'on_step', after "
        "OptimizerHook at position 0: the optimizer steps on unclipped "
        "gradients. Register GradientClippingHook first (with "
        "HookBasedTrainer: pass it as grad_clip=)"
    ]
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)
    assert torch.equal(param_of(args), torch.tensor([-3.0, -4.0]))
    with hooks.begin("on_step", args):  # A warning would be an error.
        pass


def test_the_right_order(hooks, clipping, stepping, args):
    hooks += clipping
    hooks += stepping
    for step in range(4):
        if step != 1:
            param_of(args).grad = torch.tensor([3.0, 4.0])
        with hooks.begin("on_step", args):
            pass
    assert param_of(args).norm().item() == pytest.approx(3, rel=1e-5)


def test_two_optimizers_in_one_phase(hooks, stepping, args):
    """The second one has no gradients in the second step."""
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1)
    optimizers = args.optimizer, other
    for optimizer, cfg in zip(optimizers, FAMILIES.values(), strict=True):
        hooks.register_hook(
            "on_step",
            ours.HookContext.from_callable(
                after=lambda args, o=optimizer: setattr(args, "optimizer", o)
            ),
        )
        hooks += cfg[2](clip_mode="norm", max_norm=1)()
        hooks += type(stepping)(None)
    for step in range(3):
        for optimizer in optimizers[: 1 if step == 1 else 2]:
            param = optimizer.param_groups[0]["params"][0]
            param.grad = torch.tensor([3.0, 4.0])
        with hooks.begin("on_step", args):
            pass
    assert [
        optimizer.param_groups[0]["params"][0].norm().item()
        for optimizer in optimizers
    ] == pytest.approx([3, 2], rel=1e-5)
