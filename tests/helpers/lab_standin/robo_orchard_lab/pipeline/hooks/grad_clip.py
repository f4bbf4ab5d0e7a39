"""Stand-in: the clipping that hook and trainer of 0.5 call."""

from typing import Literal

from accelerate import DistributedType
from robo_orchard_core.utils.hook import HookContext
from robo_orchard_lab.pipeline.hooks.mixin import (
    PipelineHooks,
    PipelineHooksConfig,
)


def _clip_optimizer_gradients(
    accelerator,
    optimizer,
    clip_mode,
    clip_value=None,
    max_norm=None,
    norm_type=2.0,
):
    params = [
        param
        for group in optimizer.param_groups
        for param in group["params"]
        if param.grad is not None
    ]
    if clip_mode == "value":
        accelerator.clip_grad_value_(params, clip_value)
    else:
        accelerator.clip_grad_norm_(params, max_norm, norm_type)


class GradientClippingHook(PipelineHooks):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.register_hook(
            "on_step", HookContext.from_callable(after=self._clip)
        )

    def _clip(self, hook_args):
        if not hook_args.is_optimizer_step_boundary:
            return
        accelerator = hook_args.accelerator
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise RuntimeError("DeepSpeed clips by itself")
        _clip_optimizer_gradients(
            accelerator=accelerator,
            optimizer=hook_args.optimizer,
            clip_mode=self.cfg.clip_mode,
            clip_value=self.cfg.clip_value,
            max_norm=self.cfg.max_norm,
            norm_type=self.cfg.norm_type,
        )


class GradientClippingHookConfig(PipelineHooksConfig):
    class_type: type[GradientClippingHook] = GradientClippingHook
    clip_mode: Literal["norm", "value"]
    clip_value: float | None = None
    max_norm: float | None = None
    norm_type: float = 2.0
