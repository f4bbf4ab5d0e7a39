"""DTensor gradients: grouped by device mesh, normed and reduced over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isinf
from operator import is_
from typing import Any, NamedTuple
from weakref import ref

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard
from typing_extensions import override

from robo_orchard_fasthooks._clipping import local
from robo_orchard_fasthooks._clipping.foreach import on_device
from robo_orchard_fasthooks._clipping.groups import Group, TorchGroup, full


class _Kind(NamedTuple):
    """Everything that decides how the norm of a gradient is reduced."""

    mesh: int | None  # The id of the device mesh; None for a plain one.
    placements: tuple[Placement, ...]
    dtype: torch.dtype
    device: torch.device


# Stands for the spec of a plain tensor. Not None, which a dead weak reference
# returns.
_PLAIN = object()


class MeshGroups:
    """The grouping by device mesh of the gradients that were seen last.

    Only weak references to meshes and to the specs of DTensors are kept, and
    they are compared by identity: a new mesh may equal an old one whose
    process groups dist.destroy_process_group has destroyed.
    """

    def __init__(self) -> None:
        self._specs: list[Callable[[], Any]] = []
        self._meshes: list[Callable[[], Any]] = []
        self._kinds: list[_Kind] = []
        self._plans: list[_MeshPlan] = []
        self._plain: list[int] = []
        self._local = local.LocalGradients()

    def groups(
        self,
        params: list[Tensor],
        grads: Sequence[Tensor | None],
        all_here: bool,
    ) -> list[Group | TorchGroup]:
        """Groups the gradients of parameters; None where there is none."""
        # A parameter stands in for a gradient that is missing.
        like_grads = [
            param if grad is None else grad
            for param, grad in zip(params, grads, strict=True)
        ]
        # FSDP2 gives the gradients of a parameter one spec, step after step.
        specs = [getattr(tensor, "_spec", _PLAIN) for tensor in like_grads]
        if (
            not all_here  # The `grad_dtype` of a parameter may have changed.
            or len(specs) != len(self._specs)
            or not all(map(is_, specs, [spec() for spec in self._specs]))
        ):
            self._plan(like_grads)
            self._specs = [
                (lambda: _PLAIN) if spec is _PLAIN else ref(spec)
                for spec in specs
            ]
        shards = _shards(grads)
        groups = [plan.group(params, grads, shards) for plan in self._plans]
        plain = [i for i in self._plain if shards[i] is not None]
        if plain:
            found: list[Any] = [shards[i] for i in plain]
            plan = self._local.plan(found)
            groups.append(
                Group(found, plan)
                if plan
                else TorchGroup([params[i] for i in plain], found)
            )
        return groups

    def _plan(self, like_grads: list[Tensor]) -> None:
        kinds = list(map(_kind, like_grads))
        # An equal id is that of the same mesh if that one is alive.
        if kinds == self._kinds and all(
            mesh() is not None for mesh in self._meshes
        ):
            return
        self._kinds = kinds
        meshes = {
            id(tensor.device_mesh): tensor.device_mesh
            for tensor in like_grads
            if isinstance(tensor, DTensor)
        }
        self._meshes = [*map(ref, meshes.values())]
        by_mesh: dict[Any, list[int]] = {}
        for index, kind in enumerate(kinds):
            # torch treats equal meshes as one.
            by_mesh.setdefault(kind.mesh and meshes[kind.mesh], []).append(
                index
            )
        self._plain = by_mesh.pop(None, [])
        self._plans = [
            _MeshPlan(mesh, indices, [kinds[i] for i in indices])
            for mesh, indices in by_mesh.items()
        ]


def _kind(tensor: Tensor) -> _Kind:
    # A parameter without a gradient may say which dtype its gradient has.
    dtype = getattr(tensor, "grad_dtype", None) if tensor.is_leaf else None
    dtype = dtype or tensor.dtype
    if isinstance(tensor, DTensor):
        mesh = id(tensor.device_mesh)
        return _Kind(mesh, tensor.placements, dtype, tensor.device)
    return _Kind(None, (), dtype, tensor.device)


def _shards(grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """What this rank has of gradients; None for a gradient that is None."""
    # What `to_local` returns while autograd does not record, in a fifth of its
    # time (20 ns).
    shards = [getattr(grad, "_local_tensor", grad) for grad in grads]
    if AsyncCollectiveTensor in set(map(type, shards)):
        for index, shard in enumerate(shards):
            if isinstance(shard, AsyncCollectiveTensor):
                shards[index] = shard.wait()
    return shards


class _MeshPlan:
    """How the norm of the gradients of one mesh is computed.

    Each rank computes the norms of its shards, and the norms of all gradients
    are reduced as one vector. Bit for bit, that is what torch from 2.10 on
    computes by reducing them one by one. (Earlier versions reduced one norm
    per rank, which rounds differently.) Gradients with other placements than
    torch's public ones, or on several devices, are left to torch.

    The mesh is held weakly and its process groups are looked up at each call,
    so that none is used after dist.destroy_process_group.

    `_kinds`, `_partial` and shards are in the order of `_indices`; norms,
    `whole` and the masks are in `_order`, in which torch sums norms.
    """

    def __init__(self, mesh: Any, indices: list[int], kinds: list[_Kind]):
        self._mesh = ref(mesh)
        self._indices = indices
        self._kinds = kinds
        self._local = local.LocalGradients()
        self._filled = local.LocalGradients()
        devices = {kind.device for kind in kinds}
        placements = {p for kind in kinds for p in kind.placements}
        self._supported = (
            len(devices) == 1
            and local.DEVICES >= {device.type for device in devices}
            and all(map(_is_supported, placements))
        )
        self._partial = [
            index
            for index, kind in enumerate(kinds)
            if any(map(_is_partial, kind.placements))
        ]
        self._order = local.torch_order(
            [torch.empty(0, dtype=k.dtype, device=k.device) for k in kinds]
        )
        self._here = _Mask()
        # The dimension and the size of each reduction, and which gradients
        # every rank has as a whole, Partial ones once they are reduced.
        self._reductions: list[tuple[int, int, list[bool], _Mask]] = []
        for dim in range(mesh.ndim if self._supported else 0):
            whole = [
                isinstance(kinds[index].placements[dim], Replicate)
                or index in self._partial
                for index in self._order
            ]
            if mesh.size(dim) > 1 and not all(whole):
                self._reductions.append((dim, mesh.size(dim), whole, _Mask()))

    def group(
        self,
        params: list[Tensor],
        grads: Sequence[Tensor | None],
        shards: list[Tensor | None],
    ) -> Group | TorchGroup:
        """Selects the gradients of this mesh."""
        all_grads = [grads[index] for index in self._indices]
        all_shards = [shards[index] for index in self._indices]
        here = [shard for shard in all_shards if shard is not None]
        plan = self._local.plan(here) if here and self._supported else None
        mesh, is_partial = self._mesh(), bool(self._partial)
        if self._supported and (plan or not here):
            return _MeshGroup(
                here, plan, mesh, is_partial, self, all_grads, all_shards
            )
        return TorchGroup(
            [params[index] for index in self._indices],
            [grad for grad in all_grads if grad is not None],
            mesh,
            is_partial,
        )

    def norm(self, group: _MeshGroup, norm_type: float) -> Tensor | None:
        """Computes the norm; every rank of the mesh has to call this."""
        shards = group.shards
        # Always reduced first: in torch 2.13 the inf-norm of parts of a
        # maximum is that of the largest part.
        if self._partial:
            shards = [*shards]
            for index in self._partial:
                if (grad := group.all_grads[index]) is not None:
                    shards[index] = full(grad)
        # A stand-in that changes no norm takes the place of what this rank
        # lacks: torch has no inf-norm of an empty shard, and a gradient that
        # it does not have at all is part of what the others reduce.
        all_here = len(group.grads) == len(shards)
        if (
            all_here
            and not self._partial
            and 0 not in map(Tensor.numel, group.grads)
        ):
            filled, plan = group.grads, group.plan
        else:
            filled = [
                shard
                if shard is not None and shard.numel()
                else torch.full(
                    (1,), identity(norm_type), dtype=k.dtype, device=k.device
                )
                for shard, k in zip(shards, self._kinds, strict=True)
            ]
            plan = self._filled.plan(filled)
        assert plan is not None
        norms = plan.norms(filled, norm_type)
        # How many ranks have each gradient.
        ranks = torch.ones_like(norms)
        if not all_here:
            here = [shards[index] is not None for index in self._order]
            ranks = self._here(here, norms).to(norms)
        for _, size, whole, mask in self._reductions:
            if any(whole) and not isinf(norm_type):
                # Where every rank has the whole gradient, each contributes an
                # equal part of its norm, as in torch's _NormPartial.
                parts = size if norm_type == 0 else size ** (1 / norm_type)
                norms = torch.where(mask(whole, norms), norms / parts, norms)
        for dim, *_ in self._reductions:
            process_group = group.mesh.get_group(dim)
            norms, ranks = _reduce(norms, ranks, norm_type, process_group)
        if not all_here:
            # Without gradients that no rank has: torch does not sum them, and
            # zeros can change the last bits. On CUDA, this waits.
            norms = norms.masked_select(ranks > 0)
        if not len(norms):
            return None
        norm: Tensor = torch.linalg.vector_norm(norms, norm_type)
        return norm


@dataclass(eq=False)
class _MeshGroup(Group):
    """The gradients of one mesh."""

    owner: Any = None
    all_grads: Sequence[Tensor | None] = ()  # None where this rank has none.
    shards: Sequence[Tensor | None] = ()  # Their local tensors.

    @override
    def norm(self, norm_type: float) -> Tensor | None:
        norm: Tensor | None = self.owner.norm(self, norm_type)
        return norm


class _Mask:
    """A boolean mask, cached on its device."""

    def __init__(self) -> None:
        self._values: list[bool] = []
        self._mask: Tensor | None = None

    def __call__(self, values: list[bool], norms: Tensor) -> Tensor:
        kept = self._mask if self._values == values else None
        if kept is not None and type(norms) is Tensor:
            return kept
        mask = on_device(values, norms.device)
        if type(mask) is Tensor:
            self._values, self._mask = values, mask
        return mask


def _is_partial(placement: Placement) -> bool:
    """Whether it is Partial itself; subclasses reduce otherwise."""
    return type(placement) is Partial


def _is_supported(placement: Placement) -> bool:
    return _is_partial(placement) or isinstance(
        placement, (Shard, _StridedShard, Replicate)
    )


def _reduce(
    norms: Tensor, ranks: Tensor, norm_type: float, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """Reduces norms of parts of vectors to norms of the vectors.

    For a finite p that is `(sum norm^p)^(1/p)`, as in torch's _NormPartial.
    How many ranks have each part is reduced with them.
    """
    if isinf(norm_type):
        # Of `ranks` it is always the largest.
        sign = 1 if norm_type > 0 else -1
        both = torch.stack([norms, sign * ranks])
        norms, ranks = reduce_max(both, norm_type, group).unbind()
        return norms, sign * ranks
    powers = norms**norm_type if norm_type else norms
    sent = torch.stack([powers, ranks])
    dist.all_reduce(sent, group=group)
    powers, ranks = sent.unbind()
    return powers ** (1 / norm_type) if norm_type else powers, ranks


def identity(norm_type: float) -> float:
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
