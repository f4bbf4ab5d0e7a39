"""Clipping at a step: whether, with which settings, and by whose method."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from math import isnan
from typing import Any, NamedTuple
from weakref import ReferenceType, WeakKeyDictionary, WeakSet, ref

from torch import Tensor

from robo_orchard_fasthooks._clipping import algorithm, refusals
from robo_orchard_fasthooks._clipping.groups import Group
from robo_orchard_fasthooks._cuda_graph import replay
from robo_orchard_fasthooks._stepping.accelerator import (
    CLIPPED_BY_BACKEND,
    as_norm,
    clip_through,
    clips_by_itself,
    unscaled,
    unwrapped,
    will_unscale,
)
from robo_orchard_fasthooks._stepping.parameters import OptimizerParameters


# A frozen dataclass of as many fields takes seven times as long to make.
class ClipSettings(NamedTuple):
    """The settings of one step; those of a hook may change between steps."""

    clip_mode: str
    clip_value: float | None
    max_norm: float | None
    norm_type: float
    error_if_nonfinite: bool = False
    cuda_graph: bool | None = None

    @classmethod
    def of(cls, source: Any) -> ClipSettings:
        """Reads a hook or config; RoboOrchardLab's lack the last two."""
        return cls(
            source.clip_mode,
            source.clip_value,
            source.max_norm,
            source.norm_type,
            getattr(source, "error_if_nonfinite", False),
            getattr(source, "cuda_graph", None),
        )

    def bound(self) -> float:
        """Returns the bound of the mode, or raises ValueError."""
        if self.clip_mode == "norm":
            name, value = "max_norm", self.max_norm
            if isnan(_number("norm_type", self.norm_type)):
                raise ValueError("norm_type must not be NaN.")
        elif self.clip_mode == "value":
            name, value = "clip_value", self.clip_value
        else:
            raise ValueError(
                f"clip_mode must be 'norm' or 'value', not {self.clip_mode!r}."
            )
        when = f"when clip_mode is {self.clip_mode!r}"
        if value is None:
            raise ValueError(f"{name} must be specified {when}.")
        bound = _number(name, value)
        if not bound >= 0:  # Refuses NaN too.
            raise ValueError(f"{name} must be non-negative {when}.")
        return bound


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ValueError(f"{name} must be a number, not {value!r}.") from None


def required(hook: str, hook_args: Any, name: str) -> Any:
    """Returns an argument that a hook needs, or raises ValueError."""
    value = getattr(hook_args, name)
    if value is None:
        raise ValueError(
            f"{hook}: the hook arguments have no {name}; pass "
            f"PipelineHookArgs(..., {name}=)"
        )
    return value


def clip_at_step(hook: Any, hook_args: Any) -> Tensor | None:
    """Clips if the step succeeded and its gradients are synchronized.

    Hook and arguments may be RoboOrchardLab's, too.
    """
    if getattr(hook_args, "exception", None) is not None:
        return None
    optimizer = required("GradientClippingHook", hook_args, "optimizer")
    accelerator = required("GradientClippingHook", hook_args, "accelerator")
    # RoboOrchardLab 0.5 counts its own micro-steps.
    is_boundary = getattr(hook_args, "is_optimizer_step_boundary", None)
    if is_boundary is None:
        is_boundary = accelerator.sync_gradients
    if not is_boundary:
        return None
    with suppress(TypeError):  # Not every object can be referred to weakly.
        _warn_if_stepped(hook, hook_args, unwrapped(optimizer))
    model = getattr(hook_args, "model", None)
    return clip_gradients(ClipSettings.of(hook), accelerator, optimizer, model)


