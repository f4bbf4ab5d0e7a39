"""Gradients of parameters that FullyShardedDataParallel has flattened."""

from collections.abc import Iterable, Iterator
from math import isinf
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from typing_extensions import override

from robo_orchard_fasthooks._clipping.foreach import by_dtype
from robo_orchard_fasthooks._clipping.gradients import Call, Gradients
from robo_orchard_fasthooks._clipping.groups import Group
from robo_orchard_fasthooks._clipping.mesh import identity, reduce_max


class FSDP1Gradients(Gradients):
    """Gradients of any of the parameters of FSDP modules, in any order.

    FullyShardedDataParallel.clip_grad_norm_ clips all parameters of a model.
    This class has its arithmetic (norms in fp32, the coefficient in the dtype
    of the gradient), and for all parameters its exact results. DTensors, which
    it does not support, are normed as elsewhere.

    Raises:
        LookupError: A flattened parameter, the argument of the exception,
            belongs to no FSDP module of the models.
    """

    def __init__(
        self, params: list[Tensor], models: Iterable[torch.nn.Module]
    ):
        super().__init__()
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
    def is_collective(self, params: list[Tensor]) -> bool:
        return bool(self._sharded) or super().is_collective(params)

    @override
    def total_norm(self, call: Call, norm_type: float) -> tuple[Tensor, Any]:
        if not self._sharded:
            return super().total_norm(call, norm_type)
        if norm_type == 0:
            raise ValueError("norm_type 0 is not supported with FSDP1")
        params = call.params
        wholes = [g.norm(norm_type) for g in call.groups if g.mesh is not None]
        parts = [
            (_norm(params, indices, norm_type, device), group)
            for (group, device), indices in self._sharded.items()
        ]
        first = parts[0][0]
        wholes.append(_norm(params, self._whole, norm_type, first.device))
        known = [norm.to(first) for norm in wholes if norm is not None]
        if isinf(norm_type):
            reduced = [reduce_max(n, norm_type, group) for n, group in parts]
            return torch.linalg.vector_norm(
                torch.stack([*known, *reduced]), norm_type
            ), None
        total = first.new_zeros(())
        for norm, group in parts:
            power = norm**norm_type
            dist.all_reduce(power, group=group)
            total += power
        for norm in known:
            total += norm**norm_type
        return total ** (1.0 / norm_type), None

    @override
    def multiply_(self, group: Group, coefficient: Tensor) -> None:
        if not self._sharded:
            return super().multiply_(group, coefficient)
        for grads in by_dtype(group.grads):
            torch._foreach_mul_(grads, coefficient.to(grads[0]))


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
    """The fp32 norm of the plain gradients of some parameters on this rank."""
    grads = [
        grad
        for index in indices
        if (grad := params[index].grad) is not None
        and grad.numel()
        and not isinstance(grad, DTensor)
    ]
    if not grads:
        nothing = identity(norm_type)
        return torch.tensor(nothing, dtype=torch.float32, device=device)
    norms = [
        norm
        for group in by_dtype(grads)
        for norm in torch._foreach_norm(group, norm_type, dtype=torch.float32)
    ]
    norm = torch.linalg.vector_norm(torch.stack(norms), norm_type)
    return torch.as_tensor(norm, device=device)
