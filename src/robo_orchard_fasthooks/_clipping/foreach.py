"""torch's foreach functions, in few launches and bitwise equal to torch."""

from collections.abc import Iterable
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype


def by_dtype(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Groups one or more tensors by device and dtype, as fused kernels need.

    On a CPU, the foreach functions are loops, which accept any list.
    """
    groups: Any = _group_tensors_by_device_and_dtype([[*tensors]]).values()
    return [group for (group,), _ in groups]


def multiply_(
    tensors: tuple[Tensor, ...] | list[Tensor], coefficient: Tensor
) -> None:
    """Multiplies tensors by a 0-dim coefficient on their device, in place.

    On CUDA, torch multiplies tensors by a coefficient of another dtype one by
    one, and rounds the coefficient to the dtype of each tensor that has
    dimensions. If it is rounded beforehand, a few launches suffice. Tensors
    that are not on a CPU have to be of one dtype.
    """
    dtype = tensors[0].dtype
    if (
        coefficient.dtype != dtype
        and coefficient.is_cuda
        and not dtype.is_complex  # By a complex coefficient, inf makes NaN.
    ):
        fused = list(map(_has_fused_kernel, tensors))
        if sum(fused) > 2:  # The cast is a launch, too.
            torch._foreach_mul_(
                list(compress(tensors, fused)), coefficient.to(dtype)
            )
            tensors = [
                tensor
                for tensor, done in zip(tensors, fused, strict=True)
                if not done
            ]
    if tensors:
        torch._foreach_mul_(tensors, coefficient)


def _has_fused_kernel(tensor: Tensor) -> bool:
    """Whether torch scales it by the fused kernel, which rounds first."""
    if not tensor.dim() or not tensor.numel():
        return False
    if tensor.is_contiguous():
        return True
    # The kernel needs memory without gaps, in any order of dimensions.
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).is_contiguous()


def on_device(values: list[Any] | Tensor, device: torch.device) -> Tensor:
    """Makes a vector on a device, without waiting for the device."""
    # Not on torch's default device, which may be another one.
    vector = torch.as_tensor(values, device="cpu")
    if device.type != "cuda":
        return vector.to(device)
    if type(vector) is Tensor:
        vector = vector.pin_memory()
    return vector.to(device, non_blocking=True)
