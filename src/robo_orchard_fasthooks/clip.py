"""Gradient clipping with the signatures and exact results of torch.nn.utils.

A plan is made once per list, cached, and checked on each call. It refers to no
parameter and no gradient.
"""

import warnings
from collections.abc import Iterable
from functools import lru_cache
from threading import get_ident
from types import GeneratorType

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.utils import clip_grad
from torch.utils._foreach_utils import _device_has_foreach_support

from robo_orchard_fasthooks._clipping import algorithm
from robo_orchard_fasthooks._clipping.gradients import Call, Gradients
from robo_orchard_fasthooks._clipping.groups import replicated
from robo_orchard_fasthooks._cuda_graph import replay

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
    for `torch.nn.utils.clip_grad_norm_`, which has the formula. On CUDA, the
    host waits for the device only if `error_if_nonfinite` is set, or if a rank
    lacks sharded gradients.

    Args:
        parameters (Tensor | Iterable[Tensor]): The parameters whose gradients
            are clipped: plain tensors or DTensors of any floating or complex
            dtype, of any device meshes and placements. A parameter that is
            listed twice counts, and is scaled, twice; on CUDA, where the
            foreach kernels of torch race in that case, its gradient is
            undefined. With DTensors, every rank has to call this with the same
            parameters.
        max_norm (float): The largest norm.
        norm_type (float): The p of the p-norm, `inf` included.
        error_if_nonfinite (bool): Whether a norm that is NaN or infinite is
            an error.
        foreach (bool | None): False calls torch's own function, which loops
            over the gradients; True is an error on devices that have no
            foreach kernels.
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
            no norm of sparse tensors; it has to be scaled, but its elements
            share memory or it was made in inference mode; or it is a DTensor
            with the placement Partial("product"). No gradient has changed.
        RuntimeError: The norm is not finite and `error_if_nonfinite` is set.
            No gradient has changed.
    """
    params = _listed(parameters)
    if not params and isinstance(parameters, GeneratorType):
        warnings.warn(
            "`parameters` is an empty generator, no gradient clipping will "
            "occur.",
            stacklevel=2,
        )
    if _left_to_torch(params, foreach) or float(max_norm) < 0:
        return clip_grad.clip_grad_norm_(
            params, max_norm, norm_type, error_if_nonfinite, foreach
        )
    way = replay if cuda_graph else algorithm
    total_norm, mesh = way.clip_by_norm(
        _call(params), max_norm, norm_type, error_if_nonfinite
    )
    return replicated(total_norm, mesh)


def get_total_norm(
    tensors: _Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Computes the norm of tensors as if they were one vector.

    A drop-in for `torch.nn.utils.get_total_norm`: the first half of
    `clip_grad_norm_`.

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
    found = _listed(tensors)
    if _left_to_torch(found, foreach):
        return clip_grad._get_total_norm(
            found, norm_type, error_if_nonfinite, foreach
        )
    kept = _kept(len(found), 0, get_ident())
    call = Call(kept, found, lambda index: f"tensor {index}", given=found)
    with torch.no_grad():
        total_norm, mesh = algorithm.total_norm(
            call, norm_type, error_if_nonfinite
        )
    return replicated(total_norm, mesh)


def clip_grads_with_norm_(
    parameters: _Tensors,
    max_norm: float,
    total_norm: Tensor,
    foreach: bool | None = None,
) -> None:
    """Scales gradients whose norm is known, in place.

    Each is multiplied by `min(1, max_norm / (total_norm + 1e-6))`. A drop-in
    for `torch.nn.utils.clip_grads_with_norm_`: the second half of
    `clip_grad_norm_`.

    Args:
        parameters (Tensor | Iterable[Tensor]): The parameters whose gradients
            are scaled, as in `clip_grad_norm_`.
        max_norm (float): The largest norm.
        total_norm (Tensor): The norm, 0-dim, on any device: a plain tensor
            that is the same on every rank, or a DTensor, in which case every
            rank has to make this call. A negative norm is not supported.
        foreach (bool | None): As in `clip_grad_norm_`.

    Raises:
        NotImplementedError: A gradient has to be scaled, but its elements
            share memory or it was made in inference mode; or it is a DTensor
            with the placement Partial("product"). No gradient has changed.
    """
    params = _listed(parameters)
    if _left_to_torch(params, foreach) or float(max_norm) < 0:
        clip_grad._clip_grads_with_norm_(params, max_norm, total_norm, foreach)
        return
    algorithm.scale_with_norm_(_call(params), max_norm, total_norm)


def clip_grad_value_(
    parameters: _Tensors,
    clip_value: float,
    foreach: bool | None = None,
    *,
    cuda_graph: bool | None = None,
) -> None:
    """Clamps elements of gradients to `[-clip_value, clip_value]`, in place.

    A drop-in for `torch.nn.utils.clip_grad_value_`. DTensors are clamped shard
    by shard, without communication.

    Args:
        parameters (Tensor | Iterable[Tensor]): The parameters whose gradients
            are clipped: plain tensors or DTensors of any floating dtype.
        clip_value (float): The largest absolute value.
        foreach (bool | None): As in `clip_grad_norm_`.
        cuda_graph (bool | None): As in `clip_grad_norm_`.

    Raises:
        NotImplementedError: A gradient is sparse or complex, its dtype cannot
            represent `clip_value`, its elements share memory, it was made in
            inference mode, or it is a DTensor with the placement Partial of
            another operation than "max" or "min". No gradient has changed.
    """
    params = _listed(parameters)
    if _left_to_torch(params, foreach):
        clip_grad.clip_grad_value_(params, clip_value, foreach)
        return
    way = replay if cuda_graph else algorithm
    way.clip_by_value(_call(params), clip_value)


def _listed(tensors: _Tensors) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _left_to_torch(tensors: list[Tensor], foreach: bool | None) -> bool:
    """Whether torch's own functions are called.

    They raise if foreach=True is not possible. torch.compile, torch.export,
    make_fx and torch.jit.trace record operations to repeat them on other
    tensors, but not plans that are kept nor numbers that are read.
    """
    return (
        torch.compiler.is_compiling()
        or get_proxy_mode() is not None
        or torch._C._is_tracing()
        or foreach is False
        or bool(foreach)
        and not all(_device_has_foreach_support(t.device) for t in tensors)
    )


def _call(params: list[Tensor]) -> Call:
    first = id(params[0]) if params else 0
    return Call(_kept(len(params), first, get_ident()), params)


@lru_cache(maxsize=32)
def _kept(count: int, first: int, thread: int) -> Gradients:
    """Returns what is kept between calls for lists that are likely the same.

    They have the same length, and begin with the same parameter. A thread does
    not share what it keeps.
    """
    return Gradients()
