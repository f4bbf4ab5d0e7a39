"""Gradient clipping with the signatures and exact results of torch.nn.utils.

How a list of gradients is handled is planned once, kept between calls and
checked at each call. A plan refers to no parameter and no gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import lru_cache
from threading import get_ident
from types import GeneratorType, ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from robo_orchard_fasthooks._clipping import algorithm, torch_functions
from robo_orchard_fasthooks._clipping.gradients import GradientNorm, full
from robo_orchard_fasthooks._clipping.kinds import kind_of
from robo_orchard_fasthooks._clipping.local import LocalGradients
from robo_orchard_fasthooks._clipping.norms import (
    norm_given,
    norm_of_tensors,
)

if TYPE_CHECKING:
    from robo_orchard_fasthooks._clipping.dtensor import DTensorGradients

__all__ = [
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "get_total_norm",
]

_Tensors = Tensor | Iterable[Tensor]


def clip_grad_norm_(
    parameters: _Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    cuda_graph: bool | None = None,
) -> Tensor:
    """Scales gradients so that their norm is at most `max_norm`, in place.

    Each is multiplied by `min(1, max_norm / (total_norm + 1e-6))`. A drop-in
    for `torch.nn.utils.clip_grad_norm_`, which has the formula. On CUDA,
    nothing waits for the device unless `error_if_nonfinite` is set.

    Args:
        parameters (Tensor | Iterable[Tensor]): The parameters whose gradients
            are clipped: plain tensors or DTensors of any floating or complex
            dtype, of any device meshes and placements. A parameter that is
            listed twice counts, and is scaled, twice; on CUDA, where the
            foreach kernels of torch race in that case, its gradient is not
            defined. With DTensors, every rank has to call this with the same
            parameters.
        max_norm (float): The largest norm.
        norm_type (float): The p of the p-norm, `inf` included.
        error_if_nonfinite (bool): Whether a norm that is NaN or infinite is
            an error.
        foreach (bool | None): False loops over plain gradients as torch does;
            True is an error on devices that have no foreach kernels.
        cuda_graph (bool | None): Whether plain gradients on one CUDA device
            are clipped by a CUDA graph that is replayed while they stay at
            their addresses, and by a Triton kernel where Triton is installed.
            None means no. Experimental: it has not run on a GPU. It has no
            effect elsewhere.

    Returns:
        Tensor: The norm of all gradients before clipping: 0-dim, real, of the
            promoted dtype of their norms (that of complex64 is float32). It
            is a DTensor if all gradients are DTensors of one mesh.

    Raises:
        NotImplementedError: A gradient is sparse and torch (before 2.14) has
            no norm of sparse tensors; its elements share memory and it has to
            be scaled; or it is a DTensor with the placement
            Partial("product"), or with Partial("max") or Partial("min") and
            `max_norm` is negative. No gradient has changed.
        RuntimeError: The norm is not finite and `error_if_nonfinite` is set.
            No gradient has changed.
    """
    if _is_traced():
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
    norm: GradientNorm = _way(cuda_graph).clip_by_norm(
        _gradients(params),
        params,
        max_norm,
        norm_type,
        error_if_nonfinite,
        foreach,
    )
    return norm.as_torch_returns()


def get_total_norm(
    tensors: _Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Computes the norm of tensors as if they were one vector.

    A drop-in for `torch.nn.utils.get_total_norm`, which torch has from 2.6 on:
    the first half of `clip_grad_norm_`.

    Args:
        tensors (Tensor | Iterable[Tensor]): The tensors, usually gradients:
            plain ones or DTensors, as in `clip_grad_norm_`. With DTensors,
            every rank has to call this with the same tensors.
        norm_type (float): The p of the p-norm, `inf` included.
        error_if_nonfinite (bool): Whether a norm that is NaN or infinite is
            an error.
        foreach (bool | None): As in `clip_grad_norm_`.

    Returns:
        Tensor: The norm, as `clip_grad_norm_` returns it.

    Raises:
        NotImplementedError: A tensor is sparse and torch (before 2.14) has no
            norm of sparse tensors, or it is a DTensor with the placement
            Partial("product").
        RuntimeError: The norm is not finite and `error_if_nonfinite` is set.
    """
    if _is_traced():
        return torch_functions.get_total_norm(
            tensors, norm_type, error_if_nonfinite, foreach
        )
    found = _listed(tensors)
    with torch.no_grad():
        return norm_of_tensors(
            _gradients(found), found, norm_type, error_if_nonfinite, foreach
        )


