"""Gradients of every placement, and every way of clipping them."""

from contextlib import contextmanager
from operator import is_

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from distributed.checks import (
    assert_close,
    assert_same,
    from_all,
    full,
    grads,
    local,
    norm_hook,
    params_of,
    randn,
    run_hook,
    value_hook,
)
from robo_orchard_fasthooks.clip import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)

WAYS = ["hook", "function", "halves"]
IN_EVERY_WAY = pytest.mark.parametrize("way", WAYS)


def clip(way, params, max_norm, norm_type=2.0, **settings):
    """Clips by norm and returns the norm; the hook's has to be plain."""
    if way == "function":
        return clip_grad_norm_(params, max_norm, norm_type, **settings)
    if way == "halves":
        found = [grad for grad in grads(params) if grad is not None]
        total = get_total_norm(found, norm_type, **settings)
        clip_grads_with_norm_(params, max_norm, total)
        return total
    hook = norm_hook(max_norm, norm_type=norm_type, **settings)
    run_hook(hook, params)
    total = hook.total_norm
    assert type(total) is torch.Tensor and total.dim() == 0
    return total


def clip_values(way, params, clip_value):
    if way == "hook":
        run_hook(value_hook(clip_value), params)
    else:
        clip_grad_value_(params, clip_value)


def placed(placement, mesh, shape=(4, 6), seed=0, dtype=torch.float32):
    """A parameter, whose gradient is placed so; None makes a plain one."""
    param = nn.Parameter(torch.zeros(shape, dtype=dtype))
    if placement is None:
        param.grad = randn(shape, dtype, seed)
        return param
    param = nn.Parameter(
        distribute_tensor(param.detach(), mesh, [Replicate()] * mesh.ndim)
    )
    placements = [*placement] if isinstance(placement, tuple) else [placement]
    param.grad = distribute_tensor(
        randn(shape, dtype, seed),
        mesh,
        [Replicate() if each.is_partial() else each for each in placements],
    )
    if any(each.is_partial() for each in placements):
        # Of its own on each rank, unless ranks have to have the same.
        pairs = zip(mesh.get_coordinate(), placements, strict=True)
        at = [place for place, each in pairs if not each.is_replicate()]
        param.grad = DTensor.from_local(
            randn(local(param.grad).shape, dtype, seed + 50 * sum(at)),
            mesh,
            placements,
            shape=param.shape,
            stride=param.stride(),
        )
    return param


def reduced(params):
    """What the gradients of parameters are on all ranks together."""
    return [full(grad).clone() for grad in grads(params) if grad is not None]


def assert_clips(way, params, max_norm, norm_type=2.0):
    """Compares a way of clipping with torch's on the full tensors."""
    oracle = params_of(reduced(params))
    expected = nn.utils.clip_grad_norm_(oracle, max_norm, norm_type)
    objects = grads(params)
    total = full(clip(way, params, max_norm, norm_type))
    assert_close(total, expected)
    assert_same(from_all(total), 2 * [total])
    for found, wanted in zip(reduced(params), grads(oracle), strict=True):
        assert_close(found, wanted)
    assert all(map(is_, objects, grads(params)))


@contextmanager
def unchanged(params):
    """What this rank has of the gradients stays as it is."""
    before = [local(grad).clone() for grad in grads(params)]
    yield
    assert_same([local(grad) for grad in grads(params)], before)
