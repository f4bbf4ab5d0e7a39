"""The norm of gradients, by this package or by torch, and its errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from robo_orchard_fasthooks._clipping.gradients import (
    GradientNorm,
    Gradients,
    full,
    local_tensor,
)
from robo_orchard_fasthooks._clipping.kinds import dtensor_gradients
from robo_orchard_fasthooks._clipping.local import LocalGradients
from robo_orchard_fasthooks._clipping.refusals import (
    Name,
    by_index,
    not_finite,
    product,
    refuse,
    sparse,
)
from robo_orchard_fasthooks._clipping.torch_functions import get_total_norm

if TYPE_CHECKING:
    from robo_orchard_fasthooks._clipping.dtensor import DTensorGradients

__all__ = ["norm_given", "norm_of_gradients", "norm_of_tensors"]


def norm_of_gradients(
    gradients: Gradients,
    params: list[Tensor],
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    name: Name = by_index,
) -> GradientNorm:
    """Computes the norm for `clip_by_norm`; no gradient changes.

    Args:
        gradients (Gradients): How the gradients are stored.
        params (list[Tensor]): The parameters.
        norm_type (float): The p of the p-norm.
        error_if_nonfinite (bool): Whether the norm has to be finite.
        foreach (bool | None): Whether to use foreach kernels.
        name (Name): Names a parameter in errors.

    Returns:
        GradientNorm: The norm, and how to scale the gradients.

    Raises:
        NotImplementedError: A gradient cannot be clipped; it is named.
        RuntimeError: The norm is not finite, and has to be.
    """
    norm_type = float(norm_type)
    try:
        norm = gradients.total_norm(params, norm_type, foreach)
        if norm is None and (dtensors := dtensor_gradients(params)):
            gradients = dtensors
            norm = dtensors.total_norm(params, norm_type, foreach)
        if norm is None:
            grads = gradients.local(params)
            total_norm = get_total_norm(grads, norm_type, False, foreach)
            norm = GradientNorm(total_norm, [], left_to_torch=[(None, params)])
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
    """Finds out how to scale gradients whose norm (plain, 0-dim) is known.

    Raises:
        NotImplementedError: A gradient cannot be clipped; it is named.
    """
    try:
        norm = gradients.with_norm(params, total_norm, foreach)
        if norm is None and (dtensors := dtensor_gradients(params)):
            norm = dtensors.with_norm(params, total_norm, foreach)
        if norm is None:
            norm = GradientNorm(total_norm, [], left_to_torch=[(None, params)])
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
    """Computes the norm of tensors for `get_total_norm`.

    Returns:
        Tensor: The norm as torch returns it, plain or a DTensor.

    Raises:
        NotImplementedError: A tensor has no norm; it is named.
        RuntimeError: The norm is not finite, and has to be.
    """
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
        parts = ([local_tensor(tensor)] for tensor in tensors)
        raise RuntimeError(
            not_finite(
                parts,
                norm_type,
                lambda index: f"tensor {index}",
                gradients.collective,
            )
        )
    return total_norm
