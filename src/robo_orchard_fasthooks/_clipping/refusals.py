"""Gradients that cannot be clipped, refused before any of them changes.

Each check returns what is wrong with a gradient, as the rest of a sentence
that begins with "the gradient of parameter 0", or None if nothing is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from math import inf

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.utils._foreach_utils import _device_has_foreach_support

from robo_orchard_fasthooks._clipping.gradients import local_tensor

__all__ = [
    "WIDE_DTYPES",
    "Name",
    "are_contiguous",
    "are_ordinary",
    "by_index",
    "inference",
    "is_clampable",
    "not_finite",
    "overlapping",
    "partial_extremum",
    "product",
    "refuse",
    "sparse",
    "unclampable",
    "unclippable",
    "unscalable",
    "without_foreach",
]

WIDE_DTYPES = {torch.bfloat16, torch.float32, torch.float64}
"""Real dtypes that represent 3e38."""

Name = Callable[[int], str]
"""Names a parameter, given by its index, to the user."""

_EXTREMA = {"max", "min"}
"""Reductions that do not commute with multiplying by a negative number."""

_REDUCTIONS = {"sum", "avg", *_EXTREMA}
"""Reductions that commute with multiplying by a number >= 0."""


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


def are_ordinary(params: list[Tensor]) -> bool:
    """Whether none of the checks can find a fault, except in a bound.

    It takes a tenth of the time of the checks.
    """
    grads = [grad for p in params if (grad := p.grad) is not None]
    return (
        set(map(type, grads)) <= {Tensor}
        and {grad.dtype for grad in grads} <= WIDE_DTYPES
        and are_contiguous(grads)
        and not any(map(Tensor.is_inference, grads))
    )


def are_contiguous(grads: list[Tensor]) -> bool:
    try:
        return all(map(Tensor.is_contiguous, grads))
    except RuntimeError:  # Of sparse CSR tensors.
        return False


def sparse(grad: Tensor) -> str | None:
    if grad.layout == torch.strided:
        return None
    return (
        f"is sparse ({grad.layout}) and cannot be clipped; make it dense (for "
        "an Embedding: sparse=False), or leave its parameter out"
    )


def unclampable(clip_value: float) -> Callable[[Tensor], str | None]:
    """Makes a check that finds what torch cannot clamp to this value.

    It would find out only after others have been clamped.
    """

    def fault(grad: Tensor) -> str | None:
        if grad.is_complex():
            return (
                "is complex and cannot be clipped by value; clip by norm "
                "instead"
            )
        if not grad.is_floating_point() or grad.dtype.itemsize == 1:
            return f"is of {grad.dtype} and cannot be clipped by value"
        # On CUDA, torch compares 16-bit numbers in fp32.
        compared = grad.dtype
        if grad.is_cuda and compared.itemsize == 2:
            compared = torch.float32
        largest = torch.finfo(compared).max
        if not largest < abs(clip_value) < inf:
            return None
        return (
            f"is of {grad.dtype}, for which {clip_value} is too large; pass "
            f"at most {largest}, or inf"
        )

    return fault


def is_clampable(grads: list[Tensor], clip_value: float) -> bool:
    """Whether `unclampable` finds nothing in any of these gradients."""
    if {grad.dtype for grad in grads} <= WIDE_DTYPES and abs(
        clip_value
    ) < 3e38:
        return True
    check = unclampable(clip_value)
    samples = {(grad.dtype, grad.is_cuda): grad for grad in grads}
    return not any(map(check, samples.values()))


def inference(grad: Tensor) -> str | None:
    if not local_tensor(grad).is_inference() or (
        torch.is_inference_mode_enabled()
    ):
        return None
    return (
        "was made in torch.inference_mode() and cannot be changed in place "
        "outside of it; assign grad.clone()"
    )


def overlapping(grad: Tensor) -> str | None:
    # The stride of a DTensor need not be that of its local tensor.
    grad = local_tensor(grad)
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
    by_norm: bool, bound: float, norm_type: float
) -> Callable[[Tensor], str | None]:
    """Makes a check that finds what cannot be clipped, whatever its values.

    Without a GradScaler, clipping looks for faulty gradients only after a
    kernel has failed, or if gradients have to be scaled. That is too late once
    they have been unscaled.
    """
    dtype = unclampable(bound)

    def fault(grad: Tensor) -> str | None:
        if grad.layout != torch.strided and (
            not by_norm or not _has_norm(grad, norm_type)
        ):
            return sparse(grad)
        return product(grad) or (None if by_norm else dtype(grad))

    return fault


def unscalable() -> Callable[[Tensor], str | None]:
    """Makes a check that finds what a GradScaler cannot unscale."""
    mixed = _mixed()

    def fault(grad: Tensor) -> str | None:
        if grad.is_complex():
            return "is complex and cannot be unscaled by a GradScaler"
        return overlapping(grad) or inference(grad) or mixed(grad)

    return fault


def _mixed() -> Callable[[Tensor], str | None]:
    """Makes a check that finds plain gradients beside DTensors.

    GradScaler passes all gradients of one device and dtype to one kernel,
    which raises if it gets both kinds, when those of other dtypes have been
    unscaled.
    """
    module = sys.modules.get("torch.distributed.tensor")
    dispatcher = getattr(
        getattr(module, "DTensor", None), "_op_dispatcher", None
    )
    # Set within torch.distributed.tensor.experimental.implicit_replication().
    allowed = getattr(dispatcher, "_allow_implicit_replication", False)
    kinds: dict[tuple[torch.device, torch.dtype], bool] = {}

    def fault(grad: Tensor) -> str | None:
        is_dtensor = hasattr(grad, "device_mesh")
        first = kinds.setdefault((grad.device, grad.dtype), is_dtensor)
        if allowed or is_dtensor == first:
            return None
        this, that = (
            ("a DTensor", "plain") if is_dtensor else ("plain", "a DTensor")
        )
        return (
            f"is {this} and another one is {that}, which a GradScaler cannot "
            "unscale together; distribute both parameters, or train without "
            "loss scaling, as in bf16"
        )

    return fault


def _has_norm(grad: Tensor, norm_type: float) -> bool:
    try:
        vector_norm(grad.detach(), float(norm_type))
    except RuntimeError:  # Sparse COO has one from torch 2.14 on.
        return False
    return True


def product(grad: Tensor) -> str | None:
    for operation in _reductions(grad):
        if operation not in _REDUCTIONS:
            return (
                f"is a DTensor with the placement Partial({operation!r}), "
                "which cannot be clipped in place; assign "
                "grad.redistribute(placements=...) with Replicate() instead"
            )
    return None


def partial_extremum(grad: Tensor) -> str | None:
    for operation in _reductions(grad):
        if operation in _EXTREMA:
            return (
                f"is a DTensor with the placement Partial({operation!r}), "
                "which cannot be multiplied by a negative number in place; "
                "pass a max_norm that is not negative"
            )
    return None


def _reductions(grad: Tensor) -> list[str]:
    """The operations that reduce the Partial placements of a DTensor."""
    return [
        placement.reduce_op
        for placement in getattr(grad, "placements", ())
        if hasattr(placement, "reduce_op")
    ]


def not_finite(
    parts: Iterable[Iterable[Tensor]],
    norm_type: float,
    name: Name,
    collective: bool,
) -> str:
    """Says where a norm that is not finite comes from.

    Args:
        parts (Iterable[Iterable[Tensor]]): What this rank has of each
            gradient.
        norm_type (float): The p of the p-norm.
        name (Name): Names a gradient.
        collective (bool): Whether other ranks may have other parts.

    Returns:
        str: The message of an error.
    """
    start = (
        f"the total norm of order {norm_type} of the gradients is not finite"
    )
    for index, part in enumerate(parts):
        for grad in part:
            if grad.numel() and not vector_norm(grad, norm_type).isfinite():
                return f"{start}, nor is that of {name(index)}"
    where = " on this rank" if collective else ""
    return f"{start}, although that of each gradient{where} is"
