"""The choice of the class for gradients, without importing DTensor first."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from torch import Tensor

from robo_orchard_fasthooks._clipping.local import LocalGradients

if TYPE_CHECKING:
    from robo_orchard_fasthooks._clipping.dtensor import DTensorGradients

__all__ = ["kind_of"]


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
