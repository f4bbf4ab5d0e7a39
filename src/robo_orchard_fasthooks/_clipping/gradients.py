"""The gradients of a list of parameters: how they are stored, and their norm.

Here it is decided which of them are left to torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robo_orchard_fasthooks._clipping import refusals
from robo_orchard_fasthooks._clipping.groups import Group, Groups, TorchGroup
from robo_orchard_fasthooks._clipping.local import LocalGradients

if TYPE_CHECKING:
    from robo_orchard_fasthooks._clipping.mesh import MeshGroups


@dataclass(eq=False)
class Call:
    """The gradients that one call clips."""

    gradients: Gradients
    params: list[Tensor]
    name: refusals.Name = refusals.by_index
    given: list[Tensor] | None = None  # In place of gradients.
    _groups: Groups | None = None

    @property
    def groups(self) -> Groups:
        """The gradients of this rank, grouped on first use.

        Every rank has to compute the norms of the groups of meshes, even if
        it lacks their gradients.
        """
        if self._groups is None:
            grads = self.given
            if grads is None:
                grads = [
                    grad for p in self.params if (grad := p.grad) is not None
                ]
            self._groups = self.gradients.groups(self.params, grads)
        return self._groups

    def aligned(self) -> list[Tensor] | list[Tensor | None]:
        """The gradients, None for a parameter that has none."""
        return self.given or [param.grad for param in self.params]

    def refuse(self, *checks: refusals.Check) -> None:
        """Raises NotImplementedError for the first gradient with a fault."""
        refusals.refuse(self.aligned(), self.name, *checks)


class Gradients:
    """How the gradients of a list of parameters are stored.

    It may be kept from step to step: it refers to no parameter and gradient,
    and what it has planned is checked against the gradients at each call.
    """

    def __init__(self) -> None:
        self._local = LocalGradients()
        self._meshes: MeshGroups | None = None
        self.replays: Any = None  # CUDA graphs, which are freed with it.

    def groups(self, params: list[Tensor], grads: list[Tensor]) -> Groups:
        """Groups gradients, those of each mesh and the plain ones together.

        A parameter without a gradient counts as stored like its gradient,
        which other ranks may have.
        """
        if len(grads) < len(params) and any_dtensor(params):
            return self._on_meshes(params, grads)
        if not grads:
            return []
        plan = self._local.plan(grads)
        if plan is not None:
            return [Group(grads, plan)]
        if any_dtensor(grads):
            return self._on_meshes(params, grads)
        return [TorchGroup(params, grads)]

    def _on_meshes(self, params: list[Tensor], grads: list[Tensor]) -> Groups:
        if self._meshes is None:
            from robo_orchard_fasthooks._clipping.mesh import MeshGroups

            self._meshes = MeshGroups()
        if len(grads) == len(params):
            return self._meshes.groups(params, grads, True)
        aligned = [param.grad for param in params]
        return self._meshes.groups(params, aligned, False)

    def is_collective(self, params: list[Tensor]) -> bool:
        """Whether other ranks may have gradients that this one lacks."""
        return any_dtensor(params)

    def total_norm(self, call: Call, norm_type: float) -> tuple[Tensor, Any]:
        """Computes the norm of the groups as if they were one vector.

        For several groups that is the norm of their norms, as in accelerate
        1.15. Returns the mesh, too, if all gradients have one.
        """
        norms = [(group.norm(norm_type), group.mesh) for group in call.groups]
        found = [(norm, mesh) for norm, mesh in norms if norm is not None]
        if not found:
            return torch.tensor(0.0), None
        (first, mesh), *others = found
        if not others:
            return first, mesh
        stacked = torch.stack([norm.to(first.device) for norm, _ in found])
        return torch.linalg.vector_norm(stacked, norm_type), None

    def multiply_(self, group: Group, coefficient: Tensor) -> None:
        """Multiplies the gradients of a group by a coefficient, in place."""
        if group.plan is not None:
            group.plan.multiply_(group.grads, coefficient)


def any_dtensor(tensors: Iterable[Tensor]) -> bool:
    """Whether any tensor is a DTensor; does not import DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(
        issubclass(kind, module.DTensor) for kind in set(map(type, tensors))
    )
