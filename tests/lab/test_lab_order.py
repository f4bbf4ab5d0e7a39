"""The warning of a wrong order for RoboOrchardLab's own hooks, in place."""

import inspect

import pytest
import torch
from accelerate import Accelerator

import robo_orchard_fasthooks as ours
import upstream
from helpers.lab import Args, PipelineHooks, Stepped, run

pytestmark = [
    pytest.mark.contract("F8"),
    pytest.mark.usefixtures("installed"),
]

CLIPPING = {"clip_mode": "norm", "max_norm": 1}
FAMILIES = {
    "ours": (ours.GradientClippingHookConfig, ours.OptimizerHookConfig),
    "lab": (
        upstream.grad_clip.GradientClippingHookConfig,
        upstream.optimizer.OptimizerHookConfig,
    ),
}


@pytest.fixture(params=FAMILIES)
def clipping(request):
    return FAMILIES[request.param][0](**CLIPPING)()


@pytest.fixture(params=FAMILIES)
def stepping(request):
    return FAMILIES[request.param][1]()()


@pytest.fixture
def args():
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1)
    return Args(
        accelerator=accelerator,
        optimizer=accelerator.prepare_optimizer(optimizer),
        lr_scheduler=Stepped(),
    )


def param_of(optimizer):
    return optimizer.param_groups[0]["params"][0]


def test_the_wrong_order(clipping, stepping, args):
    hooks = PipelineHooks.from_hooks([stepping, clipping])
    param_of(args.optimizer).grad = torch.tensor([3.0, 4.0])
    with pytest.warns(UserWarning, match="Register GradientClip") as caught:
        with hooks.begin("on_step", args):
            line = inspect.currentframe().f_lineno - 1
    assert len(caught) == 1
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)
    assert param_of(args.optimizer).tolist() == [-3.0, -4.0]
    run(hooks, args)  # A warning would be an error.


def test_the_right_order(clipping, stepping, args):
    """With arguments that are used again, and a step without gradients."""
    hooks = PipelineHooks.from_hooks([clipping, stepping])
    for step in range(4):
        if step != 1:
            param_of(args.optimizer).grad = torch.tensor([3.0, 4.0])
        run(hooks, args)
    norm = param_of(args.optimizer).norm().item()
    assert norm == pytest.approx(3, rel=1e-5)