def clip_grads_with_norm_(
    parameters: _Tensors,
    max_norm: float,
    total_norm: Tensor,
    foreach: bool | None = None,
) -> None:
    """Scales gradients whose norm is known, in place.

    Each is multiplied by `min(1, max_norm / (total_norm + 1e-6))`. A drop-in
    for `torch.nn.utils.clip_grads_with_norm_`, which torch has from 2.6 on:
    the second half of `clip_grad_norm_`.

    Args:
        parameters (Tensor | Iterable[Tensor]): The parameters whose gradients
            are scaled, as in `clip_grad_norm_`.
        max_norm (float): The largest norm.
        total_norm (Tensor): The norm, 0-dim, on any device: a plain tensor
            that is the same on every rank, or a DTensor, in which case every
            rank has to make this call. A negative norm is not supported.
        foreach (bool | None): As in `clip_grad_norm_`.

    Raises:
        NotImplementedError: The elements of a gradient share memory, or it is
            a DTensor with the placement Partial("product"), or with
            Partial("max") or Partial("min") and `max_norm` is negative. No
            gradient has changed.
    """
    if _is_traced():
        torch_functions.clip_grads_with_norm_(
            parameters, max_norm, total_norm, foreach
        )
        return
    params = _listed(parameters)
    gradients = _gradients(params)
    with torch.no_grad():
        norm = norm_given(gradients, params, full(total_norm), foreach)
        algorithm.scale_to_norm_(gradients, params, norm, max_norm, foreach)


def clip_grad_value_(
    parameters: _Tensors,
    clip_value: float,
    foreach: bool | None = None,
    *,
    cuda_graph: bool | None = None,
) -> None:
    """Clamps each element of gradients to [-clip_value, clip_value], in place.

    A drop-in for `torch.nn.utils.clip_grad_value_`. DTensors are clamped shard
    by shard, without communication, except that those with the placement
    Partial("sum") or Partial("avg"), which torch does not support, are reduced
    first. Every rank has to make that call.

    Args:
        parameters (Tensor | Iterable[Tensor]): The parameters whose gradients
            are clipped: plain tensors or DTensors of any floating dtype.
        clip_value (float): The largest absolute value.
        foreach (bool | None): As in `clip_grad_norm_`.
        cuda_graph (bool | None): As in `clip_grad_norm_`.

    Raises:
        NotImplementedError: A gradient is sparse or complex, its dtype is not
            floating, has 8 bits or (on a CPU) cannot represent `clip_value`,
            its elements share memory, or it is a DTensor with the placement
            Partial("product"). No gradient has changed.
    """
    if _is_traced():
        torch.nn.utils.clip_grad_value_(parameters, clip_value, foreach)
        return
    params = _listed(parameters)
    _way(cuda_graph).clip_by_value(
        _gradients(params), params, clip_value, foreach
    )


def _way(cuda_graph: bool | None) -> ModuleType:
    """The module whose functions clip."""
    if not cuda_graph:
        return algorithm
    from robo_orchard_fasthooks._clipping import replay

    return replay


def _is_traced() -> bool:
    """Whether operations are recorded, to be repeated on other tensors.

    torch.compile, torch.export, make_fx and torch.jit.trace can record neither
    what is kept between calls nor numbers that are read.
    """
    return (
        torch.compiler.is_compiling()
        or get_proxy_mode() is not None
        or torch._C._is_tracing()
    )


def _listed(tensors: _Tensors) -> list[Tensor]:
    if isinstance(tensors, Tensor):
        return [tensors]
    return list(tensors)


def _gradients(tensors: list[Tensor]) -> LocalGradients | DTensorGradients:
    return _kept(kind_of(tensors), len(tensors), get_ident())


@lru_cache(maxsize=16)
def _kept(
    kind: type[LocalGradients] | type[DTensorGradients],
    count: int,
    thread: int,
) -> LocalGradients | DTensorGradients:
    """Returns what is kept between calls for lists of this kind and length.

    Lists of one length are likely to hold the same gradients. A thread does
    not share what it keeps.
    """
    return kind()
