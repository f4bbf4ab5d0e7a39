"""Loss scaling: gradients are unscaled before they are clipped.

If clipping fails, they are scaled again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from robo_orchard_fasthooks._clipping.accelerator import (
    is_accelerate_method,
)
from robo_orchard_fasthooks._clipping.gradients import local_tensor
from robo_orchard_fasthooks._clipping.order import unwrapped

__all__ = ["unscaled", "will_unscale"]


def will_unscale(accelerator: Any) -> bool:
    """Whether `unscaled` may change gradients."""
    if not is_accelerate_method(accelerator, "unscale_gradients"):
        return True
    scaler = accelerator.scaler
    return scaler is not None and bool(scaler.is_enabled())


@contextmanager
def unscaled(
    accelerator: Any, optimizer: Any, params: list[torch.Tensor]
) -> Iterator[None]:
    """Unscales the gradients of an optimizer, for a body that clips them.

    If the body raises, the gradients are scaled again and the scaler's state
    for this optimizer is reset, so that the next step can unscale them.
    GradScaler.update() would reset the state of every optimizer. The scaler
    keeps its record of infinities, so that update() still lowers the scale.

    Args:
        accelerator (Accelerator): The accelerator, which has the scaler.
        optimizer (torch.optim.Optimizer): The optimizer.
        params (list[Tensor]): Its parameters.
    """
    scaler: Any = getattr(accelerator, "scaler", None)
    # Private, but nothing else resets one optimizer. Were it renamed, the step
    # after an error would fail until GradScaler.update() is called.
    states = getattr(scaler, "_per_optimizer_states", {})
    optimizers = {
        id(each): each
        for each in map(unwrapped, [optimizer, *accelerator._optimizers])
    }

    def unscaled_ids() -> set[int]:
        return {
            key
            for key in optimizers
            if key in states and states[key]["stage"].name == "UNSCALED"
        }

    before = unscaled_ids()
    try:
        _unscale(accelerator, optimizer, params)
        yield
    except BaseException as error:
        overflowed = False
        for key in unscaled_ids() - before:
            # First, so that the next step works even if scaling fails.
            states[key]["stage"] = type(states[key]["stage"]).READY
            _scale(optimizers[key], scaler.get_scale())
            found = states[key]["found_inf_per_device"].values()
            overflowed |= any(map(bool, found))
        if overflowed and hasattr(error, "add_note"):  # Python 3.11.
            error.add_note(
                f"the loss scale is still {scaler.get_scale()}; to lower it, "
                "as after a step that is skipped, call "
                "accelerator.scaler.update()"
            )
        raise


def _unscale(
    accelerator: Any, optimizer: Any, params: list[torch.Tensor]
) -> None:
    # accelerate's clip methods unscale the gradients of all optimizers, so
    # that clipping for a second optimizer fails: they are unscaled already.
    if not is_accelerate_method(accelerator, "unscale_gradients"):
        accelerator.unscale_gradients()
    elif isinstance(optimizer, torch.optim.Optimizer):
        accelerator.unscale_gradients(optimizer)
    else:  # A wrapper of optimizers: the scaler has a state for each of them.
        ids = set(map(id, params))
        accelerator.unscale_gradients(
            [
                each
                for each in accelerator._optimizers
                if any(
                    not ids.isdisjoint(map(id, group["params"]))
                    for group in each.param_groups
                )
            ]
        )


@torch.no_grad()
def _scale(optimizer: torch.optim.Optimizer, scale: float) -> None:
    # A scale is a power of two by default, so that no bit is lost. A parameter
    # that is listed twice has been unscaled twice.
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None:
                # The local tensor, as torch unscales DTensors of any
                # placement but does not multiply Partial("max") in place.
                local_tensor(param.grad).mul_(scale)
