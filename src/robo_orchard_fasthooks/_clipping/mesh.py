"""The norm of gradients that are sharded over one device mesh."""

from __future__ import annotations

from math import inf, isinf
from types import NoneType
from typing import Any
from weakref import ref

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from robo_orchard_fasthooks._clipping.gradients import (
    are_plain,
    on_device,
)
from robo_orchard_fasthooks._clipping.local import (
    DEVICES,
    LocalGradients,
    torch_order,
)
from robo_orchard_fasthooks._clipping.partial import is_partial

__all__ = ["LOCAL_TYPES", "Kind", "MeshGroup", "identity_of", "reduce_max"]

Kind = tuple[tuple[Placement, ...], torch.dtype, torch.device]
"""The placements, the dtype and the device of a gradient."""

LOCAL_TYPES = {Tensor, NoneType}
"""The types of local tensors that are supported; None if there is none."""


class MeshGroup:
    """The gradients of one mesh among those of a list of parameters.

    Each rank computes the norms of its shards, and the norms of all gradients
    are reduced as one vector. Bit for bit, that is what torch from 2.10 on
    computes by reducing them one by one. (Earlier versions reduced one norm
    per rank, which rounds differently.) Gradients with other placements than
    torch's public ones, or on several devices, are not supported and have to
    be clipped by torch's functions.

    The mesh is held weakly and its process groups are looked up at each call,
    so that none is used after dist.destroy_process_group.

    Args:
        mesh (DeviceMesh): The mesh.
        indices (list[int]): The indices of these parameters in the list.
        kinds (list[Kind]): The placements, dtype and device of each gradient.
    """

    def __init__(self, mesh: Any, indices: list[int], kinds: list[Kind]):
        self.indices = indices
        self._mesh = ref(mesh)
        self._local = LocalGradients()
        self._kinds = [kind[1:] for kind in kinds]
        devices = {device for *_, device in kinds}
        self._supported = (
            len(devices) == 1
            and DEVICES >= {device.type for device in devices}
            and all(map(_is_supported, {p for kind in kinds for p in kind[0]}))
        )
        self._order = torch_order(
            [torch.empty(0, dtype=d, device=at) for d, at in self._kinds]
        )
        # The dimension and the size of each reduction, and which gradients
        # every rank has as a whole, Partial ones once they are reduced.
        self._reductions: list[tuple[int, int, _Mask | None]] = []
        self._present = _Mask()
        for dim in range(mesh.ndim if self._supported else 0):
            whole = [
                isinstance(placements[dim], Replicate)
                or any(map(is_partial, placements))
                for placements in (kinds[index][0] for index in self._order)
            ]
            if mesh.size(dim) > 1 and not all(whole):
                mask = _Mask(whole) if any(whole) else None
                self._reductions.append((dim, mesh.size(dim), mask))

    @property
    def mesh(self) -> Any:
        """The device mesh."""
        return self._mesh()

    def supports(self, shards: list[Tensor | None]) -> bool:
        """Whether `norm` and scaling shard by shard are right for these."""
        if not self._supported or LOCAL_TYPES.issuperset(map(type, shards)):
            return self._supported
        return are_plain([shard for shard in shards if shard is not None])

    def norm(
        self, shards: list[Tensor | None], norm_type: float
    ) -> Tensor | None:
        """Computes the norm; every rank has to call this.

        Args:
            shards (list[Tensor | None]): What this rank has of each gradient,
                supported; None if it has no such gradient.
            norm_type (float): The p of the p-norm.

        Returns:
            Tensor | None: The norm, 0-dim; None if no rank has a gradient.
        """
        filled: list[Any] = shards
        all_here = NoneType not in set(map(type, shards))
        if not all_here or 0 in map(Tensor.numel, filled):
            filled = [
                shard
                if shard is not None and shard.numel()
                else _nothing(norm_type, *kind)
                for shard, kind in zip(shards, self._kinds, strict=True)
            ]
        norms = self._local.norms(filled, norm_type)
        if norms is None:
            raise NotImplementedError("the gradient of a DTensor is sparse")
        # How many ranks have each of them.
        present = torch.ones_like(norms)
        if not all_here:
            here = [shards[index] is not None for index in self._order]
            present = self._present.of(norms, here).to(norms)
        for _, size, whole in self._reductions:
            if whole is not None and not isinf(norm_type):
                # Where every rank has the whole gradient, each contributes an
                # equal part of its norm, as in torch's _NormPartial.
                parts = size if norm_type == 0 else size ** (1 / norm_type)
                norms = torch.where(whole.of(norms), norms / parts, norms)
        for dim, _, _ in self._reductions:
            group = self.mesh.get_group(dim)
            norms, present = _reduce(norms, present, norm_type, group)
        if not all_here:
            # Without gradients that no rank has: torch does not sum them, and
            # zeros can change the last bits. On CUDA, this waits.
            norms = norms.masked_select(present > 0)
        if len(norms):
            norm: Tensor = torch.linalg.vector_norm(norms, norm_type)
            return norm
        return None


class _Mask:
    """Which norms are meant, copied to their device once."""

    def __init__(self, values: list[bool] | None = None):
        self._values = values
        self._kept: Tensor | None = None

    def of(self, norms: Tensor, values: list[bool] | None = None) -> Tensor:
        """The mask, a vector of bool; of other values from here on."""
        if values is not None and values != self._values:
            self._values, self._kept = values, None
        if self._kept is not None and type(norms) is Tensor:
            return self._kept
        mask = on_device(self._values or [], norms.device)
        if type(mask) is Tensor:
            self._kept = mask
        return mask


def _is_supported(placement: Placement) -> bool:
    return is_partial(placement) or isinstance(
        placement, (Shard, _StridedShard, Replicate)
    )


def _nothing(
    norm_type: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Stands in for a missing or empty shard, without changing the norm.

    torch has no inf-norm of an empty tensor.
    """
    return torch.full((1,), identity_of(norm_type), dtype=dtype, device=device)


def _reduce(
    norms: Tensor,
    present: Tensor,
    norm_type: float,
    group: dist.ProcessGroup,
) -> tuple[Tensor, Tensor]:
    """Reduces norms of parts of vectors to norms of the vectors.

    For a finite p that is `(sum norm^p)^(1/p)`, as in torch's _NormPartial.

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

    NaN counts as the largest and as the smallest, which not every backend
    does: gloo's maximum may drop it.
    """
    sign = 1 if norm_type > 0 else -1
    sent = torch.stack([sign * norms, norms.isnan().to(norms)])
    dist.all_reduce(sent, dist.ReduceOp.MAX, group)
    norms, nan = sent.unbind()
    return torch.where(nan > 0, torch.nan, sign * norms)
