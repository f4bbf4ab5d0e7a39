"""Norm, coefficient and scale; or clamp: the two ways of clipping."""

from __future__ import annotations

import sys
from contextlib import suppress

import torch
from torch import Tensor

from robo_orchard_fasthooks._clipping.gradients import Gradients
from robo_orchard_fasthooks._clipping.local import DEVICES, LocalGradients
from robo_orchard_fasthooks._clipping.refusals import (
    Name,
    by_index,
    complex_,
    not_finite,
    overlapping,
    refuse,
    sparse,
)

__all__ = ["clip_by_norm", "clip_by_value", "gradients_of"]


def gradients_of(params: list[Tensor]) -> Gradients:
    """How the gradients of parameters are stored: plainly, or sharded."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None or not any(
        issubclass(kind, module.DTensor) for kind in set(map(type, params))
    ):
        return LocalGradients()
    from robo_orchard_fasthooks._clipping.dtensor import DTensorGradients

    return DTensorGradients()


@torch.no_grad()
def clip_by_norm(
    gradients: Gradients,
    params: list[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    name: Name = by_index,
) -> Tensor:
    """Clips as `clip_grad_norm_` does.

    Args:
        gradients (Gradients): How the gradients are stored, which may be kept
            from step to step.
        params (list[Tensor]): The parameters; this and the next four as in
            `clip_grad_norm_`.
        max_norm (float): The largest norm.
        norm_type (float): The p of the p-norm.
        error_if_nonfinite (bool): Whether a norm has to be finite.
        foreach (bool | None): Whether to use foreach kernels.
        name (Name): Names a parameter in errors.

    Returns:
        Tensor: The norm before clipping, over all ranks; 0-dim and plain.
    """
    max_norm, norm_type = float(max_norm), float(norm_type)
    norm = None
    if foreach is not False or type(gradients) is not LocalGradients:
        norm = gradients.total_norm(params, norm_type)
    if norm is None or norm.total_norm is None:
        try:
            return torch.nn.utils.clip_grad_norm_(
                params, max_norm, norm_type, error_if_nonfinite, foreach
            )
        except NotImplementedError:  # Of the norm: nothing has changed yet.
            refuse(params, sparse, name)
            raise
    total_norm = norm.total_norm
    if error_if_nonfinite and not total_norm.isfinite():
        raise RuntimeError(not_finite(gradients, params, norm_type, name))
    # The formula of torch.nn.utils.clip_grads_with_norm_.
    coefficient = torch.clamp(max_norm / (total_norm + 1e-6), max=1.0)
    # Multiplying by 1 reads and writes every gradient for nothing, but for
    # signs of complex zeros; on CUDA, to look at it is to wait for the device.
    nothing = (
        coefficient.is_cpu and coefficient.item() >= 1 and not norm.has_complex
    )
    if norm.local and not nothing:
        if not norm.contiguous and not _contiguous(norm.local):
            refuse(params, overlapping, name)
        gradients.scale_(norm, coefficient)
    return total_norm


@torch.no_grad()
def clip_by_value(
    gradients: Gradients,
    params: list[Tensor],
    clip_value: float,
    foreach: bool | None = None,
    name: Name = by_index,
) -> None:
    """Clips as `clip_grad_value_` does; its arguments are clip_by_norm's."""
    clip_value = float(clip_value)
    grads = gradients.local(params)
    if any(dtype.is_complex for dtype in {grad.dtype for grad in grads}):
        refuse(params, complex_, name)
    if not _contiguous(grads):
        refuse(params, sparse, name)
        refuse(params, overlapping, name)
    if (
        foreach is False
        or (foreach and not DEVICES >= {grad.device.type for grad in grads})
        or not gradients.elementwise(params, grads)
    ):
        torch.nn.utils.clip_grad_value_(params, clip_value, foreach)
    else:
        gradients.clamp_(grads, clip_value)


def _contiguous(grads: list[Tensor]) -> bool:
    # Sparse ones are not contiguous, or (CSR) do not answer.
    with suppress(RuntimeError):
        return all(map(Tensor.is_contiguous, grads))
    return False
