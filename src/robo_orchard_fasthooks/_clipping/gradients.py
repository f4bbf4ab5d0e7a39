"""The base of the three ways in which gradients are stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype

__all__ = [
    "GradientNorm",
    "Gradients",
    "LeftToTorch",
    "are_plain",
    "by_dtype",
    "full",
    "local_tensor",
    "multiply_",
    "on_device",
    "replicated",
]

_CLAMP_NUMEL = 12288
"""The elements from which on a gradient is clamped by itself, in one pass over
memory, and not by two foreach calls for all. The speed-up by that for 200
gradients of 8,192, 12,288 and 16,384 elements was 0.80x, 0.96x and 1.1x for
fp32, and 0.91x, 1.04x and 1.1x for fp16; bf16 and fp64 gain from 8,192 on."""

_Tensors = list[Tensor] | tuple[Tensor, ...]

LeftToTorch = tuple[Any, list[Tensor]]
"""A device mesh, or None for plain gradients, and parameters with gradients of
it: torch's functions do not accept gradients of several meshes at once."""


class GradientNorm(NamedTuple):
    """The norm of some gradients, and what is needed to scale them."""

    total_norm: Tensor
    """The norm over all ranks: plain, 0-dim."""

    local: list[Tensor]
    """The gradients to scale, as far as they are on this rank."""

    groups: Sequence[_Tensors] = ()
    """All of `local`, by dtype unless they are on CPU; none if not known."""

    has_complex: bool = False
    """Whether any of `local` is complex."""

    contiguous: bool = False
    """Whether all of `local` are known to be contiguous."""

    left_to_torch: Sequence[LeftToTorch] = ()
    """What torch's functions have to scale, group by group."""

    mesh: Any = None
    """The device mesh, if all gradients are DTensors of one."""

    def as_torch_returns(self) -> Tensor:
        """The total norm as torch.nn.utils.clip_grad_norm_ returns it."""
        return replicated(self.total_norm, self.mesh)


class Gradients(ABC):
    """The gradients of a list of parameters, stored in one way.

    An object may be kept from step to step. It holds no gradient, and checks
    what it has planned against the gradients that it is given.
    """

    collective: ClassVar[bool] = False
    """Whether `total_norm` communicates, so that every rank has to call it."""

    def __init__(self) -> None:
        self._clamped = 0
        self._large: set[int] = set()

    @abstractmethod
    def total_norm(
        self,
        params: list[Tensor],
        norm_type: float,
        foreach: bool | None = None,
    ) -> GradientNorm | None:
        """Computes the norm of the gradients as if they were one vector.

        Args:
            params (list[Tensor]): The parameters.
            norm_type (float): The p of the p-norm.
            foreach (bool | None): False leaves plain gradients to torch.

        Returns:
            GradientNorm | None: The norm, and how to scale the gradients;
                None if all of them have to be left to torch.

        Raises:
            RuntimeError: A gradient has no such norm; the error is torch's.
            NotImplementedError: A gradient cannot be clipped.
        """

    def unsupported(self, norm_type: float) -> str | None:
        """Says why a norm of this order is not supported; None if it is."""
        return None

    def local(self, params: list[Tensor]) -> list[Tensor]:
        """Lists the gradients, as far as they are on this rank."""
        return [grad for p in params if (grad := p.grad) is not None]

    def scale_(self, norm: GradientNorm, coefficient: Tensor) -> None:
        """Multiplies the local gradients by a coefficient, in place.

        Args:
            norm (GradientNorm): Has one local gradient or more.
            coefficient (Tensor): The coefficient, 0-dim.
        """
        grads = norm.local
        groups = norm.groups
        if not groups:
            groups = [grads] if grads[0].is_cpu else by_dtype(grads)
        for group in groups:
            multiply_(group, coefficient.to(group[0].device))

    def clamp_(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        clip_value: float,
        foreach: bool | None = None,
    ) -> None:
        """Clamps gradients to [-clip_value, clip_value], in place.

        Args:
            params (list[Tensor]): The parameters.
            grads (list[Tensor]): Their `local` gradients.
            clip_value (float): The largest absolute value.
            foreach (bool | None): For gradients that are left to torch.

        Raises:
            NotImplementedError: A gradient cannot be clamped; nothing has
                changed.
        """
        groups: Sequence[_Tensors] = [grads] if grads else []
        # Only the device of the first is looked at, since to ask each of 1,000
        # small gradients costs 6 % of the instructions. Another one on CUDA
        # is then clamped by itself: more launches, and torch's bits unless
        # clip_value is 0.
        if (
            grads
            and grads[0].is_cpu
            and (clip_value or all(grad.is_cpu for grad in grads))
        ):
            # Which way a gradient goes is a matter of speed alone, so that
            # the last choice serves until the list changes its length.
            if len(grads) != self._clamped:
                self._clamped = len(grads)
                self._large = {
                    index
                    for index, grad in enumerate(grads)
                    if grad.numel() >= _CLAMP_NUMEL
                }
            # Foreach has no clamp; its two halves are two passes.
            for index in self._large:
                grads[index].clamp_(-clip_value, clip_value)
            if self._large:
                small = [
                    grad
                    for index, grad in enumerate(grads)
                    if index not in self._large
                ]
                groups = [small] if small else []
        elif grads:
            # On CUDA, `clamp_` is a launch for each gradient, and may give
            # -0.0 where clip_value is 0 and the foreach kernels give 0.0.
            groups = by_dtype(grads)
        for group in groups:
            torch._foreach_clamp_min_(group, -clip_value)
            torch._foreach_clamp_max_(group, clip_value)


