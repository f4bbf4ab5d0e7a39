"""Clipping by the accelerator's own methods, where they must not be replaced.

An accelerator of another class may override them, and with some backends
accelerate's own do more than clip.
"""

from __future__ import annotations

from contextlib import suppress
from numbers import Real
from typing import Any

import torch
from accelerate import DistributedType
from accelerate import accelerator as accelerate_module
from torch._subclasses.fake_tensor import FakeTensor

__all__ = [
    "as_norm",
    "clip_through",
    "clips_by_itself",
    "is_accelerate_method",
]

# With other types (DeepSpeed, XLA, Megatron-LM), accelerate's own methods are
# called: they reduce gradients first, or leave clipping to the backend.
_CLIPPED_HERE = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
}


def is_accelerate_method(accelerator: Any, name: str) -> bool:
    """Whether a method is accelerate's, neither overridden nor patched."""
    function = getattr(getattr(accelerator, name, None), "__func__", None)
    return getattr(function, "__globals__", None) is vars(accelerate_module)


def clips_by_itself(accelerator: Any, clip_mode: str) -> bool:
    """Whether clipping is left to the accelerator's own method."""
    return (
        not is_accelerate_method(accelerator, f"clip_grad_{clip_mode}_")
        or accelerator.distributed_type not in _CLIPPED_HERE
    )


def clip_through(
    accelerator: Any,
    optimizer: Any,
    clip_mode: str,
    bound: float,
    norm_type: float,
    error_if_nonfinite: bool,
) -> torch.Tensor | None:
    """Clips by the accelerator's own method.

    Args:
        accelerator (Accelerator): The accelerator.
        optimizer (torch.optim.Optimizer): Holds the parameters.
        clip_mode (str): "norm" or "value".
        bound (float): The largest norm, or the largest absolute value.
        norm_type (float): The p of the p-norm.
        error_if_nonfinite (bool): Whether the norm has to be finite.

    Returns:
        torch.Tensor | None: The norm before clipping, as `as_norm` makes it.

    Raises:
        ValueError: The norm has to be finite, which these methods do not
            check.
    """
    by_norm = clip_mode == "norm"
    distributed_type = getattr(accelerator, "distributed_type", None)
    if error_if_nonfinite and by_norm:
        raise ValueError(
            "GradientClippingHook: error_if_nonfinite is not supported where "
            "the accelerator clips by its own clip_grad_norm_ "
            f"({type(accelerator).__name__}, {distributed_type}); leave it "
            "False"
        )
    # Each parameter once: two groups may hold the same one.
    params = {
        param: None
        for group in optimizer.param_groups
        for param in group["params"]
        if param.requires_grad and param.grad is not None
    }
    if not by_norm:
        if params:
            accelerator.clip_grad_value_(list(params), bound)
        return None
    # DeepSpeed stores gradients outside of `grad`, but returns their norm.
    if not params and distributed_type != DistributedType.DEEPSPEED:
        return None
    return as_norm(accelerator.clip_grad_norm_(list(params), bound, norm_type))


def as_norm(returned: Any) -> torch.Tensor | None:
    """Makes a 0-dim plain tensor of what a function returned as the norm.

    Returns:
        torch.Tensor | None: None if it is neither a number nor a tensor of
            one element, as an accelerator's own method may return anything.
    """
    if isinstance(returned, torch.Tensor):
        if (
            type(returned) in (torch.Tensor, FakeTensor)
            and returned.ndim == 0
            and not returned.requires_grad
        ):
            return returned
        if hasattr(returned, "full_tensor"):  # A DTensor.
            returned = returned.full_tensor()
        if hasattr(returned, "wait"):  # The result of a collective.
            returned = returned.wait()
        if returned.numel() != 1 or returned.layout != torch.strided:
            return None
        norm: torch.Tensor = returned.detach().as_subclass(torch.Tensor)
        return norm.reshape(())
    if isinstance(returned, Real) and not isinstance(returned, bool):
        with suppress(OverflowError):  # An integer can be too large.
            return torch.tensor(float(returned))
    return None
