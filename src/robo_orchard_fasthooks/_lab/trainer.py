"""This package's clipping in the HookBasedTrainer of RoboOrchardLab 0.5.

That trainer does the clipping itself. It finds the config by RoboOrchardLab's
own classes, and applies the four settings that these have.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from robo_orchard_fasthooks._lab.patching import PatchError
from robo_orchard_fasthooks._stepping.step import ClipSettings, clip_gradients
from robo_orchard_fasthooks.grad_clip import (
    GradientClippingHook,
    GradientClippingHookConfig,
)
from robo_orchard_fasthooks.mixin import PipelineHooks, PipelineHooksConfig

__all__ = ["clip_with_all_settings", "recognize_clipping"]


def recognize_clipping(module: Any, original: Any) -> Any:
    """Makes the function that separates the clipping from a trainer's hooks.

    The original is called with a hook or config of RoboOrchardLab in place of
    each clipping hook or config of this package. So the same rules hold for
    both: the trainer clips by a config, and two configs are an error, as is a
    hook under DeepSpeed, where it would not clip.

    Args:
        module (ModuleType): The trainer's module.
        original (Callable): The function to be replaced.

    Returns:
        Callable: The replacement. It also raises ValueError if a config of
            this package sets `error_if_nonfinite`, which DeepSpeed does not
            support.

    Raises:
        PatchError: The module has no function `_normalize_hook_inputs`.
    """
    if not hasattr(module, "_normalize_hook_inputs"):
        raise PatchError("its module has no _normalize_hook_inputs")

    @wraps(original)
    def _split_gradient_clipping_config(
        *, hooks: Any, grad_clip: Any, is_deepspeed: bool
    ) -> tuple[list[Any], Any]:
        represented = {}

        def representative(hook: Any) -> Any:
            if isinstance(hook, GradientClippingHookConfig):
                found = module.GradientClippingHookConfig(
                    clip_mode=hook.clip_mode,
                    clip_value=hook.clip_value,
                    max_norm=hook.max_norm,
                    norm_type=hook.norm_type,
                )
            elif isinstance(hook, GradientClippingHook):
                # Its __init__ warns.
                found = object.__new__(module.GradientClippingHook)
            else:
                return hook
            represented[id(found)] = hook
            return found

        if isinstance(hooks, (PipelineHooks, PipelineHooksConfig)):
            hooks = [hooks]
        given = [
            representative(hook)
            for hook in module._normalize_hook_inputs(hooks)
        ]
        remaining, config = original(
            hooks=given, grad_clip=grad_clip, is_deepspeed=is_deepspeed
        )
        config = represented.get(id(config), config)
        if is_deepspeed and getattr(config, "error_if_nonfinite", False):
            raise ValueError(
                "GradientClippingHookConfig: error_if_nonfinite is not "
                "supported with DeepSpeed, which clips by itself; leave it "
                "False"
            )
        return [represented.get(id(hook), hook) for hook in remaining], config

    return _split_gradient_clipping_config


def clip_with_all_settings(cls: Any, original: Any) -> Any:
    """Makes the trainer's method that clips.

    With a config of this package it also applies `error_if_nonfinite`,
    `foreach` and `cuda_graph`, which RoboOrchardLab's configs do not have.

    Args:
        cls (type): HookBasedTrainer.
        original (Callable): The method to be replaced.

    Returns:
        Callable: The replacement.
    """

    @wraps(original)
    def _run_gradient_clipping(
        self: Any, hook_args: Any, *, is_optimizer_step_boundary: bool
    ) -> None:
        if not isinstance(self._grad_clip, GradientClippingHookConfig):
            original(
                self,
                hook_args,
                is_optimizer_step_boundary=is_optimizer_step_boundary,
            )
        elif hook_args.exception is None and is_optimizer_step_boundary:
            clip_gradients(
                ClipSettings.of(self._grad_clip),
                self.accelerator,
                self.optimizer,
                self.model,
            )

    return _run_gradient_clipping
