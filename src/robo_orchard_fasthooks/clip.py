"""Gradient clipping with the signatures and the bits of torch.nn.utils."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import lru_cache
from threading import get_ident
from types import GeneratorType

import torch
from torch import Tensor

from robo_orchard_fasthooks._clipping.algorithm import (
    clip_by_norm,
    clip_by_value,
    gradients_of,
)
from robo_orchard_fasthooks._clipping.gradients import Gradients
from robo_orchard_fasthooks._clipping.local import LocalGradients

__all__ = ["clip_grad_norm_", "clip_grad_value_"]


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scales gradients so that their norm is at most `max_norm`.

    They are multiplied by `min(1, max_norm / (total_norm + 1e-6))`, in place:
    a drop-in for torch.nn.utils.clip_grad_norm_, which has the formula. On
    CUDA nothing waits for the device, unless `error_if_nonfinite` is set.

    Args:
        parameters (Tensor | Iterable[Tensor]): Those whose gradients are
            clipped: plain tensors or DTensors of any floating or complex
            dtype. One that is there twice counts, and is scaled, twice. With
            DTensors, every rank has to call this with the same parameters.
        max_norm (float): The largest norm.
        norm_type (float): The p of the p-norm, `inf` included.
        error_if_nonfinite (bool): Whether a norm that is NaN or infinite is
            an error.
        foreach (bool | None): False loops over plain gradients as torch does;
            True is an error on devices that have no foreach kernels.

    Returns:
        Tensor: The norm of all gradients before clipping, 0-dim, of the
            promoted dtype of the gradients (a DTensor for those of one mesh).

    Raises:
        NotImplementedError: A gradient is sparse, and torch (before 2.14)
            has no norm of such.
        RuntimeError: The norm is not finite, and that is an error.
    """
    if torch.compiler.is_compiling():  # What is kept cannot be traced.
        return torch.nn.utils.clip_grad_norm_(
            parameters, max_norm, norm_type, error_if_nonfinite, foreach
        )
    params = _listed(parameters)
    if not params and isinstance(parameters, GeneratorType):
        warnings.warn(
            "`parameters` is an empty generator, no gradient clipping will "
            "occur.",
            stacklevel=2,
        )
    gradients = _gradients(params)
    total_norm = clip_by_norm(
        gradients, params, max_norm, norm_type, error_if_nonfinite, foreach
    )
    return gradients.as_torch_returns(total_norm, params)


def clip_grad_value_(
    parameters: Tensor | Iterable[Tensor],
    clip_value: float,
    foreach: bool | None = None,
) -> None:
    """Clamps each element of gradients to [-clip_value, clip_value], in place.

    A drop-in for torch.nn.utils.clip_grad_value_; gradients that are sharded
    are clamped shard by shard, without communication.

    Args:
        parameters (Tensor | Iterable[Tensor]): Those whose gradients are
            clipped: plain tensors or DTensors of any floating dtype.
        clip_value (float): The largest absolute value.
        foreach (bool | None): As in `clip_grad_norm_`.

    Raises:
        NotImplementedError: A gradient is sparse or complex.
    """
    if torch.compiler.is_compiling():
        torch.nn.utils.clip_grad_value_(parameters, clip_value, foreach)
        return
    params = _listed(parameters)
    clip_by_value(_gradients(params), params, clip_value, foreach)


def _listed(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    if isinstance(parameters, Tensor):
        return [parameters]
    return list(parameters)


def _gradients(params: list[Tensor]) -> Gradients:
    gradients = gradients_of(params)
    if type(gradients) is LocalGradients:
        return _kept(len(params), get_ident())
    return gradients


@lru_cache(maxsize=16)
def _kept(count: int, thread: int) -> LocalGradients:
    """What is kept between calls, of parameters that are likely alike."""
    return LocalGradients()
