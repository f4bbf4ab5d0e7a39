"""This package's clipping in the HookBasedTrainer of RoboOrchardLab 0.5.

That clips by itself, by configs of RoboOrchardLab's own classes.
"""

from functools import wraps
from typing import Any

from robo_orchard_fasthooks._lab.patching import PatchError
from robo_orchard_fasthooks._stepping.step import ClipSettings, clip_gradients
from robo_orchard_fasthooks.grad_clip import (
    GradientClippingHook,
    GradientClippingHookConfig,
)
from robo_orchard_fasthooks.mixin import PipelineHooks, PipelineHooksConfig


def recognize_clipping(module: Any, original: Any) -> Any:
    """Makes the function that separates the clipping from a trainer's hooks.

    Calls the original with a hook or config of RoboOrchardLab in place of each
    of this package, so that the same rules hold for both.
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
                names = ("clip_mode", "clip_value", "max_norm", "norm_type")
                settings = {name: getattr(hook, name) for name in names}
                found = module.GradientClippingHookConfig(**settings)
            elif isinstance(hook, GradientClippingHook):
                # Its __init__ warns.
                found = object.__new__(module.GradientClippingHook)
            else:
                return hook
            represented[id(found)] = hook
            return found

        if isinstance(hooks, (PipelineHooks, PipelineHooksConfig)):
            hooks = [hooks]
        given = map(representative, module._normalize_hook_inputs(hooks))
        remaining, config = original(
            hooks=[*given], grad_clip=grad_clip, is_deepspeed=is_deepspeed
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
    """Makes the method that clips by all settings of this package."""

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
