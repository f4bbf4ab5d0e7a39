"""Gradients of every placement, and every way of clipping them."""

from contextlib import contextmanager
from operator import is_

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from distributed.checks import (
    check_close,
    check_same,
    from_all,
    full,
    grads,
    local,
    norm_hook,
    params_of,
    raised,
    randn,
    run_hook,
    value_hook,
)
from distributed.ranks import check
from robo_orchard_fasthooks.clip import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)

# Before torch 2.12, an in-place operation that reduces a Partial DTensor first
# did not raise, and left the DTensor as it was.
IN_PLACE_ON_PARTS = torch.__version__ >= (2, 12)

WAYS = ["hook", "function", "halves"]
OPERATIONS = ["sum", "avg", "max", "min"]


def clip(way, params, max_norm, norm_type=2.0):
    """Clips by norm and returns the norm; the hook's has to be plain."""
    if way == "function":
        return clip_grad_norm_(params, max_norm, norm_type)
    if way == "halves":
        found = [grad for grad in grads(params) if grad is not None]
        total = get_total_norm(found, norm_type)
        clip_grads_with_norm_(params, max_norm, total)
        return total
    hook = norm_hook(max_norm, norm_type=norm_type)
    run_hook(hook, params)
    total = hook.total_norm
    check(type(total) is torch.Tensor and total.dim() == 0, "total:", total)
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


def check_clips(way, params, max_norm, norm_type=2.0):
    """Compares a way of clipping with torch's on the full tensors."""
    oracle = params_of(reduced(params))
    expected = nn.utils.clip_grad_norm_(oracle, max_norm, norm_type)
    objects = grads(params)
    total = full(clip(way, params, max_norm, norm_type))
    check_close("total", total, expected)
    check_same("total on all ranks", from_all(total), 2 * [total])
    for index, (found, wanted) in enumerate(
        zip(reduced(params), grads(oracle), strict=True)
    ):
        check_close(f"gradient {index}", found, wanted)
    check(all(map(is_, objects, grads(params))), "other objects")


@contextmanager
def unchanged(params):
    """Checks that what this rank has of the gradients stays as it is."""
    before = [local(grad).clone() for grad in grads(params)]
    yield
    check_same("changed", [local(grad) for grad in grads(params)], before)


def refusal(run):
    return raised(run, NotImplementedError)
