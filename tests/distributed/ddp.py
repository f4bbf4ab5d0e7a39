"""DDP: the hook, against upstream's and against one process."""

import pytest
import torch
from accelerate.utils import DistributedType
from torch import nn

import robo_orchard_fasthooks as ours
from distributed.checks import (
    INF,
    assert_close,
    assert_same,
    backward,
    batch,
    from_all,
    make_accelerator,
    my_half,
    norm_hook,
    value_hook,
)
from helpers.implementations import UPSTREAM


def small_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.5)


def train(lib, hook, accumulate):
    """Takes three steps; returns the parameters and the hook's totals."""
    accelerator = make_accelerator(gradient_accumulation_steps=accumulate)
    assert accelerator.distributed_type == DistributedType.MULTI_CPU
    model, optimizer = accelerator.prepare(*small_model())
    assert type(model) is nn.parallel.DistributedDataParallel
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


@pytest.mark.parametrize("clipping", [NORM, (*NORM, INF), VALUE])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_trained(clipping, accumulate):
    make, clip, *settings = clipping
    others = {"norm_type": INF} if INF in settings else {}
    upstreams, _ = train(
        UPSTREAM, make(settings[0], UPSTREAM, **others), accumulate
    )
    found, totals = train(ours, make(settings[0], **others), accumulate)
    assert_same(found, upstreams)
    assert_same(*from_all(found))
    assert_same(*from_all(totals))
    model, optimizer = small_model()
    shown = totals[accumulate - 1 :: accumulate]
    for total in shown:
        optimizer.zero_grad()
        backward(model, batch())
        expected = clip(model.parameters(), *settings)
        optimizer.step()
        assert (total is None) == (expected is None)
        if total is not None:
            assert_close(total, expected)
    for one, other in zip(found, model.parameters(), strict=True):
        assert_close(one, other)
    if accumulate == 2:  # No new total while gradients accumulate.
        assert totals[0] is None and totals[2] is totals[1]
