"""DTensor gradients with Partial placements: parts that are to be reduced."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import Partial, Replicate
from torch.distributed.tensor.placement_types import Placement

__all__ = ["clamped_sum", "is_partial", "is_sum"]


def is_partial(placement: Placement) -> bool:
    """Whether the placement is Partial itself; subclasses reduce otherwise."""
    return type(placement) is Partial


def is_sum(placement: Placement) -> bool:
    """Whether clamping the parts differs from clamping what they reduce to.

    Clamping is monotone, so that it commutes with a maximum or minimum, but
    not with a sum or average.
    """
    return _operation(placement) in {"sum", "avg"}


def _operation(placement: Placement) -> str | None:
    return placement.reduce_op if type(placement) is Partial else None


def clamped_sum(grad: Any, clip_value: float) -> Tensor:
    """Computes this rank's part of the gradient that is reduced and clamped.

    Every rank has to call this. Reduced again, the parts are the clamped
    gradient.

    Args:
        grad (DTensor): A gradient, with a placement for which `is_sum` holds.
        clip_value (float): The largest absolute value.

    Returns:
        Tensor: Of the shape of the local tensor. Along a mesh dimension with
            the placement Partial("sum"), the first rank has the clamped
            gradient and the others have zeros; along one with another Partial,
            every rank has the clamped gradient.
    """
    reduced = grad.redistribute(
        placements=[
            Replicate() if is_partial(placement) else placement
            for placement in grad.placements
        ]
    )
    clamped: Tensor = reduced.to_local().clamp(-clip_value, clip_value)
    coordinate = grad.device_mesh.get_coordinate()
    if coordinate is not None and any(
        at and _operation(placement) == "sum"
        for at, placement in zip(coordinate, grad.placements, strict=True)
    ):
        clamped.zero_()
    return clamped
