"""Plain gradients on one device: norm, scale and clamp with torch's bits."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain, islice
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype

from robo_orchard_fasthooks._clipping import foreach, refusals

_TensorGuards: Any = getattr(
    getattr(getattr(torch._C, "_dynamo", None), "guards", None),
    "TensorGuards",
    None,
)

DEVICES = {"cpu", "cuda"}
"""The types of devices whose gradients are not left to torch."""

WIDE_DTYPES = {torch.bfloat16, torch.float32, torch.float64}
"""Real dtypes that represent 3e38."""

_STACK_NUMEL = 2048
"""Above it, copying a gradient costs as much as torch's per-tensor overhead:
fp64 gained 1.30x at 2,048 elements and lost 0.78x at 4,096."""

_STACK_LEAST = 4
"""The fewest gradients that are stacked: the fixed cost of a stack is that of
two norms of single gradients, so that fewer gain little."""

_GRAIN_SIZE = 32768
"""at::internal::GRAIN_SIZE: from it on, torch may split a reduction along a
dimension between threads, which changes the last bits."""

_STACK_DTYPES = {torch.float32, torch.float64, torch.float16, torch.bfloat16}

_CLAMP_NUMEL = 12288
"""The elements from which on a gradient is clamped by itself on a CPU, in one
pass over memory, and not by two foreach calls for all. The speed-up for 200
gradients of 8,192, 12,288 and 16,384 elements was 0.80x, 0.96x and 1.1x for
fp32, and 0.91x, 1.04x and 1.1x for fp16; bf16 and fp64 gain from 8,192 on."""


class LocalGradients:
    """Plans how a list of gradients is clipped, and keeps the last plan."""

    def __init__(self) -> None:
        self._kept: LocalPlan | None = None
        self._count = 0
        self._are_alike: Callable[..., bool]

    def plan(self, grads: list[Tensor]) -> LocalPlan | None:
        """Returns a plan for these gradients.

        None if they have to be left to torch: they are not plain and dense, or
        not on one CPU or CUDA device.
        """
        if (
            self._kept is not None
            and len(grads) == self._count
            and self._are_alike(*grads)
        ):
            return self._kept
        self._kept = None
        if not _are_plain(grads):
            return None
        (device, layout), *more = {
            (grad.device, grad.layout) for grad in grads
        }
        if more or device.type not in DEVICES or layout != torch.strided:
            return None
        plan = LocalPlan(grads)
        # A plan may hold a tensor, which is fake if the gradients are.
        if type(grads[0]) is Tensor:
            self._count, self._are_alike = len(grads), _guard(grads)
            self._kept = plan
        return plan


def _are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether one or more tensors are of torch.Tensor itself.

    torch's FakeTensor counts as such on CUDA. On a CPU, numbers are read,
    which it does not have.
    """
    kinds = set(map(type, tensors))
    return kinds == {Tensor} or (
        kinds == {FakeTensor} and all(tensor.is_cuda for tensor in tensors)
    )


def _guard(grads: list[Tensor]) -> Callable[..., bool]:
    """Makes a function that tells whether other gradients are like these.

    They are if types, dispatch keys, dtypes, devices, sizes and strides are
    equal. torch's own check takes 77 ns for each gradient; reading only dtypes
    and shapes takes 300.
    """
    if _TensorGuards is not None:
        check: Callable[..., bool] = _TensorGuards(
            *grads, dynamic_dims_sizes=None, dynamic_dims_strides=None
        ).check
        return check

    def metadata(*tensors: Tensor) -> list[Any]:
        return [
            (type(t), t.layout, t.dtype, t.device, t.is_inference())
            + ((t.shape, t.stride()) if t.layout == torch.strided else ())
            for t in tensors
        ]

    expected = metadata(*grads)
    return lambda *tensors: metadata(*tensors) == expected


