"""Clipping at a step: whether, with which settings, and by whose method."""

from __future__ import annotations

from math import isnan
from types import ModuleType
from typing import Any, NamedTuple

import torch

from robo_orchard_fasthooks._clipping import algorithm
from robo_orchard_fasthooks._clipping.accelerator import (
    as_norm,
    clip_through,
    clips_by_itself,
)
from robo_orchard_fasthooks._clipping.loss_scaling import (
    unscaled,
    will_unscale,
)
from robo_orchard_fasthooks._clipping.order import warn_if_stepped
from robo_orchard_fasthooks._clipping.parameters import (
    name_of,
    optimizer_gradients,
)
from robo_orchard_fasthooks._clipping.refusals import (
    are_ordinary,
    refuse,
    unclippable,
    unscalable,
    without_foreach,
)

__all__ = ["ClipSettings", "clip_at_step", "clip_gradients"]


# A frozen dataclass of as many fields takes seven times as long to make.
class ClipSettings(NamedTuple):
    """The settings of one step; those of a hook may change between steps."""

    clip_mode: str
    clip_value: float | None
    max_norm: float | None
    norm_type: float
    error_if_nonfinite: bool = False
    foreach: bool | None = None
    cuda_graph: bool | None = None

    @classmethod
    def of(cls, hook: Any) -> ClipSettings:
        """Reads the settings of a hook.

        Args:
            hook (GradientClippingHook): A hook of this package or of
                RoboOrchardLab, which lacks the last three settings.

        Returns:
            ClipSettings: The settings.
        """
        return cls(
            hook.clip_mode,
            hook.clip_value,
            hook.max_norm,
            hook.norm_type,
            getattr(hook, "error_if_nonfinite", False),
            getattr(hook, "foreach", None),
            getattr(hook, "cuda_graph", None),
        )

    def bound(self) -> float:
        """Returns the bound of the mode.

        Raises:
            ValueError: The mode is unknown, its bound is None, negative or
                NaN, `norm_type` is NaN, or one of them is not a number.
        """
        if self.clip_mode == "norm":
            name, value = "max_norm", self.max_norm
            if isnan(_number("norm_type", self.norm_type)):
                raise ValueError(
                    "GradientClippingHook: norm_type must not be NaN"
                )
        elif self.clip_mode == "value":
            name, value = "clip_value", self.clip_value
        else:
            raise ValueError(
                "GradientClippingHook: clip_mode must be 'norm' or 'value', "
                f"not {self.clip_mode!r}"
            )
        if value is None:
            raise ValueError(
                f"GradientClippingHook: {name} must be specified when "
                f"clip_mode is {self.clip_mode!r}"
            )
        bound = _number(name, value)
        if not bound >= 0:  # Refuses NaN too.
            raise ValueError(
                f"GradientClippingHook: {name} must be non-negative when "
                f"clip_mode is {self.clip_mode!r}, not {bound}"
            )
        return bound


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ValueError(
            f"GradientClippingHook: {name} must be a number, not {value!r}"
        ) from None


def clip_at_step(hook: Any, hook_args: Any) -> torch.Tensor | None:
    """Clips if the step succeeded and its gradients are synchronized.

    Args:
        hook (GradientClippingHook): The hook whose settings to use; a hook of
            RoboOrchardLab may be given too.
        hook_args (PipelineHookArgs): Has `accelerator` and `optimizer`; those
            of RoboOrchardLab may be given too.

    Returns:
        torch.Tensor | None: The norm before clipping over all ranks, 0-dim
            and plain; None if no norm was computed.

    Raises:
        ValueError: There is no optimizer, or a setting is invalid.
        NotImplementedError: A gradient cannot be clipped with these settings.
        RuntimeError: The norm is not finite and `error_if_nonfinite` is set,
            or the FSDP module of a parameter is unknown.
    """
    if getattr(hook_args, "exception", None) is not None:
        return None
    optimizer = hook_args.optimizer
    if optimizer is None:
        raise ValueError(
            "GradientClippingHook: the hook arguments have no optimizer; "
            "pass PipelineHookArgs(..., optimizer=)"
        )
    accelerator = hook_args.accelerator
    # RoboOrchardLab 0.5 counts its own micro-steps.
    is_boundary = getattr(hook_args, "is_optimizer_step_boundary", None)
    if is_boundary is None:
        is_boundary = accelerator.sync_gradients
    if not is_boundary:
        return None
    warn_if_stepped(hook, hook_args, optimizer)
    model = getattr(hook_args, "model", None)
    return clip_gradients(ClipSettings.of(hook), accelerator, optimizer, model)


def clip_gradients(
    settings: ClipSettings,
    accelerator: Any,
    optimizer: Any,
    model: Any = None,
) -> torch.Tensor | None:
    """Clips the gradients of an optimizer's parameters.

    Gradients and settings that are not supported are refused before any
    gradient has changed.

    Args:
        settings (ClipSettings): The settings of this step.
        accelerator (Accelerator): The accelerator of the run.
        optimizer (torch.optim.Optimizer): The optimizer.
        model (torch.nn.Module | None): The model, where the accelerator does
            not have it.

    Returns:
        torch.Tensor | None: The norm before clipping over all ranks, 0-dim
            and plain; None if no norm was computed.

    Raises:
        ValueError: A setting is invalid.
        NotImplementedError: A gradient cannot be clipped with these settings.
        RuntimeError: The norm is not finite and `error_if_nonfinite` is set,
            or the FSDP module of a parameter is unknown.
    """
    bound = settings.bound()
    by_norm = settings.clip_mode == "norm"
    if clips_by_itself(accelerator, settings.clip_mode):
        return clip_through(
            accelerator,
            optimizer,
            settings.clip_mode,
            bound,
            settings.norm_type,
            settings.error_if_nonfinite,
        )

    def models() -> list[torch.nn.Module]:
        found = [*getattr(accelerator, "_models", ()), model]
        return [each for each in found if isinstance(each, torch.nn.Module)]

    def name(index: int) -> str:
        return name_of(params[index], optimizer, models())

    params, gradients = optimizer_gradients(optimizer, models)
    # A rank without gradients takes part in the reductions of the others. If
    # only gradients are DTensors, and not parameters, it cannot know of them.
    if not gradients.collective and all(p.grad is None for p in params):
        return None
    if by_norm and (reason := gradients.unsupported(settings.norm_type)):
        raise ValueError(f"GradientClippingHook: {reason}")
    if settings.foreach:
        refuse(params, without_foreach, name)

    way: ModuleType = algorithm
    if settings.cuda_graph:
        from robo_orchard_fasthooks._clipping import replay as way

    def clip() -> torch.Tensor | None:
        if not by_norm:
            way.clip_by_value(gradients, params, bound, settings.foreach, name)
            return None
        norm = way.clip_by_norm(
            gradients,
            params,
            bound,
            settings.norm_type,
            settings.error_if_nonfinite,
            settings.foreach,
            name,
        )
        return as_norm(norm.total_norm)

    if not will_unscale(accelerator):
        return clip()
    # Unscaling changes gradients, those of frozen parameters too. Clipping
    # detects one that it cannot clip only after that; below the bound, it does
    # not look for one at all.
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if not are_ordinary(held) or not (by_norm or bound < 3e38):
        refuse(params, unclippable(by_norm, bound, settings.norm_type), name)
        refuse(
            held,
            unscalable(),
            lambda index: name_of(held[index], optimizer, models()),
        )
    with unscaled(accelerator, optimizer, params):
        return clip()
