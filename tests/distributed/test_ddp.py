"""DDP: the hook, against upstream's and against one process."""

from types import SimpleNamespace

import torch
from accelerate.utils import DistributedType
from torch import nn

import robo_orchard_fasthooks as ours
import upstream
from distributed.checks import (
    INF,
    backward,
    batch,
    check_close,
    check_same,
    from_all,
    make_accelerator,
    my_half,
    norm_hook,
    value_hook,
)
from distributed.ranks import Cases, check

CASES = Cases(__file__)
theirs = SimpleNamespace(
    PipelineHookArgs=upstream.mixin.PipelineHookArgs,
    GradientClippingHookConfig=upstream.grad_clip.GradientClippingHookConfig,
)


def small_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.5)


def train(lib, hook, accumulate):
    """Takes three steps; returns the parameters and the hook's totals."""
    accelerator = make_accelerator(gradient_accumulation_steps=accumulate)
    check(accelerator.distributed_type == DistributedType.MULTI_CPU, "not DDP")
    model, optimizer = accelerator.prepare(*small_model())
    check(type(model) is nn.parallel.DistributedDataParallel, "no DDP model")
    parts = [each.chunk(accumulate) for each in my_half()]
    totals = []
    for inputs, targets in 3 * [*zip(*parts, strict=True)]:
        args = lib.PipelineHookArgs(accelerator, optimizer=optimizer)
        with accelerator.accumulate(model):
            with hook.begin("on_step", args):
                loss = nn.functional.mse_loss(model(inputs), targets)
                accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        totals.append(getattr(hook, "total_norm", None))
    return list(model.parameters()), totals


NORM = norm_hook, nn.utils.clip_grad_norm_, 0.05
VALUE = value_hook, nn.utils.clip_grad_value_, 0.02


@CASES(clipping=[NORM, (*NORM, INF), VALUE], accumulate=[1, 2])
def trained(clipping, accumulate):
    make, clip, *settings = clipping
    others = {"norm_type": INF} if INF in settings else {}
    upstreams, _ = train(
        theirs, make(settings[0], theirs, **others), accumulate
    )
    found, totals = train(ours, make(settings[0], **others), accumulate)
    check_same("parameter as upstream", found, upstreams)
    check_same("parameter on both ranks", *from_all(found))
    check_same("total on both ranks", *from_all(totals))
    model, optimizer = small_model()
    shown = totals[accumulate - 1 :: accumulate]
    for total in shown:
        optimizer.zero_grad()
        backward(model, batch())
        expected = clip(model.parameters(), *settings)
        optimizer.step()
        check((total is None) == (expected is None), "total:", total)
        if total is not None:
            check_close("total as one process", total, expected)
    for one, other in zip(found, model.parameters(), strict=True):
        check_close("parameter as one process", one, other)
    if accumulate == 2:  # No new total while gradients accumulate.
        check(totals[0] is None and totals[2] is totals[1], "clipped too soon")


test_on_ranks = CASES.as_test()