class LocalPlan:
    """How gradients of these dtypes, shapes and strides are clipped.

    On a CPU, small gradients of equal shape and dtype are stacked and normed
    along a dimension: torch's norm of one tensor costs a microsecond. The
    gradients are plain, dense and on one CPU or CUDA device. A plan does not
    refer to them.
    """

    def __init__(self, grads: list[Tensor]):
        dtypes = {grad.dtype for grad in grads}
        self.device = grads[0].device
        self.dtypes = dtypes
        self.has_complex = any(dtype.is_complex for dtype in dtypes)
        # Whether all of them can be changed in place.
        self.is_writable = not any(map(refusals.inference, grads)) and (
            all(map(Tensor.is_contiguous, grads))
            or not any(map(refusals.overlapping, grads))
        )
        self._by_dtype: list[Callable[[list[Tensor]], Any]] = []
        # On a CPU, the foreach functions are loops, which accept any list.
        if len(dtypes) > 1 and self.device.type != "cpu":
            self._by_dtype = [
                _take(
                    [i for i, grad in enumerate(grads) if grad.dtype == dtype]
                )
                for dtype in dtypes
            ]
        sizes = list(enumerate(map(Tensor.numel, grads)))
        self._large = [i for i, size in sizes if size >= _CLAMP_NUMEL]
        self._small = [i for i, size in sizes if size < _CLAMP_NUMEL]
        self._norms: _Norms | None = None

    def can_clamp(self, clip_value: float) -> bool:
        """Whether torch can clamp all of them to [-clip_value, clip_value]."""
        if self.dtypes <= WIDE_DTYPES and abs(clip_value) < 3e38:
            return True
        is_cuda = self.device.type == "cuda"
        return not any(
            refusals.cannot_clamp(dtype, is_cuda, clip_value)
            for dtype in self.dtypes
        )

    def norms(self, grads: list[Tensor], norm_type: float) -> Tensor:
        """The norms as a vector, in the order in which torch sums them."""
        if self._norms is None:
            self._norms = _Norms(grads)
        return self._norms(grads, norm_type)

    def norm(self, grads: list[Tensor], norm_type: float) -> Tensor:
        """Computes the norm of all gradients, 0-dim."""
        norms = self.norms(grads, norm_type)
        norm: Tensor = torch.linalg.vector_norm(norms, norm_type)
        return norm

    def multiply_(self, grads: list[Tensor], coefficient: Tensor) -> None:
        """Multiplies the gradients by a real 0-dim coefficient, in place."""
        coefficient = coefficient.to(self.device)
        for group in self.groups(grads):
            foreach.multiply_(group, coefficient)

    def clamp_(self, grads: list[Tensor], clip_value: float) -> None:
        """Clamps the gradients to [-clip_value, clip_value], in place."""
        groups = self.groups(grads)
        # On CUDA, `clamp_` is a launch for each gradient, and may give -0.0
        # where clip_value is 0 and the foreach kernels give 0.0.
        if self.device.type == "cpu":
            for index in self._large:
                grads[index].clamp_(-clip_value, clip_value)
            if self._large:
                groups = [[grads[index] for index in self._small]]
        for group in filter(None, groups):
            # Foreach has no clamp; its two halves are two passes.
            torch._foreach_clamp_min_(group, -clip_value)
            torch._foreach_clamp_max_(group, clip_value)

    def groups(self, grads: list[Tensor]) -> list[Any]:
        """The gradients by dtype, as fused kernels need them."""
        return [take(grads) for take in self._by_dtype] or [grads]


class _Norms:
    """Which gradients are normed together."""

    def __init__(self, grads: list[Tensor]):
        stacks = _stacks(grads) if grads[0].is_cpu else []
        stacked = set(chain(*stacks))
        order = torch_order(grads)
        rests: defaultdict[torch.dtype, list[int]] = defaultdict(list)
        for index in order:
            if index not in stacked:
                rests[grads[index].dtype].append(index)
        self._stacks = [_take(stack) for stack in stacks]
        self._rests = [_take(rest) for rest in rests.values()]
        self._order = _in_order(
            [*stacks, *rests.values()], order, grads[0].device
        )

    def __call__(self, grads: list[Tensor], norm_type: float) -> Tensor:
        parts = []
        for take in self._stacks:
            alike = take(grads)
            stack = torch.stack(alike).view(len(alike), -1)
            parts.append(torch.linalg.vector_norm(stack, norm_type, dim=1))
        norms: list[Tensor] = []
        for take in self._rests:
            found = torch._foreach_norm(take(grads), norm_type)
            # Those of complex and of real gradients may have one dtype.
            if norms and norms[0].dtype != found[0].dtype:
                parts += _vectors(norms)
                norms = []
            norms += found
        if norms:
            parts += _vectors(norms)
        vector = parts[0] if len(parts) == 1 else torch.cat(parts)
        return vector if self._order is None else vector[self._order]


def _stacks(grads: list[Tensor]) -> list[list[int]]:
    """The indices of gradients that can be stacked, stack by stack."""
    alike: defaultdict[Any, list[int]] = defaultdict(list)
    for index, grad in enumerate(grads):
        if (
            0 < grad.numel() <= _STACK_NUMEL
            and grad.dtype in _STACK_DTYPES
            # Others are summed in the order of their memory.
            and grad.is_contiguous()
        ):
            alike[grad.shape, grad.dtype].append(index)
    stacks = []
    for (shape, _), indices in alike.items():
        left = iter(indices)
        rows = (_GRAIN_SIZE - 1) // shape.numel()
        while len(stack := list(islice(left, rows))) >= _STACK_LEAST:
            stacks.append(stack)
    return stacks


def _take(indices: list[int]) -> Callable[[list[Tensor]], Any]:
    if len(indices) == 1:
        return itemgetter(slice(indices[0], indices[0] + 1))
    return itemgetter(*indices)


def torch_order(grads: list[Tensor]) -> list[int]:
    """The order in which torch sums norms: by dtype. The last bits need it."""
    if len({grad.dtype for grad in grads}) == 1:
        return list(range(len(grads)))
    groups = _group_tensors_by_device_and_dtype([[*grads]], True).values()
    return list(chain(*(indices for _, indices in groups)))


def _in_order(
    parts: list[list[int]], order: list[int], device: torch.device
) -> Tensor | None:
    """The index that brings concatenated parts into an order.

    None where they are in that order.
    """
    place = {index: place for place, index in enumerate(chain(*parts))}
    index = [place[index] for index in order]
    if index == sorted(index):
        return None
    return foreach.on_device(index, device)


def _vectors(norms: list[Tensor]) -> list[Tensor]:
    """Puts 0-dim norms of one dtype and device into one vector or two."""
    first = norms[0]
    if not first.is_cpu:
        # Concatenating two with others takes no more launches.
        if len(norms) < 3:
            return [norm.view(1) for norm in norms]
        return [torch.stack(norms)]
    # 165 ns a norm, where torch.stack takes 245 for 0-dim tensors.
    numbers = array("d", map(Tensor.item, norms))
    return [torch.frombuffer(numbers, dtype=torch.float64).to(first.dtype)]
