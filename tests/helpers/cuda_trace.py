"""What a call would have a GPU do, recorded without one.

torch's FakeTensorMode runs code on tensors of device "cuda" that have no
memory, and `Trace`, a TorchDispatchMode, sees every op that reaches the
device. How many kernels, copies and fills each of them launches is computed as
torch's sources do it: MultiTensorApply.cuh, ForeachFunctors.cuh and
foreach_reduce.cuh among its headers, ForeachReduceOp.cu,
ForeachBinaryOpScalar.cu, ForeachBinaryOpScalarTensor.cu and Shape.cu.

This is a model: no time follows from it, and it was never compared with a GPU.
An op that it does not know is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["CUDA_12", "CUDA_13", "Limits", "Op", "Recorded", "recorded"]


@dataclass(frozen=True)
class Limits:
    """How much a launch of a foreach kernel over one list may hold."""

    tensors: int
    """depth_to_max_tensors[0] of MultiTensorApply.cuh."""

    blocks: int
    """depth_to_max_blocks[0]; a block has 65,536 elements of one tensor."""

    norms: int
    """MAX_TENSORS_PER_KERNEL of foreach_reduce.cuh."""


CUDA_12 = Limits(110, 320, 400)
"""torch before 2.12, or built with CUDA 12: kernel arguments of 4 KB."""

CUDA_13 = Limits(770, 2240, 3200)
"""torch from 2.12 on, built with CUDA 13: kernel arguments of 32 KB."""

BLOCK = 65536
"""kChunkSize: elements."""

SECTOR = 32
"""Bytes that memory moves at least, for each tensor that a kernel names."""

CAT = 128
"""CAT_ARRAY_BATCH_SIZE: tensors that a launch of `cat` copies."""

Launches = Callable[[Limits], int]


@dataclass
class Op:
    """An op that has the device do something."""

    name: str
    launches: Launches
    """How many kernels, copies and fills, by the limits."""
    bytes: int = 0
    """That it reads and writes, in whole sectors of each tensor."""
    waits: bool = False
    """Whether the host waits for the device."""


@dataclass
class Recorded:
    """All that one call has the device do."""

    ops: list[Op] = field(default_factory=list)
    calls: int = 0
    """Of ops, views included: what the host does one by one."""

    def launches(self, limits: Limits) -> int:
        return sum(op.launches(limits) for op in self.ops)

    @property
    def bytes(self) -> int:
        return sum(op.bytes for op in self.ops)

    @property
    def waits(self) -> list[str]:
        return [op.name for op in self.ops if op.waits]

    @property
    def names(self) -> list[str]:
        return [op.name for op in self.ops]


@contextmanager
def recorded() -> Iterator[Recorded]:
    """Records what is done in the `with` block."""
    found = Recorded()
    with Trace(found):
        yield found


def multi_tensor_apply(numels: list[int], limits: Limits) -> int:
    """The launches of multi_tensor_apply<1>, whose loops these are."""
    launches = blocks = tensors = 0
    for numel in filter(None, numels):
        tensors += 1
        chunks = -(-numel // BLOCK)
        for chunk in range(chunks):
            blocks += 1
            last = chunk == chunks - 1
            if blocks == limits.blocks or (tensors == limits.tensors and last):
                launches += 1
                blocks, tensors = 0, 0 if last else 1
    return launches + bool(blocks)


def is_dense(tensor: Tensor) -> bool:
    """is_non_overlapping_and_dense of c10: no gaps, in any order."""
    sizes = [
        (stride, size)
        for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
        if size != 1
    ]
    expected = 1
    for stride, size in sorted(sizes):
        if stride != expected:
            return not tensor.numel()
        expected *= size
    return True


def fuses(tensors: list[Tensor]) -> bool:
    """can_use_fast_route of ForeachUtils.h, for one list."""
    return len({(t.dtype, t.device) for t in tensors}) == 1 and all(
        t.layout == torch.strided and is_dense(t) for t in tensors
    )


def one_by_one(tensors: list[Tensor]) -> Launches:
    numels = [t.numel() for t in tensors]
    return lambda _: len(list(filter(None, numels)))


def fused(tensors: list[Tensor]) -> Launches:
    numels = [t.numel() for t in tensors]
    return lambda limits: multi_tensor_apply(numels, limits)


def foreach_norm(tensors: list[Tensor], norm_type: float) -> Launches:
    """foreach_tensor_norm_cuda of ForeachReduceOp.cu."""
    dtype = tensors[0].dtype
    if (
        not fuses(tensors)
        or not dtype.is_floating_point
        or norm_type not in (1, 2, math.inf)
    ):
        # linalg.vector_norm also fills the norms of empty ones.
        return lambda _: len(tensors)
    numels = [t.numel() for t in tensors]
    # The zeros that the norms of blocks are written to, and those of norms
    # of empty tensors.
    fills = bool(sum(numels)) + numels.count(0)
    return lambda limits: (
        fills
        + multi_tensor_apply(numels, limits)
        + -(-len(numels) // limits.norms)
    )


def cat(tensors: list[Tensor]) -> Launches:
    """cat_out_cuda of Shape.cu, for contiguous tensors."""
    if copies_at_once(tensors):
        count = len(tensors)
        return lambda _: -(-count // CAT)
    return one_by_one(tensors)


def copies_at_once(tensors: list[Tensor]) -> bool:
    return len(tensors) > 1 and len({t.dtype for t in tensors}) == 1


# Views, and what only asks.
NOTHING = {
    "prim.device",
    "aten.alias",
    "aten.detach",
    "aten.expand",
    "aten.lift_fresh",
    "aten.permute",
    "aten.select",
    "aten.slice",
    "aten.squeeze",
    "aten.t",
    "aten.transpose",
    "aten.unbind",
    "aten.unsqueeze",
    "aten.view",
    # Memory comes from torch's cache.
    "aten.empty",
    "aten.empty_like",
    "aten.empty_strided",
    "aten.new_empty",
}
CATS = {"aten.stack", "aten.cat"}
# One kernel, or a memset.
ONE = {
    "aten.abs",
    "aten.add",
    "aten.add_",
    "aten.clamp",
    "aten.clamp_",
    "aten.clone",
    "aten.div",
    "aten.eq",
    "aten.fill_",
    "aten.full",
    "aten.full_like",
    "aten.gt",
    "aten.isfinite",
    "aten.isnan",
    "aten.isinf",
    "aten.logical_or",
    "aten.linalg_vector_norm",
    "aten.mul",
    "aten.mul_",
    "aten.ne",
    "aten.new_zeros",
    "aten.ones",
    "aten.ones_like",
    "aten.pow",
    "aten.reciprocal",
    "aten.where",
    "aten.zero_",
    "aten.zeros",
    "aten.zeros_like",
}
WAITS = {
    "aten._local_scalar_dense",
    "aten.equal",
    "aten.is_nonzero",
    "aten.masked_select",
    "aten.nonzero",
}


def sectors(tensors: list[Tensor]) -> int:
    """The bytes that move to read or write each of them once."""
    sizes = (t.numel() * t.element_size() for t in tensors)
    return sum(-(-size // SECTOR) * SECTOR for size in sizes)


class Trace(TorchDispatchMode):
    """Records the ops that have the device do something."""

    def __init__(self, found: Recorded):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(func).rpartition(".")[0]
        # That fake tensors alone dispatch.
        self.found.calls += name != "prim.device"
        inputs = [t for t in tree_leaves((args, kwargs)) if is_tensor(t)]
        # Before it runs: reading a number from a fake tensor raises.
        waits = waits_for_device(name, args, kwargs)
        if waits:
            self.found.ops.append(Op(name, lambda _: 1, waits=True))
        result = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(result) if is_tensor(t)]
        if waits or not any(t.is_cuda for t in inputs + outputs):
            return result
        launches = launches_of(name, args, inputs, outputs)
        if launches is None:
            return result
        if name.startswith("aten._foreach") and not outputs:
            outputs = list(args[0])
        if name == "aten._foreach_mul_" and not fuses_with(*args):
            inputs += [args[1]] * (len(args[0]) - 1)  # Read at each launch.
        if name in CATS and not copies_at_once(args[0]):
            outputs = [t.to(outputs[0].dtype) for t in args[0]]
        moved = sectors(inputs) + sectors(outputs)
        self.found.ops.append(Op(name, launches, moved))
        return result


def is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def fuses_with(tensors: list[Tensor], scalar: Tensor) -> bool:
    return fuses(tensors) and scalar.dtype == tensors[0].dtype


def launches_of(
    name: str, args: tuple, inputs: list[Tensor], outputs: list[Tensor]
) -> Launches | None:
    """How many launches an op takes; None if it is none for the device."""
    if name in NOTHING:
        return None
    if name == "aten._foreach_norm":
        return foreach_norm(args[0], args[1])
    if name == "aten._foreach_mul_":
        fast = fuses_with(*args)
        return (fused if fast else one_by_one)(args[0])
    if name in ("aten._foreach_clamp_min_", "aten._foreach_clamp_max_"):
        return (fused if fuses(args[0]) else one_by_one)(args[0])
    if name in CATS:
        return cat(args[0])
    if name in ("aten._to_copy", "aten.copy_", "aten.index", *ONE):
        if not outputs or outputs[0].numel():
            return lambda _: 1
        return None
    if name.startswith("c10d"):
        return lambda _: 1
    raise NotImplementedError(f"the model of launches has no {name}")


def waits_for_device(name: str, args: tuple, kwargs: dict) -> bool:
    """Whether the host waits until the device has done what was launched."""
    if name in WAITS:
        return args[0].is_cuda
    if name == "aten.index":
        # A mask is turned into indices, whose number the host has to know.
        return args[0].is_cuda and any(
            index is not None
            and (index.dtype == torch.bool or not index.is_cuda)
            for index in args[1]
        )
    if name == "aten._to_copy":
        source, target = args[0].device, kwargs.get("device")
        blocking = not kwargs.get("non_blocking")
    elif name == "aten.copy_":
        source, target = args[1].device, args[0].device
        blocking = not (args[2] if len(args) > 2 else False)
    else:
        return False
    target = source if target is None else torch.device(target)
    return blocking and (source.type == "cpu") != (target.type == "cpu")
