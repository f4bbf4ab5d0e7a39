"""Gradients that have yet to be reduced, and gradients that are refused."""

from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
)
from torch.distributed.tensor.parallel import (
    SequenceParallel,
    parallelize_module,
)

from distributed.checks import (
    CLIPS,
    assert_close,
    grads,
    local,
    make_accelerator,
    mesh_of,
    norm_hook,
    params_of,
    run_hook,
    value_hook,
)
from distributed.placed import (
    IN_EVERY_WAY,
    assert_clips,
    clip,
    clip_values,
    placed,
    reduced,
    unchanged,
)
from helpers.fp16 import FP16
from robo_orchard_fasthooks.clip import clip_grads_with_norm_


def several(*placements):
    """A parameter for each placement, on one mesh."""
    mesh = mesh_of(2)
    return [placed(p, mesh, seed=seed) for seed, p in enumerate(placements)]


@IN_EVERY_WAY
def test_sequence_parallel(way):
    """A norm's Partial gradients beside the plain ones of a linear layer."""
    torch.manual_seed(0)
    mesh, rank = mesh_of(2), dist.get_rank()
    norm = parallelize_module(nn.LayerNorm(8), mesh, SequenceParallel())
    head = nn.Linear(8, 2)
    inputs = torch.randn(2, 4, 8).chunk(2, 1)[rank].contiguous()
    hidden = norm(DTensor.from_local(inputs, mesh, [Shard(1)]))
    head(hidden.full_tensor()).square().sum().backward()
    params = [*norm.parameters(), *head.parameters()]
    assert any(p.is_partial() for p in params[0].grad.placements)
    assert_clips(way, params, 1.0)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("sum", "value"), ("avg", "value"), ("product", "norm")),
        *(("product", "value"), ("product", "halves")),
        *(("expanded", "norm"), ("expanded", "value")),
    ],
)
@pytest.mark.parametrize("way", ["hook", "function"])
def test_refused(kind, mode, way):
    """By name; clamped parts, for one, are not parts of the clamped.

    The DTensor of an expanded tensor may claim to be contiguous.
    """
    placement = Shard(0) if kind == "expanded" else Partial(kind)
    params = several(None, Shard(0), placement)
    if kind == "expanded":
        params[2].grad = DTensor.from_local(
            torch.tensor(5.0).expand(2, 6),
            params[2].device_mesh,
            [placement],
            shape=params[2].shape,
            stride=params[2].stride(),
        )

    def run():
        if mode == "norm":
            clip(way, params, CLIPS)
        elif mode == "value":
            clip_values(way, params, 0.1)
        else:
            clip_grads_with_norm_(params, CLIPS, torch.ones(()))

    why = "share memory" if kind == "expanded" else rf"Partial\('{kind}'\)"
    match = f"parameter 2.*{why}"
    with unchanged(params), pytest.raises(NotImplementedError, match=match):
        run()
    params[2].grad = None
    run()


# Under a GradScaler.


def assert_next_step(hook, params, accelerator):
    """Of gradients that are shards, which are 8 times theirs."""
    optimizer = torch.optim.SGD(params)
    shards = several(*[Shard(0)] * len(params))
    for param, fresh in zip(params, shards, strict=True):
        param.grad = fresh.grad
    oracle = params_of([grad / 8.0 for grad in reduced(params)])
    run_hook(hook, optimizer, accelerator)
    if hook.clip_mode == "norm":
        nn.utils.clip_grad_norm_(oracle, hook.max_norm)
    else:
        nn.utils.clip_grad_value_(oracle, hook.clip_value)
    for found, wanted in zip(reduced(params), grads(oracle), strict=True):
        assert_close(found, wanted)


def with_a_scaler():
    accelerator = make_accelerator(FP16)
    accelerator.scaler.scale(torch.zeros(1))  # Its first use makes the scale.
    return accelerator


