"""The warning that an optimizer was stepped before clipping."""

from __future__ import annotations

import sys
import warnings
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, WeakSet, ref

from accelerate import DistributedType
from accelerate.optimizer import AcceleratedOptimizer

from robo_orchard_fasthooks._describe import callback_of
from robo_orchard_fasthooks._dispatch import running_phases

__all__ = ["unwrapped", "warn_if_stepped"]

# These clip in the backward pass or in the step of the optimizer, so that the
# order of the hooks does not matter.
_CLIPPED_BY_BACKEND = {
    DistributedType.DEEPSPEED,
    DistributedType.MEGATRON_LM,
}

_channels: WeakKeyDictionary[Any, ReferenceType[Any]] = WeakKeyDictionary()
"""The channel in which each clipping hook was found running."""

_settled: WeakSet[Any] = WeakSet()
"""The clipping hooks that need not be checked again."""


def unwrapped(optimizer: Any) -> Any:
    """Returns the optimizer that accelerate has wrapped, if it has."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


def warn_if_stepped(hook: Any, hook_args: Any, optimizer: Any) -> None:
    """Warns if an OptimizerHook stepped the optimizer earlier in this phase.

    OptimizerHook clears gradients after the step, so that the rest of the
    check is made only if there are none.

    Args:
        hook (GradientClippingHook): The hook that is running, about which it
            warns once. A hook of RoboOrchardLab may be given too.
        hook_args (PipelineHookArgs): What it was called with.
        optimizer (torch.optim.Optimizer): The optimizer to clip for.
    """
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None:
                return
    accelerator = hook_args.accelerator
    kind = getattr(accelerator, "distributed_type", None)
    try:
        if hook in _settled or kind in _CLIPPED_BY_BACKEND:
            return
    except TypeError:  # A subclass that cannot be hashed.
        return
    place = _place(hook, hook_args)
    if place is None:
        return
    channel, hooks, position = place
    stepped_at = _position_of_step(hooks, position, optimizer)
    if stepped_at is None:
        return
    warnings.warn(
        f"GradientClippingHook is at position {position} of {channel.name!r}, "
        f"after OptimizerHook at position {stepped_at}: the optimizer steps "
        "on unclipped gradients. Register GradientClippingHook first (with "
        "HookBasedTrainer: pass it as grad_clip=)",
        stacklevel=_stacklevel(),
    )
    _settled.add(hook)


def _place(
    hook: Any, hook_args: Any
) -> tuple[Any, tuple[Any, ...], int] | None:
    """The channel in which a hook is running, its hooks, and the position."""
    known = _channels.get(hook)
    channel = None if known is None else known()
    if channel is not None:
        hooks = channel._context_handlers
        for position, each in enumerate(hooks):
            if _owner(each) is hook:
                return channel, hooks, position
    for channel, hooks, position in running_phases(hook_args):
        if _owner(hooks[position]) is hook:
            _channels[hook] = ref(channel)
            return channel, hooks, position
    # It is called by another hook, or by a channel of robo_orchard_core.
    _settled.add(hook)
    return None


def _position_of_step(
    hooks: tuple[Any, ...], position: int, optimizer: Any
) -> int | None:
    """The position before `position` whose OptimizerHook stepped `optimizer`.

    All hooks before the running one have run in this phase, so that the
    optimizer that one of them stepped last was stepped in this phase.
    """
    target = id(unwrapped(optimizer))
    owners = [_owner(hook) for hook in hooks]
    steps = [_is_optimizer_hook(owner) for owner in owners]
    for index in reversed(range(position)):
        if not steps[index]:
            continue
        try:
            if owners[index]._stepped == target:
                return index
        except AttributeError:
            # RoboOrchardLab's hook does not say which optimizer it stepped.
            # If the arguments change their optimizer within the phase, as for
            # a GAN, the OptimizerHook for this optimizer comes later.
            if True not in steps[position + 1 :]:
                return index
    return None


def _owner(hook: Any) -> Any:
    """The object whose method a hook calls after the body, or the hook."""
    return getattr(callback_of(hook, "after"), "__self__", hook)


def _is_optimizer_hook(owner: Any) -> bool:
    # By name, since RoboOrchardLab may not be installed.
    return any(cls.__name__ == "OptimizerHook" for cls in type(owner).__mro__)


def _stacklevel() -> int:
    """The `stacklevel` of the code that opened the scope, or ran the trainer.

    It is for a call of warnings.warn in the function that calls this one.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith(
        ("robo_orchard_fasthooks.", "robo_orchard_lab.", "robo_orchard_core.")
    ):
        frame, level = frame.f_back, level + 1
    return level
