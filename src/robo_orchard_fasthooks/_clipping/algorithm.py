"""Norm, coefficient and scale; or clamp: the two ways of clipping."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robo_orchard_fasthooks._clipping.gradients import (
    GradientNorm,
    Gradients,
    are_plain,
    full,
    replicated,
)
from robo_orchard_fasthooks._clipping.local import DEVICES, LocalGradients
from robo_orchard_fasthooks._clipping.refusals import (
    Name,
    by_index,
    complex_,
    not_finite,
    overlapping,
    product,
    refuse,
    sparse,
)
from robo_orchard_fasthooks._clipping.torch_functions import (
    clip_grads_with_norm_,
    get_total_norm,
)

if TYPE_CHECKING:
    from robo_orchard_fasthooks._clipping.dtensor import DTensorGradients

__all__ = [
    "clip_by_norm",
    "clip_by_value",
    "gradients_of",
    "kind_of",
    "norm_given",
    "norm_of_gradients",
    "norm_of_tensors",
    "scale_to_norm_",
]


def kind_of(
    tensors: list[Tensor],
) -> type[LocalGradients] | type[DTensorGradients]:
    """How gradients are stored: plainly, or some of them as DTensors.

    Args:
        tensors (list[Tensor]): The gradients, or their parameters.

    Returns:
        type[LocalGradients] | type[DTensorGradients]: The class to use.
    """
    module = sys.modules.get("torch.distributed.tensor")
    if module is None or not any(
        issubclass(kind, module.DTensor) for kind in set(map(type, tensors))
    ):
        return LocalGradients
    from robo_orchard_fasthooks._clipping.dtensor import DTensorGradients

    return DTensorGradients


def gradients_of(params: list[Tensor]) -> Gradients:
    """What norms and scales the gradients of these parameters."""
    return kind_of(params)()


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
    norm = norm_of_gradients(
        gradients, params, norm_type, error_if_nonfinite, foreach, name
    )
    scale_to_norm_(gradients, params, norm, max_norm, foreach, name)
    return norm.total_norm


def norm_of_gradients(
    gradients: Gradients,
    params: list[Tensor],
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    name: Name = by_index,
) -> GradientNorm:
    """The first half of `clip_by_norm`, which changes nothing."""
    norm_type = float(norm_type)
    try:
        norm = gradients.total_norm(params, norm_type, foreach)
        if norm is None:
            grads = gradients.local(params)
            kind = kind_of(grads)
            if kind is not LocalGradients:  # Those of plain parameters.
                return norm_of_gradients(
                    kind(),
                    params,
                    norm_type,
                    error_if_nonfinite,
                    foreach,
                    name,
                )
            total_norm = get_total_norm(grads, norm_type, False, foreach)
            norm = GradientNorm(total_norm, [], left=[(None, params)])
    except NotImplementedError:
        refuse(params, sparse, name)
        refuse(params, product, name)
        raise
    if error_if_nonfinite and not norm.total_norm.isfinite():
        parts = (gradients.local([param]) for param in params)
        raise RuntimeError(
            not_finite(parts, norm_type, name, gradients.collective)
        )
    return norm


def norm_given(
    gradients: LocalGradients | DTensorGradients,
    params: list[Tensor],
    total_norm: Tensor,
    foreach: bool | None = None,
) -> GradientNorm:
    """The same for gradients of which the norm, 0-dim and plain, is known."""
    try:
        norm = gradients.with_norm(params, total_norm, foreach)
        if norm is None:
            kind = kind_of(gradients.local(params))
            if kind is not LocalGradients:
                return norm_given(kind(), params, total_norm, foreach)
            norm = GradientNorm(total_norm, [], left=[(None, params)])
    except NotImplementedError:
        refuse(params, product, by_index)
        raise
    return norm


def norm_of_tensors(
    gradients: LocalGradients | DTensorGradients,
    tensors: list[Tensor],
    norm_type: float,
    error_if_nonfinite: bool,
    foreach: bool | None,
) -> Tensor:
    """Computes what `get_total_norm` returns."""
    norm_type = float(norm_type)
    try:
        norm = gradients.norm_of(tensors, norm_type, foreach)
        total_norm = (
            norm.as_torch_returns()
            if norm
            else get_total_norm(tensors, norm_type, False, foreach)
        )
    except NotImplementedError:
        for index, tensor in enumerate(tensors):
            if what := sparse(tensor) or product(tensor):
                raise NotImplementedError(f"tensor {index} {what}") from None
        raise
    if error_if_nonfinite and not full(total_norm).isfinite():
        parts = ([getattr(t, "to_local", lambda t=t: t)()] for t in tensors)
        raise RuntimeError(
            not_finite(
                parts,
                norm_type,
                lambda index: f"tensor {index}",
                gradients.collective,
            )
        )
    return total_norm


def scale_to_norm_(
    gradients: Gradients,
    params: list[Tensor],
    norm: GradientNorm,
    max_norm: float,
    foreach: bool | None = None,
    name: Name = by_index,
) -> None:
    """The second half of `clip_by_norm`, which scales the gradients.

    Args:
        gradients (Gradients): How the gradients are stored.
        params (list[Tensor]): The parameters.
        norm (GradientNorm): Their norm, and how to scale the gradients.
        max_norm (float): The largest norm.
        foreach (bool | None): Whether to use foreach kernels.
        name (Name): Names a parameter in errors.
    """
    if not norm.local and not norm.left:
        return
    max_norm = float(max_norm)
    # The formula of torch.nn.utils.clip_grads_with_norm_.
    coefficient = torch.clamp(max_norm / (norm.total_norm + 1e-6), max=1.0)
    # Multiplying by 1 reads and writes every gradient for nothing, but for
    # signs of complex zeros; on CUDA, to look at it is to wait for the device.
    scaled = bool(norm.local) and not (
        coefficient.is_cpu and coefficient.item() >= 1 and not norm.has_complex
    )
    if norm.left or (
        scaled and not norm.contiguous and not _contiguous(norm.local)
    ):
        refuse(params, overlapping, name)
    # torch may refuse what is left to it: first, before anything has changed.
    for mesh, left in norm.left:
        total_norm = replicated(norm.total_norm, mesh)
        clip_grads_with_norm_(left, max_norm, total_norm, foreach)
    if scaled:
        gradients.scale_(norm, coefficient)


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
    if type(gradients) is LocalGradients and (
        foreach is False
        or (foreach and not DEVICES >= {grad.device.type for grad in grads})
        or (grads and not are_plain(grads))
    ):
        kind = kind_of(grads)
        if kind is LocalGradients:
            torch.nn.utils.clip_grad_value_(params, clip_value, foreach)
            return
        gradients = kind()  # Those of plain parameters.
    try:
        gradients.clamp_(params, grads, clip_value, foreach)
    except NotImplementedError:
        refuse(params, product, name)
        raise


def _contiguous(grads: list[Tensor]) -> bool:
    # Sparse ones are not contiguous, or (CSR) do not answer.
    with suppress(RuntimeError):
        return all(map(Tensor.is_contiguous, grads))
    return False
