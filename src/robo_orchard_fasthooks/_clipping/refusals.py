"""Gradients that cannot be clipped, refused before any of them changes.

Each check returns what is wrong with a gradient, in words that go on from "the
gradient of parameter 0", or None.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.utils._foreach_utils import _device_has_foreach_support

from robo_orchard_fasthooks._clipping.gradients import Gradients

__all__ = [
    "Name",
    "by_index",
    "complex_",
    "not_finite",
    "overlapping",
    "refuse",
    "sparse",
    "unclippable",
    "without_foreach",
]

Name = Callable[[int], str]
"""Names a parameter, given by its index, to the user."""


def by_index(index: int) -> str:
    return f"parameter {index}"


def refuse(
    params: list[Tensor], fault: Callable[[Tensor], str | None], name: Name
) -> None:
    """Raises NotImplementedError for the first gradient that has a fault.

    Args:
        params (list[Tensor]): The parameters whose gradients to check.
        fault (Callable[[Tensor], str | None]): One of the checks below.
        name (Name): Names a parameter.
    """
    for index, param in enumerate(params):
        if param.grad is not None and (what := fault(param.grad)):
            raise NotImplementedError(f"the gradient of {name(index)} {what}")


def sparse(grad: Tensor) -> str | None:
    if grad.layout == torch.strided:
        return None
    return (
        f"is sparse ({grad.layout}) and cannot be clipped; make it dense (for "
        "an Embedding: sparse=False), or leave its parameter out"
    )


def complex_(grad: Tensor) -> str | None:
    if not grad.is_complex():
        return None
    return "is complex and cannot be clipped by value; clip by norm instead"


def overlapping(grad: Tensor) -> str | None:
    if grad.layout != torch.strided or all(
        n < 2 or step
        for n, step in zip(grad.shape, grad.stride(), strict=True)
    ):
        return None
    return (
        "has elements that share memory (it is expanded) and cannot be "
        "changed in place; assign grad.clone()"
    )


def without_foreach(grad: Tensor) -> str | None:
    if _device_has_foreach_support(grad.device):
        return None
    return (
        f"is on a device ({grad.device.type}) that has no foreach kernels; "
        "leave foreach=None"
    )


def unclippable(
    by_norm: bool, norm_type: float
) -> Callable[[Tensor], str | None]:
    """Makes a check for whatever can be wrong with a scaled gradient.

    Clipping looks for such gradients only after it has failed, or where it
    has to scale them. That is too late once they have been unscaled.
    """

    def fault(grad: Tensor) -> str | None:
        if not by_norm:
            return sparse(grad) or complex_(grad) or overlapping(grad)
        if grad.layout != torch.strided and not _has_norm(grad, norm_type):
            return sparse(grad)
        if grad.is_complex():
            return "is complex and cannot be unscaled by a GradScaler"
        return overlapping(grad)

    return fault


def _has_norm(grad: Tensor, norm_type: float) -> bool:
    try:
        vector_norm(grad.detach(), float(norm_type))
    except RuntimeError:  # Sparse COO has one from torch 2.14 on.
        return False
    return True


def not_finite(
    gradients: Gradients, params: list[Tensor], norm_type: float, name: Name
) -> str:
    """Returns an error message that names the first gradient at fault."""
    start = (
        f"the total norm of order {norm_type} of the gradients is not finite"
    )
    for index, param in enumerate(params):
        for grad in gradients.local([param]):
            if grad.numel() and not vector_norm(grad, norm_type).isfinite():
                return f"{start}, and that of {name(index)} is not"
    where = " on this rank" if gradients.collective else ""
    return f"{start}, though that of each gradient{where} is"
