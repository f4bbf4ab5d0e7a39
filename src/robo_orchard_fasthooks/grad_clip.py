"""The hook that clips gradients."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import model_validator

from robo_orchard_fasthooks._stepping.step import ClipSettings, clip_at_step
from robo_orchard_fasthooks.mixin import (
    ClassType,
    HookContext,
    PipelineHookArgs,
    PipelineHooks,
    PipelineHooksConfig,
)

__all__ = ["GradientClippingHook", "GradientClippingHookConfig"]


class GradientClippingHook(PipelineHooks):
    """Clips the gradients of the optimizer's parameters after each step.

    It clips when gradients are synchronized (at the end of an accumulation),
    and does nothing when the step failed. Its settings, which
    GradientClippingHookConfig describes, may be changed between steps. Where
    gradients are sharded, every rank has to run it.

    If a gradient or a setting is refused, no gradient has changed. If an error
    occurs after a GradScaler has unscaled gradients, they are scaled again,
    and the next step works.

    Note:
        Register this hook before an OptimizerHook: callbacks run in the order
        of registration, and the optimizer has to step on clipped gradients.
        If an OptimizerHook has stepped the optimizer already when this hook
        first clips for it, this hook warns once.

    Args:
        cfg (GradientClippingHookConfig): The settings.

    Raises:
        ValueError: When a scope is left: the arguments have no optimizer or no
            accelerator, or a setting is invalid or not supported there.
        NotImplementedError: When a scope is left: a gradient cannot be clipped
            with these settings.
        RuntimeError: When a scope is left: the norm is not finite and
            `error_if_nonfinite` is set, or the FSDP module of a parameter is
            unknown.
    """

    clip_mode: Literal["norm", "value"]
    clip_value: float | None
    max_norm: float | None
    norm_type: float
    error_if_nonfinite: bool
    cuda_graph: bool | None

    total_norm: torch.Tensor | None
    """The norm before clipping that was computed last, over all ranks, a plain
    0-dim tensor on the device of the gradients, or on the CPU if an
    accelerator's own method returned it as a number. Its dtype is the promoted
    dtype of the norms of the gradients.

    A step that computes no norm (without gradients, by value, or where an
    accelerator's own method returns neither a number nor a tensor of one
    element) leaves it as it was. It is None before the first norm.
    """

    def __init__(self, cfg: GradientClippingHookConfig):
        super().__init__()
        self.clip_mode = cfg.clip_mode
        self.clip_value = cfg.clip_value
        self.max_norm = cfg.max_norm
        self.norm_type = cfg.norm_type
        self.error_if_nonfinite = cfg.error_if_nonfinite
        self.cuda_graph = cfg.cuda_graph
        self.total_norm = None
        self.register_hook(
            "on_step", HookContext.from_callable(after=self._gradient_clipping)
        )

    def _gradient_clipping(self, hook_args: PipelineHookArgs) -> None:
        total_norm = clip_at_step(self, hook_args)
        if total_norm is not None:
            self.total_norm = total_norm


class GradientClippingHookConfig(PipelineHooksConfig[GradientClippingHook]):
    """The settings of a GradientClippingHook; calling them makes the hook.

    Raises:
        ValueError: The bound of the mode is missing, negative or NaN, or
            `norm_type` is NaN.
    """

    # JSON has no infinity, which `norm_type` may be.
    model_config = {"ser_json_inf_nan": "strings", "extra": "forbid"}

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

    cuda_graph: bool | None = None
    """Whether plain gradients on one CUDA device are clipped by a CUDA graph
    that is replayed while they stay at their addresses, and by a Triton kernel
    where Triton is installed. None means no.

    Experimental: it has not run on a GPU. It has no effect elsewhere.
    """

    @model_validator(mode="before")
    @classmethod
    def _without_foreach(cls, data: Any) -> Any:
        # Configs that an earlier version has saved have it.
        if isinstance(data, dict) and data.get("foreach", True) is None:
            return {k: v for k, v in data.items() if k != "foreach"}
        return data

    def __post_init__(self) -> None:
        ClipSettings.of(self).bound()
