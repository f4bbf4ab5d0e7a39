"""Hooks of RoboOrchardLab itself, together with this package's.

It is type-checked and never run.
"""

from robo_orchard_lab.pipeline.hooks.grad_clip import (
    GradientClippingHook as LabHook,
)
from robo_orchard_lab.pipeline.hooks.grad_clip import (
    GradientClippingHookConfig as LabConfig,
)
from robo_orchard_lab.pipeline.hooks.mixin import PipelineHooks as LabHooks

from robo_orchard_fasthooks import OptimizerHook, PipelineHooks


def combine(lab: LabHooks, config: LabConfig) -> PipelineHooks:
    PipelineHooks.from_hooks(lab)
    PipelineHooks.from_hooks(config)
    PipelineHooks.from_hooks([config, LabHook(config)])
    hooks = PipelineHooks.from_hooks([lab, config, OptimizerHook()])
    hooks.register_pipeline_hooks(lab)()
    hooks += lab
    hooks += config  # error: [arg-type]
    hooks += LabHook  # error: [arg-type]
    PipelineHooks.from_hooks(LabConfig)  # error: [arg-type]
    PipelineHooks.from_hooks(lab.hooks)  # error: [arg-type]
    return hooks
