"""Gradients that cannot be clipped, refused before anything changes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.linalg import vector_norm

from robo_orchard_fasthooks._clipping.gradients import Gradients

__all__ = [
    "Name",
    "by_index",
    "complex_",
    "not_finite",
    "overlapping",
    "refuse",
    "sparse",
]

Name = Callable[[int], str]
"""Names a parameter, given by its index, to the user."""


def by_index(index: int) -> str:
    return f"parameter {index}"


def refuse(
    params: list[Tensor], fault: Callable[[Tensor], str | None], name: Name
) -> None:
    """Raises for the first gradient with a fault; nothing has changed yet."""
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


def not_finite(
    gradients: Gradients, params: list[Tensor], norm_type: float, name: Name
) -> str:
    """Says where a norm that is not finite comes from."""
    start = (
        f"the total norm of order {norm_type} of the gradients is not finite"
    )
    for index, param in enumerate(params):
        for grad in gradients.local([param]):
            if grad.numel() and not vector_norm(grad, norm_type).isfinite():
                return f"{start}, and that of {name(index)} is not"
    where = " on this rank" if gradients.collective else ""
    return f"{start}, though that of each gradient{where} is"
