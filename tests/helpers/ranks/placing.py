"""What the cases of gradients of every placement share."""

from contextlib import contextmanager
from operator import is_

import torch
from torch import nn
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    distribute_tensor,
)

from helpers.ranks.cases import check
from helpers.ranks.checks import (
    check_close,
    check_same,
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
        total = get_total_norm(
            [param.grad for param in params if param.grad is not None],
            norm_type,
        )
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
        at = [
            coordinate
            for coordinate, each in zip(
                mesh.get_coordinate(), placements, strict=True
            )
            if not each.is_replicate()
        ]
        mine = randn(local(param.grad).shape, dtype, seed + 50 * sum(at))
        param.grad = DTensor.from_local(
            mine,
            mesh,
            placements,
            shape=param.shape,
            stride=param.stride(),
        )
    return param


class OfItsOwn(Partial):
    """A placement that this package leaves to torch.

    torch scales none of "max" in place, and clamps none of "sum".
    """


def scale_parts_(params, total, max_norm):
    """Scales the Partial gradients, where torch has left them as they are."""
    if IN_PLACE_ON_PARTS:
        return
    coefficient = (max_norm / (full(total) + 1e-6)).clamp(max=1.0)
    for grad in grads(params):
        if any(map(Placement.is_partial, getattr(grad, "placements", ()))):
            local(grad).mul_(coefficient)


def twins(params):
    """Parameters with gradients of their own; `clone` would reduce parts."""
    made = [nn.Parameter(param.detach()) for param in params]
    for twin, param in zip(made, params, strict=True):
        grad = local(param.grad).clone()
        if isinstance(param.grad, DTensor):
            grad = DTensor.from_local(
                grad, param.grad.device_mesh, param.grad.placements
            )
        twin.grad = grad
    return made


def reduced(params):
    """What the gradients of parameters are on all ranks together."""
    return [full(grad).clone() for grad in grads(params) if grad is not None]


def check_clips(clip, params, max_norm, norm_type=2.0):
    """Compares a way of clipping with torch's on the full tensors."""
    oracle = params_of(reduced(params))
    expected = nn.utils.clip_grad_norm_(oracle, max_norm, norm_type)
    objects = grads(params)
    total = full(clip(params, max_norm, norm_type))
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
    try:
        run()
    except NotImplementedError as error:
        return str(error)
    return ""
