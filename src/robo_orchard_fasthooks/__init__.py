"""Compiled training-loop hooks and gradient clipping for PyTorch.

A drop-in replacement for the hooks of RoboOrchardLab.
"""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING

try:
    from . import _dispatch  # noqa: F401
except ImportError as error:
    if not str(error.name).startswith(__name__):
        raise
    raise ImportError(
        f"{__name__} has no compiled modules for this Python: build them by "
        "`pip install .` in its source folder (`-e` to use it from there)",
        name=error.name,
    ) from error

from . import _dynamo as _dynamo  # It registers what torch.compile needs.
from .clip import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)
from .grad_clip import GradientClippingHook, GradientClippingHookConfig
from .mixin import (
    ClassType,
    HookContext,
    HookContextChannel,
    ModelOutput,
    ModelOutputHasLossKeys,
    PipelineHookArgs,
    PipelineHookChanelType,
    PipelineHooks,
    PipelineHooksConfig,
    RemoveableHandle,
)
from .optimizer import OptimizerHook, OptimizerHookConfig
from .profiler import HookProfiler

__all__ = [
    "ClassType",
    "GradientClippingHook",
    "GradientClippingHookConfig",
    "HookContext",
    "HookContextChannel",
    "HookProfiler",
    "ModelOutput",
    "ModelOutputHasLossKeys",
    "OptimizerHook",
    "OptimizerHookConfig",
    "PipelineHookArgs",
    "PipelineHookChanelType",
    "PipelineHooks",
    "PipelineHooksConfig",
    "RemoveableHandle",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "get_total_norm",
]

__version__: str

# To a type checker, every name would be one of the module's.
if not TYPE_CHECKING:

    def __getattr__(name):
        # Reading metadata takes a millisecond, so not at each import.
        if name == "__version__":
            return _version(__name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