@pytest.mark.parametrize("hook", [norm_hook, value_hook])
def test_products_under_a_scaler(hook):
    """Which unscales them without an error, and so each of their factors."""
    hook, accelerator = hook(), with_a_scaler()
    params = several(Shard(0), Partial("product"))
    optimizer = torch.optim.SGD(params)
    match = "parameter 1.*product"
    for _ in range(2):
        with (
            unchanged(params),
            pytest.raises(NotImplementedError, match=match),
        ):
            run_hook(hook, optimizer, accelerator)
    assert_next_step(hook, params, accelerator)


@pytest.mark.parametrize("operation", ["sum", "max"])
def test_parts_are_scaled_again(operation):
    """torch unscales parts of a maximum in place, but cannot scale them."""
    hook = norm_hook(1.0, error_if_nonfinite=True)
    accelerator = with_a_scaler()
    params = several(Shard(0), Partial(operation))
    local(params[0].grad)[0, 0] = torch.inf
    optimizer = torch.optim.SGD(params)
    for _ in range(2):
        with unchanged(params), pytest.raises(RuntimeError, match="finite"):
            run_hook(hook, optimizer, accelerator)
    accelerator.scaler.update()
    accelerator.scaler.update(8.0)
    assert_next_step(hook, params, accelerator)


# What this package does not know is left to torch, group by group.


@IN_EVERY_WAY
def test_a_gradient_that_is_a_parameter(way):
    """Of a class that torch's own functions know, after a DTensor."""
    params = several(Shard(0), None)
    params[1].grad = nn.Parameter(params[1].grad)
    assert_clips(way, params, CLIPS)


@IN_EVERY_WAY
@pytest.mark.parametrize("placement", [Shard(0), Partial()])
def test_of_plain_parameters(way, placement):
    """DTensors that plain parameters have for gradients."""
    params = several(None, None, None)
    params[1].grad = placed(placement, mesh_of(2), seed=3).grad
    assert_clips(way, params, CLIPS)


@IN_EVERY_WAY
@pytest.mark.parametrize(
    "chosen", [(Shard(0),), (Shard(0), None, Replicate())]
)
def test_on_another_device(way, chosen):
    """Everything is left to torch; the CPU stands in for such a device."""
    with mock.patch("robo_orchard_fasthooks._clipping.local.DEVICES", set()):
        assert_clips(way, several(*chosen), CLIPS)


class OfItsOwn(Partial):
    """A placement that this package leaves to torch.

    torch scales none of "max" in place, and clamps none of "sum".
    """


@pytest.mark.skipif(
    torch.__version__ < (2, 12),
    reason="reduces a Partial DTensor, and leaves it as it was",
)
@IN_EVERY_WAY
def test_torch_refuses(way):
    """Before anything of the others has changed."""
    other = placed(OfItsOwn("max"), mesh_of(2, names="b"))
    params = [*several(None, Shard(0)), other]
    match = "in-place operations"
    with unchanged(params), pytest.raises(RuntimeError, match=match):
        clip(way, params, CLIPS)


@pytest.mark.parametrize("of", ["plain", "replicated", "sharded over ranks"])
@pytest.mark.parametrize("beside", [(Shard(0),), (Shard(0), None), (None,)])
def test_norms_that_are_given(of, beside):
    params = several(*beside)
    expected = [grad * (0.5 / (2.0 + 1e-6)) for grad in reduced(params)]
    total = torch.tensor(2.0)
    if of == "replicated":
        total = DTensor.from_local(total, mesh_of(2), [Replicate()])
    elif of == "sharded over ranks":  # As torch returns inf-norms.
        mine = torch.tensor(2.0 - dist.get_rank())
        total = DTensor.from_local(mine, mesh_of(2), [Partial("max")])
    clip_grads_with_norm_(params, 0.5, total)
    for found, wanted in zip(reduced(params), expected, strict=True):
        assert_close(found, wanted)
