"""The hook that clips gradients."""

from __future__ import annotations

from math import isnan
from typing import Any, Literal

import torch
from accelerate import DistributedType
from accelerate import accelerator as accelerate_module

from robo_orchard_fasthooks.clip import clip_by_norm, clip_by_value
from robo_orchard_fasthooks.mixin import (
    ClassType,
    HookContext,
    PipelineHookArgs,
    PipelineHooks,
    PipelineHooksConfig,
)
from robo_orchard_fasthooks.parameters import name_of, trainable

__all__ = ["GradientClippingHook", "GradientClippingHookConfig"]


# Others (DeepSpeed, XLA, Megatron) clip, or reduce gradients, on their own.
_OURS = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
}


class GradientClippingHook(PipelineHooks):
    """Clips the gradients of the optimizer's parameters after each step.

    It clips when gradients are synchronised (at the end of an accumulation),
    and does nothing when the step failed. Its settings may be changed between
    steps. Where gradients are sharded, every rank has to run it.

    Note:
        With an OptimizerHook on the same hooks, register this one first:
        callbacks run in the order of registration, and the optimizer is to
        step on clipped gradients. The wrong order is warned of.

    Args:
        cfg (GradientClippingHookConfig): The settings.
    """

    clip_mode: Literal["norm", "value"]
    """Whether to limit the norm of all gradients or each of their values."""

    clip_value: float | None
    """The largest absolute value of a gradient, in mode "value"."""

    max_norm: float | None
    """The largest norm of all gradients together, in mode "norm"."""

    norm_type: float
    """The p of the p-norm, `inf` included, in mode "norm"."""

    error_if_nonfinite: bool
    """Whether a norm that is NaN or infinite is an error, in mode "norm"."""

    foreach: bool | None
    """False loops over plain gradients one by one; True insists on foreach
    kernels, which some devices do not have."""

    total_norm: torch.Tensor | None
    """The last norm before clipping, over all ranks: 0-dim, on the device of
    the gradients. None before the first."""

    def __init__(self, cfg: GradientClippingHookConfig):
        super().__init__()
        self.clip_mode = cfg.clip_mode
        self.clip_value = cfg.clip_value
        self.max_norm = cfg.max_norm
        self.norm_type = cfg.norm_type
        self.error_if_nonfinite = cfg.error_if_nonfinite
        self.foreach = cfg.foreach
        self.total_norm = None
        self.register_hook(
            "on_step", HookContext.from_callable(after=self._gradient_clipping)
        )

    def _gradient_clipping(self, hook_args: PipelineHookArgs) -> None:
        """Clips the gradients.

        Args:
            hook_args (PipelineHookArgs): Has `accelerator` and `optimizer`.

        Raises:
            ValueError: There is no optimizer, or a setting is not what it may
                be.
            NotImplementedError: A gradient cannot be clipped so.
            RuntimeError: The norm is not finite, and that is an error; or the
                FSDP module of a parameter is unknown.
        """
        total_norm = clip_at_step(self, hook_args)
        if total_norm is not None:
            self.total_norm = total_norm


