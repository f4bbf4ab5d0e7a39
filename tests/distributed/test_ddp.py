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
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))


def train(lib, hook, accumulate):
    """Takes three steps; returns the parameters and the hook's totals."""
    accelerator = make_accelerator(gradient_accumulation_steps=accumulate)
    check(accelerator.distributed_type == DistributedType.MULTI_CPU, "not DDP")
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model, optimizer = accelerator.prepare(model, optimizer)
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


def train_alone(clip, *settings):
    """Takes three steps on the whole batch, with torch's clipping."""
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    totals = []
    for _ in range(3):
        optimizer.zero_grad()
        backward(model, batch())
        totals.append(clip(model.parameters(), *settings))
        optimizer.step()
    return list(model.parameters()), totals


def check_trained(found, upstreams, alone):
    check_same("parameter as upstream", found, upstreams)
    check_same("parameter on both ranks", *from_all(found))
    for one, other in zip(found, alone, strict=True):
        check_close("parameter as one process", one, other)


@CASES(accumulate=[1, 2], norm_type=[2, INF])
def norm(accumulate, norm_type):
    upstreams = norm_hook(0.05, theirs, norm_type=norm_type)
    upstreams, _ = train(theirs, upstreams, accumulate)
    hook = norm_hook(0.05, norm_type=norm_type)
    found, totals = train(ours, hook, accumulate)
    alone, expected = train_alone(nn.utils.clip_grad_norm_, 0.05, norm_type)
    check_trained(found, upstreams, alone)
    check_same("total on both ranks", *from_all(totals))
    shown = totals[accumulate - 1 :: accumulate]
    for one, other in zip(shown, expected, strict=True):
        check_close("total as one process", one, other)
    if accumulate == 2:  # No new total while gradients accumulate.
        check(totals[0] is None and totals[2] is totals[1], "clipped too soon")


@CASES(accumulate=[1, 2])
def value(accumulate):
    upstreams, _ = train(theirs, value_hook(0.02, theirs), accumulate)
    found, totals = train(ours, value_hook(0.02), accumulate)
    alone, _ = train_alone(nn.utils.clip_grad_value_, 0.02)
    check_trained(found, upstreams, alone)
    check(set(totals) == {None}, "a norm in mode value")


test_on_ranks = CASES.as_test()
