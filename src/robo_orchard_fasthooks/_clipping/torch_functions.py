"""The two halves of torch.nn.utils.clip_grad_norm_, which torch 2.5 lacks."""

from __future__ import annotations

import torch

__all__ = ["clip_grads_with_norm_", "get_total_norm"]

try:
    from torch.nn.utils import clip_grads_with_norm_, get_total_norm
except ImportError:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from torch import Tensor
    from torch.utils._foreach_utils import (
        _device_has_foreach_support,
        _group_tensors_by_device_and_dtype,
        _has_foreach_support,
    )

    _Tensors = Tensor | Iterable[Tensor]

    # As torch 2.6 has them; the arithmetic of 2.5 is the same, in one piece.

    @torch.no_grad()
    def get_total_norm(
        tensors: _Tensors,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
        foreach: bool | None = None,
    ) -> Tensor:
        """As in torch.nn.utils from 2.6 on."""
        tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        norm_type = float(norm_type)
        if not tensors:
            return torch.tensor(0.0)
        norms: list[Tensor] = []
        for group, by_foreach in _groups(tensors, foreach):
            if by_foreach:
                norms += torch._foreach_norm(group, norm_type)
            else:
                norms += [
                    torch.linalg.vector_norm(t, norm_type) for t in group
                ]
        first = tensors[0].device
        total_norm: Tensor = torch.linalg.vector_norm(
            torch.stack([norm.to(first) for norm in norms]), norm_type
        )
        if error_if_nonfinite and not total_norm.isfinite():
            raise RuntimeError(
                f"The total norm of order {norm_type} for gradients from "
                "`parameters` is non-finite, so it cannot be clipped."
            )
        return total_norm

    @torch.no_grad()
    def clip_grads_with_norm_(
        parameters: _Tensors,
        max_norm: float,
        total_norm: Tensor,
        foreach: bool | None = None,
    ) -> None:
        """As in torch.nn.utils from 2.6 on."""
        if isinstance(parameters, Tensor):
            parameters = [parameters]
        grads = [p.grad for p in parameters if p.grad is not None]
        if not grads:
            return
        coefficient = torch.clamp(
            float(max_norm) / (total_norm + 1e-6), max=1.0
        )
        for group, by_foreach in _groups(grads, foreach):
            factor = coefficient.to(group[0].device)
            if by_foreach:
                torch._foreach_mul_(group, factor)
            else:
                for grad in group:
                    grad.mul_(factor)

    def _groups(
        tensors: list[Tensor], foreach: bool | None
    ) -> Iterator[tuple[list[Tensor], bool]]:
        groups: Any = _group_tensors_by_device_and_dtype([[*tensors]])
        for (device, _), ((group,), _) in groups.items():
            if foreach is None:
                yield group, _has_foreach_support(group, device)
            elif foreach and not _device_has_foreach_support(device):
                raise RuntimeError(
                    "foreach=True was passed, but can't use the foreach API "
                    f"on {device.type} tensors"
                )
            else:
                yield group, foreach
