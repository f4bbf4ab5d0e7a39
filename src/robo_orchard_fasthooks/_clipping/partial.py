"""DTensor gradients of which each rank holds a part that is to be reduced."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import Partial, Replicate
from torch.distributed.tensor.placement_types import Placement

__all__ = ["clamped_sum", "is_partial", "is_sum"]


def is_partial(placement: Placement) -> bool:
    """Whether parts are reduced by an operation; subclasses do more."""
    return type(placement) is Partial


def is_sum(placement: Placement) -> bool:
    """Whether clamping the parts does not clamp what they reduce to.

    Clamping is monotone, so that it commutes with a maximum or minimum.
    """
    return _operation(placement) in {"sum", "avg"}


def _operation(placement: Placement) -> str | None:
    return placement.reduce_op if type(placement) is Partial else None


def clamped_sum(grad: Any, clip_value: float) -> Tensor:
    """This rank's part of a gradient whose sum over ranks is clamped.

    Every rank has to call this.

    Args:
        grad (DTensor): A gradient, with a placement for which `is_sum` holds.
        clip_value (float): The largest absolute value.

    Returns:
        Tensor: Of the shape of the local tensor. Of ranks that are summed, the
            first has the clamped sum and the others have zeros; of others,
            each has what they reduce to.
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
