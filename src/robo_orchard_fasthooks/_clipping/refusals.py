"""Gradients that cannot be clipped, refused before any of them changes.

Each check returns what is wrong with a gradient, as the rest of a sentence
that begins with "the gradient of parameter 0", or None if nothing is.
"""

import sys
from collections.abc import Callable, Iterable
from math import inf

import torch
from torch import Tensor
from torch.linalg import vector_norm

Check = Callable[[Tensor], str | None]
Name = Callable[[int], str]
"""Names a gradient, given by its index, to the user."""


def by_index(index: int) -> str:
    return f"the gradient of parameter {index}"


def refuse(grads: Iterable[Tensor | None], name: Name, *checks: Check) -> None:
    """Raises NotImplementedError for the first gradient that has a fault."""
    for index, grad in enumerate(grads):
        if grad is not None:
            for check in checks:
                if what := check(grad):
                    raise NotImplementedError(f"{name(index)} {what}")


def local_tensor(tensor: Tensor) -> Tensor:
    """What this rank has of a DTensor; any other tensor itself."""
    local: Tensor = getattr(tensor, "_local_tensor", tensor)
    return local


def sparse(grad: Tensor) -> str | None:
    if grad.layout == torch.strided:
        return None
    return (
        f"is sparse ({grad.layout}) and cannot be clipped; make it dense (for "
        "an Embedding: sparse=False), or leave its parameter out"
    )


def sparse_without_norm(norm_type: float) -> Check:
    def check(grad: Tensor) -> str | None:
        if grad.layout == torch.strided:
            return None
        try:
            vector_norm(grad.detach(), norm_type)
        except RuntimeError:  # Sparse COO has one from torch 2.14 on.
            return sparse(grad)
        return None

    return check


def cannot_clamp(
    dtype: torch.dtype, is_cuda: bool, clip_value: float
) -> str | None:
    """Says why torch cannot clamp gradients of a dtype to this value.

    It would find out only after others have been clamped.
    """
    if dtype.is_complex:
        return (
            "is complex and cannot be clipped by value; clip by norm instead"
        )
    if not dtype.is_floating_point:
        return None  # torch's own error is clear.
    # On CUDA, torch compares 16-bit numbers in fp32.
    compared = torch.float32 if is_cuda and dtype.itemsize == 2 else dtype
    largest = torch.finfo(compared).max
    if not largest < abs(clip_value) < inf:
        return None
    return (
        f"is of {dtype}, for which {clip_value} is too large; pass at most "
        f"{largest}, or inf"
    )


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


def unreduced(*operations: str) -> Check:
    """Makes a check that finds Partial placements but for these operations.

    Scaling by a number that is not negative commutes with sum, avg, max and
    min; clamping, which is monotone, with max and min alone.
    """

    def check(grad: Tensor) -> str | None:
        for placement in getattr(grad, "placements", ()):
            operation = getattr(placement, "reduce_op", None)
            if operation is not None and operation not in operations:
                return (
                    "is a DTensor with the placement "
                    f"Partial({operation!r}), which cannot be clipped in "
                    "place; assign grad.redistribute(placements=...) with "
                    "Replicate() instead"
                )
        return None

    return check


unscalable = unreduced("sum", "avg", "max", "min")


def by_value(clip_value: float) -> tuple[Check, ...]:
    """All checks for clipping by value."""
    return (
        sparse,
        lambda grad: cannot_clamp(grad.dtype, grad.is_cuda, clip_value),
        unreduced("max", "min"),
        overlapping,
        inference,
    )


def by_grad_scaler() -> tuple[Check, ...]:
    """All checks for what a GradScaler cannot unscale."""
    return overlapping, inference, _complex, _mixed()


def _complex(grad: Tensor) -> str | None:
    if not grad.is_complex():
        return None
    return "is complex and cannot be unscaled by a GradScaler"


def _mixed() -> Check:
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

    def check(grad: Tensor) -> str | None:
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

    return check


def not_finite(
    grads: Iterable[Tensor | None],
    norm_type: float,
    name: Name,
    on_ranks: bool,
) -> str:
    """Says where a norm that is not finite comes from."""
    start = (
        f"the total norm of order {norm_type} of the gradients is not finite"
    )
    for index, grad in enumerate(grads):
        if grad is None or not (local := local_tensor(grad)).numel():
            continue
        if not vector_norm(local, norm_type).isfinite():
            return f"{start}, nor is that of {name(index)}"
    where = " on this rank" if on_ranks else ""
    return f"{start}, although that of each gradient{where} is"
