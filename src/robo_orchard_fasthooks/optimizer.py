"""The hook that steps the optimizer."""

from __future__ import annotations

from robo_orchard_fasthooks._stepping.step import mark_stepped, required
from robo_orchard_fasthooks.mixin import (
    ClassType,
    HookContext,
    PipelineHookArgs,
    PipelineHooks,
    PipelineHooksConfig,
)

__all__ = ["OptimizerHook", "OptimizerHookConfig"]


class OptimizerHook(PipelineHooks):
    """Steps the optimizer and the learning rate scheduler after each step.

    It does nothing if the step failed, since its gradients are then
    incomplete. With the trainer of RoboOrchardLab 0.5, which steps the
    optimizer itself, it does nothing either.

    Args:
        cfg (OptimizerHookConfig | None): Holds no settings.

    Raises:
        ValueError: When a scope is left: the arguments have no optimizer, or
            no lr_scheduler.
    """

    def __init__(self, cfg: OptimizerHookConfig | None = None):
        super().__init__()
        self.register_hook(
            "on_step", HookContext.from_callable(after=self._optimizer_step)
        )

    def _optimizer_step(self, hook_args: PipelineHookArgs) -> None:
        if getattr(hook_args, "exception", None) is not None:
            return
        # The trainer of RoboOrchardLab 0.5 steps the optimizer itself.
        if hasattr(hook_args, "is_optimizer_step_committed"):
            return
        optimizer = required("OptimizerHook", hook_args, "optimizer")
        lr_scheduler = required("OptimizerHook", hook_args, "lr_scheduler")
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
        mark_stepped(optimizer, hook_args)


class OptimizerHookConfig(PipelineHooksConfig[OptimizerHook]):
    """The config of an OptimizerHook; calling it creates the hook."""

    model_config = {"extra": "forbid"}

    class_type: ClassType[OptimizerHook] = OptimizerHook
