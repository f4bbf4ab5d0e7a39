"""Gradients that are sharded over device meshes (DTensor)."""

from __future__ import annotations

from math import inf, isinf
from operator import is_
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from typing_extensions import override

from robo_orchard_fasthooks._clipping.gradients import GradientNorm, Gradients
from robo_orchard_fasthooks._clipping.local import (
    DEVICES,
    LocalGradients,
    torch_order,
)

__all__ = ["DTensorGradients", "identity_of", "reduce_max"]

_Shards = list["Tensor | None"]
_Spec = tuple[Any, tuple[Any, ...], torch.dtype, torch.device]


class DTensorGradients(Gradients):
    """Gradients some of which are sharded, with their norm over all ranks.

    Each rank norms its shards, and the norms of the parameters of a mesh are
    reduced as one vector: bit for bit what torch, from 2.10 on, gets by
    reducing them one by one. (Earlier, it reduced the norm of a rank's norms,
    which rounds otherwise.) Several meshes, and plain gradients beside sharded
    ones, are normed each by itself first, as accelerate 1.15 does.

    Every rank has to have the same parameters, and takes part in every
    reduction, whichever gradients it has.
    """

    collective = True

    def __init__(self) -> None:
        super().__init__()
        self._layouts: list[Any] = []
        self._specs: list[_Spec] = []
        self._meshes: list[tuple[list[int], _Mesh]] = []
        self._plain: list[int] = []
        self._local = LocalGradients()
        self._understood = False
        self._has_complex = False

    @override
    def local(self, params: list[Tensor]) -> list[Tensor]:
        return [_shard(grad) for grad in super().local(params)]

    @override
    def total_norm(
        self, params: list[Tensor], norm_type: float
    ) -> GradientNorm:
        all_grads = [param.grad for param in params]
        self._prepare(params, all_grads)
        shards = [None if grad is None else _shard(grad) for grad in all_grads]
        grads = [shard for shard in shards if shard is not None]
        if not self._understood:
            return GradientNorm(None, grads)
        norms = [
            norm
            for indices, mesh in self._meshes
            if (norm := mesh([shards[i] for i in indices], norm_type))
            is not None
        ]
        plain = [params[i] for i in self._plain if shards[i] is not None]
        if plain:
            norm = self._local.total_norm(plain, norm_type).total_norm
            if norm is None:
                return GradientNorm(None, grads)
            norms.append(norm)
        if not norms:
            return GradientNorm(torch.tensor(0.0), grads)
        total_norm = (
            norms[0]
            if len(norms) == 1
            else torch.linalg.vector_norm(torch.stack(norms), norm_type)
        )
        return GradientNorm(total_norm, grads, has_complex=self._has_complex)

    @override
    def elementwise(self, params: list[Tensor], grads: list[Tensor]) -> bool:
        self._prepare(params, [param.grad for param in params])
        return super().elementwise(params, grads) and self._understood

    @override
    def as_torch_returns(
        self, total_norm: Tensor, params: list[Tensor]
    ) -> Tensor:
        meshes = {
            mesh
            for (mesh, *_), param in zip(self._specs, params, strict=True)
            if param.grad is not None
        }
        if isinstance(total_norm, DTensor) or len(meshes) != 1:
            return total_norm
        (mesh,) = meshes
        if mesh is None:
            return total_norm
        return DTensor.from_local(
            total_norm, mesh, [Replicate()] * mesh.ndim, run_check=False
        )

    def _prepare(
        self, params: list[Tensor], all_grads: list[Tensor | None]
    ) -> None:
        shown = [
            param if grad is None else grad
            for param, grad in zip(params, all_grads, strict=True)
        ]
        # FSDP2 gives the gradients of a parameter one spec, step after step.
        layouts = [getattr(tensor, "_spec", None) for tensor in shown]
        if len(layouts) == len(self._layouts) and all(
            map(is_, layouts, self._layouts)
        ):
            return
        specs = [_spec(tensor) for tensor in shown]
        self._layouts = layouts
        if specs == self._specs:
            return
        self._specs = specs
        by_mesh: dict[Any, list[int]] = {}
        for index, (mesh, *_) in enumerate(specs):
            by_mesh.setdefault(mesh, []).append(index)
        self._plain = by_mesh.pop(None, [])
        self._understood = _understood(specs)
        self._has_complex = any(dtype.is_complex for *_, dtype, _ in specs)
        self._meshes = [
            (indices, _Mesh([specs[i] for i in indices]))
            for indices in by_mesh.values()
            if self._understood
        ]


def _shard(grad: Tensor) -> Tensor:
    """What this rank has of a gradient."""
    if not isinstance(grad, DTensor):
        return grad
    shard = grad.to_local()
    return shard.wait() if isinstance(shard, AsyncCollectiveTensor) else shard


