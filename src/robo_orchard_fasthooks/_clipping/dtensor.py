"""Gradients some of which are DTensors, of any meshes and placements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from robo_orchard_fasthooks._clipping.gradients import (
    GradientNorm,
    Gradients,
    LeftToTorch,
    full,
)
from robo_orchard_fasthooks._clipping.local import LocalGradients
from robo_orchard_fasthooks._clipping.mesh import LOCAL_TYPES
from robo_orchard_fasthooks._clipping.partial import clamped_sum, is_sum
from robo_orchard_fasthooks._clipping.placed import (
    MeshGroups,
    shards_of,
)
from robo_orchard_fasthooks._clipping.torch_functions import get_total_norm

__all__ = ["DTensorGradients"]

_Optional = Sequence["Tensor | None"]


class DTensorGradients(Gradients):
    """Gradients some of which are DTensors, with their norm over all ranks.

    The norm of the gradients of each mesh, and that of the plain ones, is
    computed first, as in accelerate 1.15.

    Every rank has to have the same parameters, and takes part in every
    reduction, whichever gradients it has. Only a Partial gradient, and a
    DTensor that is the gradient of a plain parameter, has to exist on every
    rank.
    """

    collective = True

    def __init__(self) -> None:
        super().__init__()
        self._local = LocalGradients()
        self.placed = MeshGroups()

    @override
    def local(self, params: list[Tensor]) -> list[Tensor]:
        shards = shards_of(super().local(params))
        return [shard for shard in shards if shard is not None]

    @override
    def total_norm(
        self,
        params: list[Tensor],
        norm_type: float,
        foreach: bool | None = None,
    ) -> GradientNorm:
        grads = [param.grad for param in params]
        shards = self.placed.shards(params, grads)
        norms = self.norms(grads, shards, norm_type, foreach)
        total_norm, mesh = _combined(norms, norm_type)
        return self.scaling(params, shards, total_norm, foreach, mesh)

    def norm_of(
        self,
        tensors: list[Tensor],
        norm_type: float,
        foreach: bool | None = None,
    ) -> GradientNorm:
        """Computes the norm of tensors, as `total_norm` does of gradients."""
        shards = self.placed.shards(tensors, tensors)
        norms = self.norms(tensors, shards, norm_type, foreach)
        total_norm, mesh = _combined(norms, norm_type)
        return GradientNorm(total_norm, [], mesh=mesh)

    def with_norm(
        self,
        params: list[Tensor],
        total_norm: Tensor,
        foreach: bool | None = None,
    ) -> GradientNorm:
        """Finds out how to scale gradients of which the norm is known.

        Args:
            params (list[Tensor]): The parameters.
            total_norm (Tensor): The norm: plain, 0-dim.
            foreach (bool | None): As in `total_norm`.

        Returns:
            GradientNorm: The norm, and how to scale the gradients.

        Raises:
            NotImplementedError: A gradient cannot be clipped.
        """
        shards = self.placed.shards(params, [param.grad for param in params])
        return self.scaling(params, shards, total_norm, foreach)

    def norms(
        self,
        grads: _Optional,
        shards: _Optional,
        norm_type: float,
        foreach: bool | None = None,
    ) -> list[tuple[Any, Tensor]]:
        """Computes the norm of each group of gradients.

        Args:
            grads (Sequence[Tensor | None]): The gradients.
            shards (Sequence[Tensor | None]): Their local tensors, from
                `placed.shards`.
            norm_type (float): The p of the p-norm.
            foreach (bool | None): As in `total_norm`.

        Returns:
            list[tuple[DeviceMesh | None, Tensor]]: The mesh of each group of
                which some rank has a gradient, and its norm over all ranks:
                plain, 0-dim.
        """
        placed = self.placed
        if placed.partial:
            # Always reduced first: in torch 2.13 the inf-norm of parts of a
            # maximum is that of the largest part.
            shards = [*shards]
            for index in placed.partial:
                if (grad := grads[index]) is not None:
                    shards[index] = full(grad)
        norms: list[tuple[Any, Tensor]] = []
        for group in placed.groups:
            part = [shards[index] for index in group.indices]
            norm = None
            if group.supports(part):
                norm = group.norm(part, norm_type)
            elif left := _present(grads, group.indices):
                norm = full(get_total_norm(left, norm_type, False, foreach))
            if norm is not None:
                norms.append((group.mesh, norm))
        if plain := _present(grads, placed.plain):
            found = self._local.norm_of(plain, norm_type, foreach)
            norm = (
                found.total_norm
                if found
                else get_total_norm(plain, norm_type, False, foreach)
            )
            norms.append((None, norm))
        return norms

    def scaling(
        self,
        params: list[Tensor],
        shards: _Optional,
        total_norm: Tensor,
        foreach: bool | None = None,
        mesh: Any = None,
    ) -> GradientNorm:
        """Finds out for `with_norm` how to scale gradients.

        Args:
            params (list[Tensor]): The parameters.
            shards (Sequence[Tensor | None]): The local tensors of their
                gradients, from `placed.shards`.
            total_norm (Tensor): The norm: plain, 0-dim.
            foreach (bool | None): As in `total_norm`.
            mesh (DeviceMesh | None): That of all gradients, if it is one.

        Returns:
            GradientNorm: The norm, and how to scale the gradients.
        """
        placed = self.placed
        has_complex = placed.has_complex
        local: list[Tensor] = []
        left: list[LeftToTorch] = []
        for group in placed.groups:
            part = [shards[index] for index in group.indices]
            if group.supports(part):
                local += [shard for shard in part if shard is not None]
            else:
                left.append((group.mesh, [params[i] for i in group.indices]))
        plain = [params[i] for i in placed.plain if shards[i] is not None]
        if plain:
            norm = self._local.with_norm(plain, total_norm, foreach)
            if norm:
                has_complex |= norm.has_complex
                local += norm.local
            else:
                left.append((None, plain))
        return GradientNorm(
            total_norm,
            local,
            has_complex=has_complex,
            left_to_torch=left,
            mesh=mesh,
        )

    @override
    def clamp_(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        clip_value: float,
        foreach: bool | None = None,
    ) -> None:
        all_grads: list[Any] = [param.grad for param in params]
        placed = self.placed
        shards: list[Any] = placed.shards(params, all_grads)
        # First what communicates or may be refused, before any change.
        sums = {
            index: clamped_sum(grad, clip_value)
            for index in placed.partial
            if (grad := all_grads[index]) is not None
            and any(map(is_sum, grad.placements))
        }
        left = [
            index
            for group in placed.groups
            if not group.supports([shards[i] for i in group.indices])
            for index in group.indices
        ]
        left += [i for i in placed.plain if type(shards[i]) not in LOCAL_TYPES]
        # First subclasses of Partial, which torch may refuse.
        left.sort(key=lambda index: not _has_partial(all_grads[index]))
        for index in left:
            torch.nn.utils.clip_grad_value_(
                [params[index]], clip_value, foreach
            )
            shards[index] = None
        for index, clamped in sums.items():
            shards[index].copy_(clamped)
            shards[index] = None
        super().clamp_(
            params, [s for s in shards if s is not None], clip_value, foreach
        )


def _has_partial(grad: Any) -> bool:
    return any(p.is_partial() for p in getattr(grad, "placements", ()))


def _present(grads: _Optional, indices: list[int]) -> list[Tensor]:
    return [grad for i in indices if (grad := grads[i]) is not None]


def _combined(
    norms: list[tuple[Any, Tensor]], norm_type: float
) -> tuple[Tensor, Any]:
    """The norm of the norms of groups, and their mesh if they have one."""
    if not norms:
        return torch.tensor(0.0), None
    (mesh, first), *others = norms
    if not others:
        return first, mesh
    stacked = torch.stack([norm.to(first.device) for _, norm in norms])
    return torch.linalg.vector_norm(stacked, norm_type), None
