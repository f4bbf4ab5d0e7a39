"""Clipping at a step: whether, with which settings, and by whose method."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from accelerate import DistributedType

from robo_orchard_fasthooks._clipping.algorithm import (
    clip_by_norm,
    clip_by_value,
)
from robo_orchard_fasthooks._clipping.order import warn_if_stepped
from robo_orchard_fasthooks._clipping.parameters import (
    name_of,
    optimizer_gradients,
)
from robo_orchard_fasthooks._clipping.refusals import (
    refuse,
    unclippable,
    without_foreach,
)
from robo_orchard_fasthooks._clipping.scaling import (
    is_accelerate_method,
    unscaled,
    will_unscale,
)

__all__ = ["ClipSettings", "clip_at_step", "clip_gradients"]

# With other types (DeepSpeed, XLA, Megatron-LM), accelerate's own methods are
# called: they reduce gradients first, or leave clipping to the backend.
_CLIPPED_HERE = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
}


@dataclass(frozen=True, slots=True)
class ClipSettings:
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
            ValueError: The mode is unknown, or its bound is None, negative or
                NaN.
        """
        if self.clip_mode == "norm":
            name, bound = "max_norm", self.max_norm
        elif self.clip_mode == "value":
            name, bound = "clip_value", self.clip_value
        else:
            raise ValueError(
                "GradientClippingHook: clip_mode must be 'norm' or 'value', "
                f"not {self.clip_mode!r}"
            )
        if bound is None:
            raise ValueError(
                f"GradientClippingHook: {name} must be specified when "
                f"clip_mode is {self.clip_mode!r}"
            )
        if not bound >= 0:  # Refuses NaN too.
            raise ValueError(
                f"GradientClippingHook: {name} must be non-negative when "
                f"clip_mode is {self.clip_mode!r}, not {bound}"
            )
        return bound


def clip_at_step(hook: Any, hook_args: Any) -> torch.Tensor | None:
    """Clips if the step succeeded and its gradients are synchronised.

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
    if _clips_by_itself(accelerator, settings.clip_mode):
        return _clip_through(settings, accelerator, optimizer)

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

    def clip() -> torch.Tensor | None:
        if settings.cuda_graph:
            from robo_orchard_fasthooks._clipping import replay

            if not by_norm:
                if replay.clip_by_value(
                    gradients, params, bound, settings.foreach
                ):
                    return None
            elif (
                total_norm := replay.clip_by_norm(
                    gradients,
                    params,
                    bound,
                    settings.norm_type,
                    settings.error_if_nonfinite,
                    settings.foreach,
                    name,
                )
            ) is not None:
                return total_norm
        if not by_norm:
            clip_by_value(gradients, params, bound, settings.foreach, name)
            return None
        return _as_norm(
            clip_by_norm(
                gradients,
                params,
                bound,
                settings.norm_type,
                settings.error_if_nonfinite,
                settings.foreach,
                name,
            )
        )

    if not will_unscale(accelerator):
        return clip()
    # Unscaling changes gradients. Clipping detects one that it cannot clip
    # only after that; below the bound, it does not look for one at all.
    refuse(params, unclippable(by_norm, settings.norm_type), name)
    with unscaled(accelerator, optimizer, params):
        return clip()


def _clip_through(
    settings: ClipSettings, accelerator: Any, optimizer: Any
) -> torch.Tensor | None:
    """Clips by the accelerator's own method."""
    by_norm = settings.clip_mode == "norm"
    distributed_type = _distributed_type(accelerator)
    if settings.error_if_nonfinite and by_norm:
        raise ValueError(
            "GradientClippingHook: error_if_nonfinite is not supported where "
            "the accelerator clips by its own clip_grad_norm_ "
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
            accelerator.clip_grad_value_(list(params), settings.clip_value)
        return None
    # DeepSpeed stores gradients outside of `grad`, but returns their norm.
    if not params and distributed_type != DistributedType.DEEPSPEED:
        return None
    return _as_norm(
        accelerator.clip_grad_norm_(
            list(params), settings.max_norm, settings.norm_type
        )
    )


def _as_norm(returned: Any) -> torch.Tensor | None:
    """Makes a 0-dim plain tensor of what a function returned as the norm.

    Returns:
        torch.Tensor | None: None if it is neither a number nor a tensor of
            one element, as an accelerator's own method may return anything.
    """
    if (
        type(returned) is torch.Tensor
        and returned.ndim == 0
        and not returned.requires_grad
    ):
        return returned
    if isinstance(returned, torch.Tensor):
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


def _clips_by_itself(accelerator: Any, clip_mode: str) -> bool:
    """Whether clipping is left to the accelerator's own method."""
    return (
        not is_accelerate_method(accelerator, f"clip_grad_{clip_mode}_")
        or accelerator.distributed_type not in _CLIPPED_HERE
    )


def _distributed_type(accelerator: Any) -> Any:
    return getattr(accelerator, "distributed_type", None)
