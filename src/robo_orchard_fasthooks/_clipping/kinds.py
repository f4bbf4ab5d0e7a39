"""The choice of the class for gradients, without importing DTensor first."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

from torch import Tensor

from robo_orchard_fasthooks._clipping.local import LocalGradients

if TYPE_CHECKING:
    from robo_orchard_fasthooks._clipping.dtensor import DTensorGradients

__all__ = ["dtensor_gradients", "kind_of"]


def kind_of(
    tensors: list[Tensor],
) -> type[LocalGradients] | type[DTensorGradients]:
    """Selects the class for gradients: plain ones, or some of them DTensors.

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


def dtensor_gradients(params: list[Tensor]) -> DTensorGradients | None:
    """Makes a DTensorGradients if any gradient is a DTensor.

    The class is selected by parameters, and plain ones may have DTensors for
    gradients.

    Args:
        params (list[Tensor]): The parameters.

    Returns:
        DTensorGradients | None: None if no gradient is a DTensor.
    """
    kind = kind_of([grad for p in params if (grad := p.grad) is not None])
    return None if kind is LocalGradients else cast("DTensorGradients", kind())
