"""Gradient clipping with the signatures and the bits of torch.nn.utils."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from threading import get_ident
from types import GeneratorType

import torch
from torch import Tensor
from torch.linalg import vector_norm

from robo_orchard_fasthooks.dense import DEVICES, Dense

__all__ = ["clip_grad_norm_", "clip_grad_value_"]

Name = Callable[[int], str]
"""Names a parameter, given by its index, to the user."""


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
    stored = _stored(params)
    total_norm = clip_by_norm(
        stored, params, max_norm, norm_type, error_if_nonfinite, foreach
    )
    return stored.as_torch_returns(total_norm, params)


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
    clip_by_value(_stored(params), params, clip_value, foreach)


def _listed(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    if isinstance(parameters, Tensor):
        return [parameters]
    return list(parameters)


def _by_index(index: int) -> str:
    return f"parameter {index}"


def gradients_of(params: list[Tensor]) -> Dense:
    """How the gradients of parameters are stored: plainly, or sharded."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None or not any(
        issubclass(kind, module.DTensor) for kind in set(map(type, params))
    ):
        return Dense()
    from robo_orchard_fasthooks.sharded import Sharded

    return Sharded()


def _stored(params: list[Tensor]) -> Dense:
    stored = gradients_of(params)
    if type(stored) is Dense:
        return _kept(len(params), get_ident())
    return stored


@lru_cache(maxsize=16)
def _kept(count: int, thread: int) -> Dense:
    """What is kept between calls, of parameters that are likely alike."""
    return Dense()


@torch.no_grad()
def clip_by_norm(
    stored: Dense,
    params: list[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    name: Name = _by_index,
) -> Tensor:
    """Clips as `clip_grad_norm_` does.

    Args:
        stored (Dense): How the gradients are stored, which may be kept from
            step to step.
        params (list[Tensor]): The parameters; this and the next four as in
            `clip_grad_norm_`.
        max_norm (float): The largest norm.
        norm_type (float): The p of the p-norm.
        error_if_nonfinite (bool): Whether a norm has to be finite.
        foreach (bool | None): Whether to use foreach kernels.
        name (Name): Names a parameter in errors.

    Returns:
        Tensor: The norm before clipping, over all ranks; 0-dim and plain.
    """
    max_norm, norm_type = float(max_norm), float(norm_type)
    total_norm, grads = None, list[Tensor]()
    if foreach is not False or type(stored) is not Dense:
        total_norm, grads = stored.total_norm(params, norm_type)
    if total_norm is None:
        try:
            return torch.nn.utils.clip_grad_norm_(
                params, max_norm, norm_type, error_if_nonfinite, foreach
            )
        except NotImplementedError:  # Of the norm: nothing has changed yet.
            _refuse(params, _sparse, name)
            raise
    if error_if_nonfinite and not total_norm.isfinite():
        raise RuntimeError(_not_finite(stored, params, norm_type, name))
    # The formula of torch.nn.utils.clip_grads_with_norm_.
    coefficient = torch.clamp(max_norm / (total_norm + 1e-6), max=1.0)
    # Multiplying by 1 reads and writes every gradient for nothing, but for
    # signs of complex zeros; on CUDA, to look at it is to wait for the device.
    nothing = (
        coefficient.is_cpu
        and coefficient.item() >= 1
        and not stored.has_complex
    )
    if grads and not nothing:
        if not stored.contiguous and not _contiguous(grads):
            _refuse(params, _overlapping, name)
        stored.scale_(grads, coefficient)
    return total_norm


@torch.no_grad()
def clip_by_value(
    stored: Dense,
    params: list[Tensor],
    clip_value: float,
    foreach: bool | None = None,
    name: Name = _by_index,
) -> None:
    """Clips as `clip_grad_value_` does; its arguments are clip_by_norm's."""
    clip_value = float(clip_value)
    grads = stored.local(params)
    if any(dtype.is_complex for dtype in {grad.dtype for grad in grads}):
        _refuse(params, _complex, name)
    if not _contiguous(grads):
        _refuse(params, _sparse, name)
        _refuse(params, _overlapping, name)
    if (
        foreach is False
        or (foreach and not DEVICES >= {grad.device.type for grad in grads})
        or not stored.elementwise(params, grads)
    ):
        torch.nn.utils.clip_grad_value_(params, clip_value, foreach)
    else:
        stored.clamp_(grads, clip_value)


def _contiguous(grads: list[Tensor]) -> bool:
    # Sparse ones are not contiguous, or (CSR) do not answer.
    with suppress(RuntimeError):
        return all(map(Tensor.is_contiguous, grads))
    return False


def _refuse(
    params: list[Tensor], fault: Callable[[Tensor], str | None], name: Name
) -> None:
    """Raises for the first gradient with a fault; nothing has changed yet."""
    for index, param in enumerate(params):
        if param.grad is not None and (what := fault(param.grad)):
            raise NotImplementedError(f"the gradient of {name(index)} {what}")


def _sparse(grad: Tensor) -> str | None:
    if grad.layout == torch.strided:
        return None
    return (
        f"is sparse ({grad.layout}) and cannot be clipped; make it dense (for "
        "an Embedding: sparse=False), or leave its parameter out"
    )


def _complex(grad: Tensor) -> str | None:
    if not grad.is_complex():
        return None
    return "is complex and cannot be clipped by value; clip by norm instead"


def _overlapping(grad: Tensor) -> str | None:
    if grad.layout != torch.strided or all(
        n < 2 or step
        for n, step in zip(grad.shape, grad.stride(), strict=True)
    ):
        return None
    return (
        "has elements that share memory (it is expanded) and cannot be "
        "changed in place; assign grad.clone()"
    )


def _not_finite(
    stored: Dense, params: list[Tensor], norm_type: float, name: Name
) -> str:
    """Says where a norm that is not finite comes from."""
    start = (
        f"the total norm of order {norm_type} of the gradients is not finite"
    )
    for index, param in enumerate(params):
        for grad in stored.local([param]):
            if grad.numel() and not vector_norm(grad, norm_type).isfinite():
                return f"{start}, and that of {name(index)} is not"
    where = " on this rank" if stored.collective else ""
    return f"{start}, though that of each gradient{where} is"