def clip_at_step(settings: Any, hook_args: Any) -> torch.Tensor | None:
    """Clips if the step went well and its gradients are synchronised.

    Args:
        settings (GradientClippingHook): What has the settings of one:
            RoboOrchardLab's hook may be given too.
        hook_args (PipelineHookArgs): Has `accelerator` and `optimizer`, and
            may be RoboOrchardLab's too.

    Returns:
        torch.Tensor | None: The norm before clipping, if it was taken.

    Raises:
        ValueError: There is no optimizer, or a setting is not what it may be.
        NotImplementedError: A gradient cannot be clipped so.
        RuntimeError: The norm is not finite, and that is an error; or the
            FSDP module of a parameter is unknown.
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
    return clip_gradients(settings, accelerator, optimizer, model)


def clip_gradients(
    settings: Any, accelerator: Any, optimizer: Any, model: Any = None
) -> torch.Tensor | None:
    """Clips the gradients of an optimizer's parameters.

    Args:
        settings (GradientClippingHook): What has `clip_mode`, `clip_value`,
            `max_norm` and `norm_type`; it may have `error_if_nonfinite` and
            `foreach`.
        accelerator (Accelerator): The accelerator of the run.
        optimizer (torch.optim.Optimizer): The optimizer.
        model (torch.nn.Module | None): The model, where the accelerator does
            not have it.

    Returns:
        torch.Tensor | None: The norm before clipping, if it was taken.

    Raises:
        ValueError: A setting is not what it may be.
        NotImplementedError: A gradient cannot be clipped so.
        RuntimeError: The norm is not finite, and that is an error; or the
            FSDP module of a parameter is unknown.
    """
    clip_mode = settings.clip_mode
    if clip_mode == "norm":
        setting, limit = "max_norm", settings.max_norm
    elif clip_mode == "value":
        setting, limit = "clip_value", settings.clip_value
    else:
        raise ValueError(
            "GradientClippingHook: clip_mode must be 'norm' or 'value', "
            f"not {clip_mode!r}"
        )
    if limit is None:
        raise ValueError(
            f"GradientClippingHook: {setting} must be specified when "
            f"clip_mode is {clip_mode!r}"
        )
    error_if_nonfinite = getattr(settings, "error_if_nonfinite", False)
    if _clips_by_itself(accelerator, clip_mode):
        if error_if_nonfinite and clip_mode == "norm":
            raise ValueError(
                "GradientClippingHook: error_if_nonfinite cannot be had where "
                "the accelerator clips by its own clip_grad_norm_ "
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

    params, stored = trainable(optimizer, models)
    # A rank without gradients takes part in what the others reduce.
    if not stored.collective and all(p.grad is None for p in params):
        return None
    _unscale(accelerator, optimizer, params)
    foreach = getattr(settings, "foreach", None)
    if clip_mode == "value":
        clip_by_value(stored, params, limit, foreach, name)
        return None
    return clip_by_norm(
        stored,
        params,
        limit,
        settings.norm_type,
        error_if_nonfinite,
        foreach,
        name,
    )


def _clip_through(
    settings: Any, accelerator: Any, optimizer: Any
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


class GradientClippingHookConfig(PipelineHooksConfig[GradientClippingHook]):
    """Makes a GradientClippingHook.

    Raises:
        ValueError: The bound of the mode is missing, negative or NaN, or
            `norm_type` is NaN.
    """

    # JSON has no infinity, and `norm_type` may well be one.
    model_config = {"ser_json_inf_nan": "strings"}

    class_type: ClassType[GradientClippingHook] = GradientClippingHook

    clip_mode: Literal["norm", "value"]
    """Whether to limit the norm of all gradients or each of their values."""

    clip_value: float | None = None
    """The largest absolute value of a gradient, in mode "value"."""

    max_norm: float | None = None
    """The largest norm of all gradients together, in mode "norm"."""

    norm_type: float = 2.0
    """The p of the p-norm, `inf` included, in mode "norm"."""

    error_if_nonfinite: bool = False
    """Whether a norm that is NaN or infinite is an error, in mode "norm"."""

    foreach: bool | None = None
    """False loops over plain gradients one by one; True insists on foreach
    kernels, which some devices do not have."""

    def __post_init__(self) -> None:
        bound = "clip_value" if self.clip_mode == "value" else "max_norm"
        value = getattr(self, bound)
        mode = f"when clip_mode is {self.clip_mode!r}"
        if value is None:
            raise ValueError(f"{bound} must be specified {mode}.")
        if not value >= 0:  # Refuses NaN too.
            raise ValueError(f"{bound} must be non-negative {mode}.")
        if isnan(self.norm_type):
            raise ValueError("norm_type must not be NaN.")
