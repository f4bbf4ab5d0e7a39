"""Gradients that are normed together, and who clips them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.utils import clip_grad

from robo_orchard_fasthooks._clipping.local import LocalPlan


@dataclass(eq=False)
class Group:
    """Gradients that are clipped here: plain ones, or those of one mesh."""

    grads: list[Tensor]  # What this rank has of them.
    plan: LocalPlan | None  # None if this rank has none.
    mesh: Any = None  # The device mesh of DTensors.
    is_partial: bool = False  # Whether a DTensor has yet to be reduced.

    def norm(self, norm_type: float) -> Tensor | None:
        """Computes the norm; None if there is no gradient."""
        return self.plan.norm(self.grads, norm_type) if self.plan else None


@dataclass(eq=False)
class TorchGroup:
    """Gradients that are left to torch's functions."""

    params: list[Tensor]
    grads: list[Tensor]
    mesh: Any = None
    is_partial: bool = False

    def norm(self, norm_type: float) -> Tensor | None:
        """Computes the norm; None if there is no gradient."""
        if not self.grads:
            return None
        return full(clip_grad._get_total_norm(self.grads, norm_type))

    def scale_(self, max_norm: float, total_norm: Tensor) -> None:
        clip_grad._clip_grads_with_norm_(
            self.params, max_norm, replicated(total_norm, self.mesh)
        )

    def clamp_(self, clip_value: float) -> None:
        clip_grad.clip_grad_value_(self.params, clip_value)


Groups = Sequence[Group | TorchGroup]


def replicated(total_norm: Tensor, mesh: Any) -> Tensor:
    """A norm that every rank has, as a DTensor of a mesh if there is one."""
    if mesh is None:
        return total_norm
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(
        total_norm, mesh, [Replicate()] * mesh.ndim, run_check=False
    )


def full(tensor: Tensor) -> Tensor:
    """The plain tensor of a DTensor, the same on all ranks of its mesh."""
    whole: Tensor = getattr(tensor, "full_tensor", lambda: tensor)()
    return whole
