"""The base of the three ways in which gradients are stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype

__all__ = ["GradientNorm", "Gradients", "by_dtype"]

_CLAMP_NUMEL = 12288
"""From it on, one pass over memory outweighs a call from Python for each
gradient: of 200 fp32 ones, 0.80x at 8,192 elements, 0.96x here and 1.1x at
16,384; of fp16 0.91x, 1.04x, 1.1x; of bf16 and fp64 from 8,192 on."""


class GradientNorm(NamedTuple):
    """The norm of some gradients, and what computing it found out of them."""

    total_norm: Tensor | None
    """The norm over all ranks, a plain 0-dim tensor; None if the gradients
    have to be left to torch."""

    local: list[Tensor]
    """The gradients, as far as they are on this rank."""

    one_dtype: bool = False
    """Whether all of them are known to have one dtype."""

    has_complex: bool = False
    """Whether any of them is complex."""

    contiguous: bool = False
    """Whether all of them are known to be contiguous."""


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
        self, params: list[Tensor], norm_type: float
    ) -> GradientNorm:
        """Computes the norm of the gradients as if they were one vector.

        Args:
            params (list[Tensor]): The parameters.
            norm_type (float): The p of the p-norm.

        Returns:
            GradientNorm: The norm, and the gradients on this rank.

        Raises:
            RuntimeError: A gradient has no such norm; the error is torch's.
        """

    def unsupported(self, norm_type: float) -> str | None:
        """Says why a norm of this order is not supported; None if it is."""
        return None

    def local(self, params: list[Tensor]) -> list[Tensor]:
        """Lists the gradients, as far as they are on this rank."""
        return [grad for p in params if (grad := p.grad) is not None]

    def elementwise(self, params: list[Tensor], grads: list[Tensor]) -> bool:
        """Whether to clamp the `local` gradients is to clamp the gradients."""
        return set(map(type, grads)) <= {Tensor}

    def as_torch_returns(
        self, total_norm: Tensor, params: list[Tensor]
    ) -> Tensor:
        """The norm as torch.nn.utils.clip_grad_norm_ returns it."""
        return total_norm

    def scale_(self, norm: GradientNorm, coefficient: Tensor) -> None:
        """Multiplies the gradients of a norm by a coefficient, in place.

        Args:
            norm (GradientNorm): Has one gradient or more.
            coefficient (Tensor): The coefficient, 0-dim.
        """
        grads = norm.local
        one = norm.one_dtype or grads[0].is_cpu
        for group in [grads] if one else by_dtype(grads):
            torch._foreach_mul_(group, coefficient.to(group[0].device))

    def clamp_(self, grads: list[Tensor], clip_value: float) -> None:
        """Clamps gradients to [-clip_value, clip_value], in place."""
        # Which way a gradient goes is a matter of speed alone, so that the
        # last choice serves until the list changes its length.
        if len(grads) != self._clamped:
            self._clamped = len(grads)
            self._large = {
                index
                for index, grad in enumerate(grads)
                if grad.numel() >= _CLAMP_NUMEL
            }
        small = grads
        if self._large:
            # Foreach has no clamp; its two halves are two passes.
            for index in self._large:
                grads[index].clamp_(-clip_value, clip_value)
            small = [
                grad
                for index, grad in enumerate(grads)
                if index not in self._large
            ]
        if not small:
            return
        for group in [small] if small[0].is_cpu else by_dtype(small):
            torch._foreach_clamp_min_(group, -clip_value)
            torch._foreach_clamp_max_(group, clip_value)


def by_dtype(grads: Iterable[Tensor]) -> list[list[Tensor]]:
    """Groups one or more gradients by device and dtype, as fused kernels need.

    On CPU, foreach kernels are loops, which take them as they are.
    """
    groups: Any = _group_tensors_by_device_and_dtype([[*grads]]).values()
    return [group for (group,), _ in groups]
