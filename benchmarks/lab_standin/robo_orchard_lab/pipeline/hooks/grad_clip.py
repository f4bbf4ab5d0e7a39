"""Stand-in: the clipping that hook and trainer of 0.5 call."""

import warnings
from typing import Literal

from accelerate.utils import DistributedType
from robo_orchard_lab.pipeline.hooks.mixin import (
    HookContext,
    PipelineHooks,
    PipelineHooksConfig,
)

__all__ = ["GradientClippingHook", "GradientClippingHookConfig"]


def _clip_optimizer_gradients(
    *, accelerator, optimizer, clip_mode, clip_value, max_norm, norm_type
):
    params = [
        param
        for group in optimizer.param_groups
        for param in group["params"]
        if param.requires_grad and param.grad is not None
    ]
    if not params:
        return
    if clip_mode == "value":
        accelerator.clip_grad_value_(params, clip_value)
    elif clip_mode == "norm":
        accelerator.clip_grad_norm_(params, max_norm, norm_type)


class GradientClippingHook(PipelineHooks):
    def __init__(self, cfg):
        super().__init__()
        warnings.warn(
            "GradientClippingHook is kept for compatibility: give the config "
            "to HookBasedTrainer(..., grad_clip=)",
            FutureWarning,
            stacklevel=2,
        )
        self.clip_mode = cfg.clip_mode
        self.clip_value = cfg.clip_value
        self.max_norm = cfg.max_norm
        self.norm_type = cfg.norm_type
        self.register_hook(
            "on_step",
            HookContext.from_callable(
                after=self._gradient_clipping, before=None
            ),
        )

    def _gradient_clipping(self, hook_args):
        if hook_args.exception is not None:
            return
        if hook_args.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise RuntimeError(
                "GradientClippingHook cannot run when DeepSpeed is active"
            )
        if hook_args.optimizer is None:
            raise ValueError("the hook arguments have no optimizer")
        if hook_args.is_optimizer_step_boundary:
            _clip_optimizer_gradients(
                accelerator=hook_args.accelerator,
                optimizer=hook_args.optimizer,
                clip_mode=self.clip_mode,
                clip_value=self.clip_value,
                max_norm=self.max_norm,
                norm_type=self.norm_type,
            )


class GradientClippingHookConfig(PipelineHooksConfig[GradientClippingHook]):
    class_type: type[GradientClippingHook] = GradientClippingHook
    clip_mode: Literal["norm", "value"]
    clip_value: float | None = None
    max_norm: float | None = None
    norm_type: float = 2.0

    def __post_init__(self) -> None:
        bound = "clip_value" if self.clip_mode == "value" else "max_norm"
        if getattr(self, bound) is None:
            raise ValueError(f"{bound} must be specified")
        if getattr(self, bound) < 0:
            raise ValueError(f"{bound} must be non-negative")
