"""Gradients grouped by device mesh; the groups are kept between calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any
from weakref import ref

from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor

from robo_orchard_fasthooks._clipping.mesh import Kind, MeshGroup
from robo_orchard_fasthooks._clipping.partial import is_partial
from robo_orchard_fasthooks._clipping.refusals import product

__all__ = ["MeshGroups", "shards_of"]


# What a plain tensor has in place of a spec. Not None, which is what a weak
# reference to a spec returns after that has died.
_PLAIN = object()


def _plain() -> object:
    return _PLAIN


class MeshGroups:
    """The grouping by device mesh of the gradients that were seen last.

    Only weak references to meshes and to the specs of DTensors are kept, and
    they are compared by identity: a new mesh may equal an old one whose
    process groups dist.destroy_process_group has destroyed.
    """

    groups: list[MeshGroup]
    """The DTensors, mesh by mesh."""

    plain: list[int]
    """The indices of the plain gradients."""

    partial: list[int]
    """The indices of the DTensors with a Partial placement."""

    has_complex: bool
    """Whether any DTensor is complex."""

    def __init__(self) -> None:
        # Weak references to specs; for a plain tensor `_plain`.
        self._specs: list[Callable[[], Any]] = []
        self._meshes: list[Callable[[], Any]] = []
        # The id of the mesh of each gradient, and its kind.
        self._kinds: list[tuple[int | None, Kind]] = []
        self._products: list[int] = []
        self.groups, self.plain, self.partial = [], [], []
        self.has_complex = False

    def shards(
        self, owners: list[Tensor], grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """Lists the local tensors of gradients, and groups the gradients.

        Args:
            owners (list[Tensor]): The parameters. One without a gradient
                counts as placed like its gradient, which other ranks may have.
            grads (Sequence[Tensor | None]): Their gradients.

        Returns:
            list[Tensor | None]: The local tensors.

        Raises:
            NotImplementedError: A gradient cannot be clipped.
        """
        shown = [
            owner if grad is None else grad
            for owner, grad in zip(owners, grads, strict=True)
        ]
        # FSDP2 gives the gradients of a parameter one spec, step after step.
        specs = [getattr(tensor, "_spec", _PLAIN) for tensor in shown]
        if len(specs) != len(self._specs) or not all(
            map(is_, specs, [spec() for spec in self._specs])
        ):
            self._plan(shown)
            self._specs = [
                _plain if spec is _PLAIN else ref(spec) for spec in specs
            ]
        if any(grads[index] is not None for index in self._products):
            raise NotImplementedError("a gradient cannot be clipped")
        return shards_of(grads)

    def _plan(self, shown: list[Tensor]) -> None:
        kinds = [_kind(tensor) for tensor in shown]
        # An equal id is that of the same mesh if that one is alive.
        if kinds == self._kinds and all(
            mesh() is not None for mesh in self._meshes
        ):
            return
        self._kinds = kinds
        meshes = {
            id(tensor.device_mesh): tensor.device_mesh
            for tensor in shown
            if isinstance(tensor, DTensor)
        }
        self._meshes = [*map(ref, meshes.values())]
        by_mesh: dict[Any, list[int]] = {}
        for index, (mesh, _) in enumerate(kinds):
            # torch treats equal meshes as one.
            by_mesh.setdefault(mesh and meshes[mesh], []).append(index)
        self.plain = by_mesh.pop(None, [])
        self.partial = [
            index
            for index, (_, (placements, *_)) in enumerate(kinds)
            if any(map(is_partial, placements))
        ]
        self._products = [i for i in self.partial if product(shown[i])]
        self.has_complex = any(
            mesh and dtype.is_complex for mesh, (_, dtype, _) in kinds
        )
        self.groups = [
            MeshGroup(mesh, indices, [kinds[i][1] for i in indices])
            for mesh, indices in by_mesh.items()
        ]


def _kind(tensor: Tensor) -> tuple[int | None, Kind]:
    """Everything that decides how the norm of a gradient is reduced."""
    if isinstance(tensor, DTensor):
        kind = tensor.placements, tensor.dtype, tensor.device
        return id(tensor.device_mesh), kind
    return None, ((), tensor.dtype, tensor.device)


def shards_of(grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The local tensors of gradients; None for a gradient that is None."""
    # What `to_local` returns while autograd does not record, in a fifth of its
    # time (20 ns).
    shards = [getattr(grad, "_local_tensor", grad) for grad in grads]
    if AsyncCollectiveTensor in set(map(type, shards)):
        for index, shard in enumerate(shards):
            if isinstance(shard, AsyncCollectiveTensor):
                shards[index] = shard.wait()
    return shards
