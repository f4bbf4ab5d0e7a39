"""Stand-in: the hook of 0.5 that does nothing; the trainer steps itself."""

import warnings

from robo_orchard_lab.pipeline.hooks.mixin import (
    PipelineHooks,
    PipelineHooksConfig,
)

__all__ = ["OptimizerHook", "OptimizerHookConfig"]


class OptimizerHook(PipelineHooks):
    def __init__(self, cfg):
        super().__init__()
        warnings.warn(
            "OptimizerHook does nothing: HookBasedTrainer steps itself",
            DeprecationWarning,
            stacklevel=2,
        )


class OptimizerHookConfig(PipelineHooksConfig[OptimizerHook]):
    class_type: type[OptimizerHook] = OptimizerHook
