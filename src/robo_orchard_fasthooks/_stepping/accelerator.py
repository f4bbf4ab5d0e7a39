"""What an accelerator does itself: clip by its methods, scale the loss."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from numbers import Real
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate import accelerator as accelerate_module
from accelerate.optimizer import AcceleratedOptimizer
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import utils

from robo_orchard_fasthooks._clipping.refusals import local_tensor

# With other types (DeepSpeed, XLA, Megatron-LM), accelerate's own methods are
# called: they reduce gradients first, or leave clipping to the backend.
_CLIPPED_HERE = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
}

CLIPPED_BY_BACKEND = {DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM}
"""Types that clip in the backward pass or in the step of the optimizer."""

# What accelerate's methods call by name, and a program may have replaced.
_METHODS = {"norm": ["clip_grad_norm_"], "value": ["clip_grad_value_"]}
if hasattr(Accelerator, "_clip_grad_norm_dtensor_aware"):  # accelerate 1.15.
    _METHODS["norm"].append("_clip_grad_norm_dtensor_aware")
_FUNCTIONS = {
    "norm": ["clip_grad_norm_", "get_total_norm", "clip_grads_with_norm_"],
    "value": ["clip_grad_value_"],
}
_HOMES = {"torch.nn.utils.clip_grad", "robo_orchard_fasthooks.clip"}
_SEEN: dict[str, Any] = {}  # Functions known to be from there.


def unwrapped(optimizer: Any) -> Any:
    """Returns the optimizer that accelerate has wrapped, if it has."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


def is_accelerate_method(accelerator: Any, name: str) -> bool:
    """Whether a method is accelerate's, neither overridden nor patched."""
    function = getattr(getattr(accelerator, name, None), "__func__", None)
    return getattr(function, "__globals__", None) is vars(accelerate_module)


def is_torch_function(name: str) -> bool:
    """Whether torch.nn.utils still has torch's function, or ours."""
    function = getattr(utils, name)
    if function is not _SEEN.get(name):
        # torch wraps it in a no_grad of the same module.
        for each in (function, getattr(function, "__wrapped__", function)):
            home = getattr(each, "__globals__", {}).get("__name__")
            if home not in _HOMES:
                return False
        _SEEN[name] = function
    return True


def clips_by_itself(accelerator: Any, clip_mode: str) -> bool:
    """Whether clipping is left to the accelerator's own method."""
    for name in _METHODS[clip_mode]:
        if not is_accelerate_method(accelerator, name):
            return True
    for name in _FUNCTIONS[clip_mode]:
        if not is_torch_function(name):
            return True
    return accelerator.distributed_type not in _CLIPPED_HERE


def clip_through(
    accelerator: Any,
    optimizer: Any,
    clip_mode: str,
    bound: float,
    norm_type: float,
    error_if_nonfinite: bool,
) -> torch.Tensor | None:
    """Clips by the accelerator's own method."""
    by_norm = clip_mode == "norm"
    distributed_type = getattr(accelerator, "distributed_type", None)
    if error_if_nonfinite and by_norm:
        raise ValueError(
            "GradientClippingHook: error_if_nonfinite is not supported where "
            "the accelerator clips by its own clip_grad_norm_, or by a "
            "function that a program has put in place of torch's "
            f"({type(accelerator).__name__}, {distributed_type}); leave it "
            "False"
        )
    # Each parameter once: two groups may hold the same one.
    params = {
        param: None
        for group in optimizer.param_groups
        for param in group["params"]
        if param.requires_grad and param.grad is not None
    }
    if not by_norm:
        if params:
            accelerator.clip_grad_value_(list(params), bound)
        return None
    # DeepSpeed stores gradients outside of `grad`, but returns their norm.
    if not params and distributed_type != DistributedType.DEEPSPEED:
        return None
    return as_norm(accelerator.clip_grad_norm_(list(params), bound, norm_type))


def as_norm(returned: Any) -> torch.Tensor | None:
    """Makes a 0-dim plain tensor of what a function returned as the norm.

    None if it is neither a number nor a tensor of one element, as an
    accelerator's own method may return anything.
    """
    if isinstance(returned, torch.Tensor):
        if (
            type(returned) in (torch.Tensor, FakeTensor)
            and returned.ndim == 0
            and not returned.requires_grad
        ):
            return returned
        if hasattr(returned, "full_tensor"):  # A DTensor.
            returned = returned.full_tensor()
        if hasattr(returned, "wait"):  # The result of a collective.
            returned = returned.wait()
        if returned.numel() != 1 or returned.layout != torch.strided:
            return None
        norm: torch.Tensor = returned.detach().as_subclass(torch.Tensor)
        return norm.reshape(())
    if isinstance(returned, Real) and not isinstance(returned, bool):
        with suppress(OverflowError):  # An integer can be too large.
            return torch.tensor(float(returned))
    return None


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