def multiply_(grads: _Tensors, coefficient: Tensor) -> None:
    """Multiplies gradients by a coefficient, in place, with torch's bits.

    On CUDA, torch multiplies gradients by a coefficient of another dtype one
    by one, and rounds the coefficient to the dtype of each gradient that has
    dimensions. If it is rounded beforehand, a few launches suffice.

    Args:
        grads (list[Tensor] | tuple[Tensor, ...]): One or more, of one device,
            and of one dtype unless they are on CPU.
        coefficient (Tensor): The coefficient: real, 0-dim, on their device.
    """
    dtype = grads[0].dtype
    if (
        coefficient.dtype != dtype
        and coefficient.is_cuda
        and not dtype.is_complex  # By a complex coefficient, inf makes NaN.
    ):
        fused = list(map(_fuses, grads))
        if sum(fused) > 2:  # The cast is a launch, too.
            torch._foreach_mul_(
                list(compress(grads, fused)), coefficient.to(dtype)
            )
            grads = [
                grad
                for grad, done in zip(grads, fused, strict=True)
                if not done
            ]
    if grads:
        torch._foreach_mul_(grads, coefficient)


def _fuses(grad: Tensor) -> bool:
    """Whether foreach kernels scale it, and torch rounds the coefficient."""
    if not grad.dim() or not grad.numel():
        return False
    if grad.is_contiguous():
        return True
    # They need memory without gaps, in any order of dimensions.
    order = sorted(range(grad.dim()), key=grad.stride, reverse=True)
    return grad.permute(order).is_contiguous()


def are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether one or more tensors are of torch.Tensor itself.

    torch's FakeTensor counts as such on CUDA. On CPU, numbers are read, which
    it does not have.
    """
    kinds = set(map(type, tensors))
    return kinds == {Tensor} or (
        kinds == {FakeTensor} and all(tensor.is_cuda for tensor in tensors)
    )


def on_device(values: list[Any], device: torch.device) -> Tensor:
    """Makes a vector on a device, without waiting for the device."""
    # Not on torch's default device, which may be another one.
    vector = torch.tensor(values, device="cpu")
    if device.type != "cuda":
        return vector.to(device)
    if type(vector) is Tensor:
        vector = vector.pin_memory()
    return vector.to(device, non_blocking=True)


def by_dtype(grads: Iterable[Tensor]) -> list[list[Tensor]]:
    """Groups one or more gradients by device and dtype, as fused kernels need.

    On CPU, foreach kernels are loops, which accept any list.
    """
    groups: Any = _group_tensors_by_device_and_dtype([[*grads]]).values()
    return [group for (group,), _ in groups]


def replicated(total_norm: Tensor, mesh: Any) -> Tensor:
    """A norm that every rank has, as a DTensor of a mesh if there is one."""
    if mesh is None:
        return total_norm
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(
        total_norm, mesh, [Replicate()] * mesh.ndim, run_check=False
    )


def local_tensor(tensor: Tensor) -> Tensor:
    """What this rank has of a DTensor; any other tensor itself."""
    local: Tensor = getattr(tensor, "_local_tensor", tensor)
    return local


def full(tensor: Tensor) -> Tensor:
    """The plain tensor of a DTensor, the same on all ranks of its mesh."""
    whole: Tensor = getattr(tensor, "full_tensor", lambda: tensor)()
    return whole
