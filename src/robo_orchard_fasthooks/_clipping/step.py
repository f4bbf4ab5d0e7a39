"""When gradients are clipped, with which settings, and through whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import DistributedType
from accelerate import accelerator as accelerate_module

from robo_orchard_fasthooks._clipping.algorithm import (
    clip_by_norm,
    clip_by_value,
)
from robo_orchard_fasthooks._clipping.parameters import (
    name_of,
    optimizer_gradients,
)

__all__ = ["ClipSettings", "clip_at_step", "clip_gradients"]

# Others (DeepSpeed, XLA, Megatron) clip, or reduce gradients, on their own.
_OURS = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
}


@dataclass(frozen=True, slots=True)
class ClipSettings:
    """The settings of one step, as the attributes of a hook are then."""

    clip_mode: str
    clip_value: float | None
    max_norm: float | None
    norm_type: float
    error_if_nonfinite: bool = False
    foreach: bool | None = None

    @classmethod
    def of(cls, hook: Any) -> ClipSettings:
        """Reads the settings of a hook.

        Args:
            hook (GradientClippingHook): A hook of this package or of
                RoboOrchardLab, which lacks the last two settings.

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
        )

    def bound(self) -> float:
        """The bound that the mode asks for.

        Raises:
            ValueError: The mode is unknown, or its bound is None.
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
        return bound


def clip_at_step(hook: Any, hook_args: Any) -> torch.Tensor | None:
    """Clips if the step succeeded and its gradients are synchronised.

    Args:
        hook (GradientClippingHook): The hook whose settings to use; a hook of
            RoboOrchardLab may be given too.
        hook_args (PipelineHookArgs): Has `accelerator` and `optimizer`, and
            may be RoboOrchardLab's too.

    Returns:
        torch.Tensor | None: The norm before clipping, if it was computed.

    Raises:
        ValueError: There is no optimizer, or a setting is invalid.
        NotImplementedError: A gradient cannot be clipped in this mode.
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
    ends = getattr(hook_args, "is_optimizer_step_boundary", None)
    if not (accelerator.sync_gradients if ends is None else ends):
        return None
    model = getattr(hook_args, "model", None)
    return clip_gradients(ClipSettings.of(hook), accelerator, optimizer, model)


def clip_gradients(
    settings: ClipSettings,
    accelerator: Any,
    optimizer: Any,
    model: Any = None,
) -> torch.Tensor | None:
    """Clips the gradients of an optimizer's parameters.

    Args:
        settings (ClipSettings): The settings of this step.
        accelerator (Accelerator): The accelerator of the run.
        optimizer (torch.optim.Optimizer): The optimizer.
        model (torch.nn.Module | None): The model, where the accelerator does
            not have it.

    Returns:
        torch.Tensor | None: The norm before clipping, if it was computed.

    Raises:
        ValueError: A setting is invalid.
        NotImplementedError: A gradient cannot be clipped in this mode.
        RuntimeError: The norm is not finite and `error_if_nonfinite` is set,
            or the FSDP module of a parameter is unknown.
    """
    bound = settings.bound()
    by_norm = settings.clip_mode == "norm"
    if _clips_by_itself(accelerator, settings.clip_mode):
        if settings.error_if_nonfinite and by_norm:
            raise ValueError(
                "GradientClippingHook: error_if_nonfinite is not supported "
                "where the accelerator clips by its own clip_grad_norm_ "
                f"({type(accelerator).__name__}, "
                f"{getattr(accelerator, 'distributed_type', None)}); leave it "
                "False"
            )
        return _clip_through(settings, accelerator, optimizer)

    def models() -> list[torch.nn.Module]:
        found = [*getattr(accelerator, "_models", ()), model]
        return [each for each in found if isinstance(each, torch.nn.Module)]

    def name(index: int) -> str:
        return name_of(params[index], optimizer, models())

    params, gradients = optimizer_gradients(optimizer, models)
    # A rank without gradients takes part in what the others reduce.
    if not gradients.collective and all(p.grad is None for p in params):
        return None
    _unscale(accelerator, optimizer, params)
    if not by_norm:
        clip_by_value(gradients, params, bound, settings.foreach, name)
        return None
    return clip_by_norm(
        gradients,
        params,
        bound,
        settings.norm_type,
        settings.error_if_nonfinite,
        settings.foreach,
        name,
    )


def _clip_through(
    settings: ClipSettings, accelerator: Any, optimizer: Any
) -> torch.Tensor | None:
    # By identity and once each: two groups may hold the same parameter.
    params = {
        param: None
        for group in optimizer.param_groups
        for param in group["params"]
        if param.requires_grad and param.grad is not None
    }
    if settings.clip_mode == "value":
        if params:
            accelerator.clip_grad_value_(list(params), settings.clip_value)
        return None
    # DeepSpeed keeps gradients to itself, but tells their norm.
    kind = getattr(accelerator, "distributed_type", None)
    if not params and kind != DistributedType.DEEPSPEED:
        return None
    total_norm = accelerator.clip_grad_norm_(
        list(params), settings.max_norm, settings.norm_type
    )
    return None if total_norm is None else torch.as_tensor(total_norm)


def _clips_by_itself(accelerator: Any, clip_mode: str) -> bool:
    """Whether clipping is not accelerate's own, for plain or FSDP training."""
    return (
        not _is_accelerate_s(accelerator, f"clip_grad_{clip_mode}_")
        or accelerator.distributed_type not in _OURS
    )


def _is_accelerate_s(accelerator: Any, name: str) -> bool:
    """Whether a method is neither overridden nor patched."""
    function = getattr(getattr(accelerator, name, None), "__func__", None)
    return getattr(function, "__globals__", None) is vars(accelerate_module)


def _unscale(
    accelerator: Any, optimizer: Any, params: list[torch.Tensor]
) -> None:
    """Unscales the gradients of one optimizer.

    accelerate's clip methods unscale those of all optimizers, which clipping
    for a second one then finds unscaled already.
    """
    if not _is_accelerate_s(accelerator, "unscale_gradients"):
        accelerator.unscale_gradients()
    elif isinstance(optimizer, torch.optim.Optimizer):
        accelerator.unscale_gradients(optimizer)
    else:  # A wrapper of others, of which the scaler is to know.
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
