"""Gradients of parameters that FullyShardedDataParallel has flattened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import isinf
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from typing_extensions import override

from robo_orchard_fasthooks._clipping.dtensor import DTensorGradients
from robo_orchard_fasthooks._clipping.gradients import (
    GradientNorm,
    Gradients,
    by_dtype,
)
from robo_orchard_fasthooks._clipping.local import LocalGradients
from robo_orchard_fasthooks._clipping.mesh import identity_of, reduce_max

__all__ = ["FSDP1Gradients"]


class FSDP1Gradients(Gradients):
    """Gradients of any of the parameters of FSDP modules, in any order.

    FullyShardedDataParallel.clip_grad_norm_ clips all parameters of a model.
    This class has its arithmetic (norms in fp32, the coefficient in the dtype
    of the gradient), and for all parameters its exact results. The norm of
    DTensors, which it does not support, is that of DTensorGradients.

    Args:
        params (list[Tensor]): The parameters, the same ones on every rank.
        models (Iterable[torch.nn.Module]): Where to look for FSDP modules.

    Raises:
        LookupError: A flattened parameter belongs to no FSDP module of these
            models. The only argument of the exception is the parameter.
    """

    collective = True

    def __init__(
        self, params: list[Tensor], models: Iterable[torch.nn.Module]
    ):
        super().__init__()
        self._unsharded = LocalGradients()
        self._dtensors = DTensorGradients()
        place = {id(param): index for index, param in enumerate(params)}
        # In FSDP's order, on which the last bits of the norm depend.
        self._sharded: dict[
            tuple[dist.ProcessGroup, torch.device], list[int]
        ] = {}
        self._whole: list[int] = []
        for handle in _handles(models):
            members = (
                handle.flat_param._params
                if handle._use_orig_params
                else [handle.flat_param]
            )
            indices = [
                index
                for param in members
                if (index := place.pop(id(param), None)) is not None
            ]
            if not handle.uses_sharded_strategy:
                self._whole += indices
            elif indices:
                where = handle.process_group, handle.device
                self._sharded.setdefault(where, []).extend(indices)
        for index in place.values():
            if getattr(params[index], "_fsdp_flattened", False):
                raise LookupError(params[index])
            self._whole.append(index)

    @override
    def unsupported(self, norm_type: float) -> str | None:
        if self._sharded and norm_type == 0:
            return "norm_type 0 is not supported with FSDP1"
        return None

    @override
    def local(self, params: list[Tensor]) -> list[Tensor]:
        return self._dtensors.local(params)

    @override
    def total_norm(
        self,
        params: list[Tensor],
        norm_type: float,
        foreach: bool | None = None,
    ) -> GradientNorm | None:
        if not self._sharded:
            return self._unsharded.total_norm(params, norm_type, foreach)
        dtensors = [params[i] for i in self._whole if _is_dtensor(params[i])]
        grads = [param.grad for param in dtensors]
        # First, since this may refuse a gradient.
        shards = self._dtensors.placed.shards(dtensors, grads)
        wholes = [n for _, n in self._dtensors.norms(grads, shards, norm_type)]
        parts = [
            (_norm(params, indices, norm_type, device), group)
            for (group, device), indices in self._sharded.items()
        ]
        first = parts[0][0]
        plain = [i for i in self._whole if not _is_dtensor(params[i])]
        wholes.append(_norm(params, plain, norm_type, first.device))
        wholes = [norm.to(first) for norm in wholes]
        if isinf(norm_type):
            reduced = [reduce_max(n, norm_type, group) for n, group in parts]
            total = torch.linalg.vector_norm(
                torch.stack([*wholes, *reduced]), norm_type
            )
        else:
            total = first.new_zeros(())
            for norm, group in parts:
                power = norm**norm_type
                dist.all_reduce(power, group=group)
                total += power
            for norm in wholes:
                total += norm**norm_type
            total = total ** (1.0 / norm_type)
        found = self._dtensors.scaling(dtensors, shards, total)
        others = [param for param in params if not _is_dtensor(param)]
        return found._replace(local=found.local + super().local(others))

    @override
    def scale_(self, norm: GradientNorm, coefficient: Tensor) -> None:
        if not self._sharded:
            return super().scale_(norm, coefficient)
        for group in by_dtype(norm.local):
            torch._foreach_mul_(group, coefficient.to(group[0]))

    @override
    def clamp_(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        clip_value: float,
        foreach: bool | None = None,
    ) -> None:
        if any(map(_is_dtensor, params)):
            return self._dtensors.clamp_(params, grads, clip_value, foreach)
        super().clamp_(params, grads, clip_value, foreach)


def _is_dtensor(param: Tensor) -> bool:
    return isinstance(param, DTensor) or isinstance(param.grad, DTensor)


def _handles(models: Iterable[torch.nn.Module]) -> Iterator[Any]:
    seen = set()
    for model in models:
        for module in FullyShardedDataParallel.fsdp_modules(model):
            if module._handle is not None and module not in seen:
                seen.add(module)
                yield module._handle


def _norm(
    params: list[Tensor],
    indices: list[int],
    norm_type: float,
    device: torch.device,
) -> Tensor:
    """The fp32 norm of the gradients of some parameters on this rank."""
    grads = [
        grad
        for index in indices
        if (grad := params[index].grad) is not None and grad.numel()
    ]
    if not grads:
        nothing = identity_of(norm_type)
        return torch.tensor(nothing, dtype=torch.float32, device=device)
    norms = [
        norm
        for group in by_dtype(grads)
        for norm in torch._foreach_norm(group, norm_type, dtype=torch.float32)
    ]
    norm = torch.linalg.vector_norm(torch.stack(norms), norm_type)
    return torch.as_tensor(norm, device=device)