def _spec(tensor: Tensor) -> _Spec:
    """All on which it depends how the norm of a gradient is reduced."""
    if isinstance(tensor, DTensor):
        mesh, placements = tensor.device_mesh, tensor.placements
        return mesh, placements, tensor.dtype, tensor.device
    return None, (), tensor.dtype, tensor.device


def _understood(specs: list[_Spec]) -> bool:
    """Whether each element of each gradient is some rank's, not a sum.

    Those of one mesh have to be on one device, too, and one that is ours.
    """
    places = {(mesh, device) for mesh, _, _, device in specs}
    return (
        all(
            isinstance(placement, (Shard, _StridedShard, Replicate))
            for placements in {placements for _, placements, *_ in specs}
            for placement in placements
        )
        and len(places) == len({mesh for mesh, _ in places})
        and DEVICES >= {device.type for _, device in places}
    )


class _Mesh:
    """The gradients that are sharded over one mesh."""

    def __init__(self, specs: list[_Spec]):
        self._local = LocalGradients()
        self._kinds = [(dtype, device) for *_, dtype, device in specs]
        self._order = torch_order(
            [torch.empty(0, dtype=d, device=at) for d, at in self._kinds]
        )
        mesh, _, _, device = specs[0]
        placements = [spec[1] for spec in specs]
        self._reductions = []
        for dim in range(mesh.ndim):
            whole = [
                isinstance(placements[index][dim], Replicate)
                for index in self._order
            ]
            if mesh.size(dim) > 1 and not all(whole):
                mask = torch.tensor(whole, device=device)
                self._reductions.append(
                    (
                        mesh.get_group(dim),
                        mesh.size(dim),
                        mask if any(whole) else None,
                    )
                )

    def __call__(self, shards: _Shards, norm_type: float) -> Tensor | None:
        """Their norm; None if no rank has any."""
        norms = self._local.norms(
            [
                _nothing(norm_type, *kind)
                if shard is None or not shard.numel()
                else shard
                for shard, kind in zip(shards, self._kinds, strict=True)
            ],
            norm_type,
        )
        assert norms is not None  # Of plain tensors, all on one device.
        here = [shards[index] is not None for index in self._order]
        # How many ranks have each of them.
        present = (
            torch.ones_like(norms) if all(here) else norms.new_tensor(here)
        )
        for _, size, whole in self._reductions:
            if whole is not None and not isinf(norm_type):
                # Each rank brings its part of those that all have, as torch's
                # _NormPartial does.
                parts = size if norm_type == 0 else size ** (1 / norm_type)
                norms = torch.where(whole, norms / parts, norms)
        for group, _, _ in self._reductions:
            norms, present = _reduce(norms, present, norm_type, group)
        if not all(here):
            # Without those that no rank has: torch does not sum them, and
            # zeros can change the last bits. On CUDA, this waits.
            norms = norms[present > 0]
        if len(norms):
            norm: Tensor = torch.linalg.vector_norm(norms, norm_type)
            return norm
        return None


def _nothing(
    norm_type: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Has no part in a norm; an empty shard has no inf norm of its own."""
    return torch.full((1,), identity_of(norm_type), dtype=dtype, device=device)


def _reduce(
    norms: Tensor,
    present: Tensor,
    norm_type: float,
    group: dist.ProcessGroup,
) -> tuple[Tensor, Tensor]:
    """Reduces norms of parts of vectors to norms of the vectors.

    For a finite p that is `(sum norm^p)^(1/p)`, as torch's _NormPartial has
    it.

    Args:
        norms (Tensor): A vector, of the same size on every rank.
        present (Tensor): How many ranks have each part; alike.
        norm_type (float): The p of the p-norm.
        group (ProcessGroup): The ranks.

    Returns:
        tuple[Tensor, Tensor]: Both of them, reduced over the ranks.
    """
    if isinf(norm_type):
        # Of `present` it is always the largest.
        sign = 1 if norm_type > 0 else -1
        both = torch.stack([norms, sign * present])
        norms, present = reduce_max(both, norm_type, group).unbind()
        return norms, sign * present
    powers = norms**norm_type if norm_type else norms
    sent = torch.stack([powers, present])
    dist.all_reduce(sent, group=group)
    powers, present = sent.unbind()
    return powers ** (1 / norm_type) if norm_type else powers, present


def identity_of(norm_type: float) -> float:
    """The value that changes no norm: 0, or inf where p is negative."""
    return 0.0 if norm_type >= 0 else inf


def reduce_max(
    norms: Tensor, norm_type: float, group: dist.ProcessGroup
) -> Tensor:
    """The largest norms over ranks, or for norm_type -inf the smallest.

    NaN is the largest, and the smallest too, which it is not to every
    backend: gloo's maximum may drop it.
    """
    sign = 1 if norm_type > 0 else -1
    sent = torch.stack([sign * norms, norms.isnan().to(norms)])
    dist.all_reduce(sent, dist.ReduceOp.MAX, group)
    norms, nan = sent.unbind()
    return torch.where(nan > 0, torch.nan, sign * norms)