def clip_gradients(
    settings: ClipSettings, accelerator: Any, optimizer: Any, model: Any = None
) -> Tensor | None:
    """Clips the gradients of an optimizer's parameters.

    Gradients and settings that are not supported are refused before any
    gradient has changed; see GradientClippingHook for what is raised.

    Returns:
        Tensor | None: The norm before clipping over all ranks, 0-dim and
            plain; None if no norm was computed.
    """
    bound = settings.bound()
    if clips_by_itself(accelerator, settings.clip_mode):
        return clip_through(
            accelerator,
            optimizer,
            settings.clip_mode,
            bound,
            settings.norm_type,
            settings.error_if_nonfinite,
        )
    found = OptimizerParameters(optimizer, accelerator, model)
    # A rank without gradients takes part in the reductions of the others. If
    # only gradients are DTensors, and not parameters, it cannot know of them.
    if all(param.grad is None for param in found.params) and not (
        found.gradients.is_collective(found.params)
    ):
        return None
    if not will_unscale(accelerator):
        return _clip(settings, bound, found)
    _refuse_before_unscaling(settings, bound, found)
    with unscaled(accelerator, optimizer, found.params):
        return _clip(settings, bound, found)


def _clip(
    settings: ClipSettings, bound: float, found: OptimizerParameters
) -> Tensor | None:
    call = found.call(found.params)
    way = replay if settings.cuda_graph else algorithm
    if settings.clip_mode == "value":
        way.clip_by_value(call, bound)
        return None
    total_norm, _ = way.clip_by_norm(
        call, bound, settings.norm_type, settings.error_if_nonfinite
    )
    return as_norm(total_norm)


def _refuse_before_unscaling(
    settings: ClipSettings, bound: float, found: OptimizerParameters
) -> None:
    """Unscaling changes gradients, so refuse what cannot be clipped first.

    A scaler unscales the gradients of frozen parameters, too.
    """
    by_norm = settings.clip_mode == "norm"
    held = found.call(found.all_params())
    if all(
        isinstance(group, Group)
        and group.mesh is None
        and group.plan is not None
        and not group.plan.has_complex
        and group.plan.is_writable
        and (by_norm or group.plan.can_clamp(bound))
        for group in held.groups
    ):
        return
    checks = refusals.by_value(bound)
    if by_norm:
        norm_type = float(settings.norm_type)
        checks = (refusals.sparse_without_norm(norm_type), refusals.unscalable)
    found.call(found.params).refuse(*checks)
    held.refuse(*refusals.by_grad_scaler())


_STEPPED: WeakKeyDictionary[Any, ReferenceType[Any]] = WeakKeyDictionary()
"""The arguments with which an OptimizerHook last stepped each optimizer."""

_CHECKED: WeakKeyDictionary[Any, WeakSet[Any]] = WeakKeyDictionary()
"""The optimizers for which each clipping hook has clipped."""


def mark_stepped(optimizer: Any, hook_args: Any) -> None:
    """Marks that an OptimizerHook has stepped an optimizer."""
    with suppress(TypeError):  # Not every object can be referred to weakly.
        _STEPPED[unwrapped(optimizer)] = ref(hook_args)


def _warn_if_stepped(hook: Any, hook_args: Any, optimizer: Any) -> None:
    """Warns if an OptimizerHook has stepped the optimizer before clipping.

    Only the hook's first clipping for an optimizer is checked: the arguments
    may be used again, with a step without gradients.
    """
    checked = _CHECKED.get(hook)
    if checked is None:
        checked = _CHECKED[hook] = WeakSet()
    if optimizer in checked:
        return
    checked.add(optimizer)
    stepped_for = _STEPPED.get(optimizer)
    kind = getattr(hook_args.accelerator, "distributed_type", None)
    if (
        stepped_for is None
        or stepped_for() is not hook_args
        or kind in CLIPPED_BY_BACKEND
        or any(
            param.grad is not None
            for group in optimizer.param_groups
            for param in group["params"]
        )
    ):
        return
    # Blame the code that opened the scope, or that runs the trainer.
    frame, level = sys._getframe(), 1
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith(
        ("robo_orchard_fasthooks.", "robo_orchard_lab.", "robo_orchard_core.")
    ):
        frame, level = frame.f_back, level + 1
    warnings.warn(
        "GradientClippingHook ran after OptimizerHook had stepped the "
        "optimizer, which steps on gradients that are not clipped. Register "
        "GradientClippingHook before OptimizerHook (with HookBasedTrainer: "
        "pass it as grad_clip=)",
        stacklevel=level,
    )
