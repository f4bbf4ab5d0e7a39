"""Scaling or clamping gradients on CUDA by one kernel for each dtype.

Experimental: it has not run on a GPU. The foreach multiply reads and writes
each gradient even if the coefficient is 1; this kernel then returns at once. A
clamp is one pass over memory, where foreach makes two.
"""

import warnings
from array import array
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor

from robo_orchard_fasthooks._clipping import foreach

OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}
"""Nothing here can be fused, but Triton 3.9 warns unless that is set."""

_Tensors = Sequence[Tensor]


class Tables:
    """Where gradients lie, for the kernel. It refers to none of them.

    It is valid while each gradient stays at its address, with its dtype and
    number of elements, and has to exist until the device has used it. No two
    gradients may be at one address.
    """

    usable = True
    """Whether the kernel could be used so far, in this process."""

    def __init__(self, grads: list[Tensor], clip_value: float = 0.0):
        self._clip_value = clip_value
        self._tables: dict[torch.dtype, tuple[Tensor, int, int]] = {}
        kernel = _kernel()
        for group in foreach.by_dtype(grads) if kernel else ():
            fitting = list(filter(_fits, group))
            if fitting and str(group[0].dtype) in kernel.DTYPES:
                self._tables[group[0].dtype] = _table(
                    fitting, clip_value, kernel.CHUNK.value
                )

    def multiply_(
        self, groups: Sequence[_Tensors], coefficient: Tensor
    ) -> None:
        """As LocalPlan.multiply_, with the same bits."""
        for group in groups:
            if rest := self._run_kernel(group, coefficient):
                foreach.multiply_(rest, coefficient)

    def clamp_(self, groups: Sequence[_Tensors]) -> None:
        """As LocalPlan.clamp_, with the same bits."""
        for group in groups:
            if rest := self._run_kernel(group, None):
                torch._foreach_clamp_min_(rest, -self._clip_value)
                torch._foreach_clamp_max_(rest, self._clip_value)

    def _run_kernel(
        self, grads: _Tensors, coefficient: Tensor | None
    ) -> list[Tensor]:
        """Runs the kernel; returns the gradients that it is not for."""
        dtype = grads[0].dtype
        kernel = _kernel()
        if kernel is None or dtype not in self._tables:
            return [*grads]
        table, rows, chunks = self._tables[dtype]
        clamps = coefficient is None
        number = table[-1:].view(torch.float64) if clamps else coefficient
        kind = kernel.DTYPES[str(dtype)]
        args = (table, rows, number, kind, clamps)
        try:
            kernel.clip_kernel[(chunks,)](*args, **OPTIONS)
        except Exception as error:
            _give_up(error)
            return [*grads]
        return [grad for grad in grads if not _fits(grad)]


def _kernel() -> Any:
    """The module of the kernel; None where it cannot be used."""
    try:
        if Tables.usable:
            from robo_orchard_fasthooks._cuda_graph import kernel

            return kernel
    except Exception as error:
        _give_up(error)
    return None


def _give_up(error: Exception) -> None:
    Tables.usable = False
    warnings.warn(
        "gradients are clipped by foreach kernels, with the same result, "
        "because the Triton kernel of cuda_graph=True cannot be used: "
        f"{type(error).__name__}: {error}",
        stacklevel=2,
    )


def _fits(grad: Tensor) -> bool:
    # torch multiplies 0-dim gradients by a coefficient that is not rounded.
    return bool(grad.dim() and grad.numel()) and grad.is_contiguous()


def _table(
    grads: list[Tensor], clip_value: float, chunk: int
) -> tuple[Tensor, int, int]:
    """The table of the kernel, with the bound behind it; rows; chunks."""
    numels = [grad.numel() for grad in grads]
    *before, chunks = accumulate((-(-n // chunk) for n in numels), initial=0)
    values = array("q", chain(map(Tensor.data_ptr, grads), before, numels))
    values.frombytes(array("d", [clip_value]).tobytes())
    table = torch.frombuffer(values, dtype=torch.int64)
    return foreach.on_device(table, grads[0].device), len(grads), chunks
