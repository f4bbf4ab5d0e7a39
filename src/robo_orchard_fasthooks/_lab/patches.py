"""The functions of RoboOrchardLab that are replaced, and by what."""

import sys
from contextlib import ExitStack
from functools import wraps
from typing import Any

from robo_orchard_fasthooks import _dispatch, _dynamo, _fast_dataclass
from robo_orchard_fasthooks._core import HookContextChannel
from robo_orchard_fasthooks._lab import trainer
from robo_orchard_fasthooks._lab.patching import (
    AppliedPatch,
    Patch,
    PatchError,
    check_home,
)
from robo_orchard_fasthooks._stepping import step
from robo_orchard_fasthooks.mixin import PipelineHooks

PACKAGE = "robo_orchard_lab"
_MIXIN = f"{PACKAGE}.pipeline.hooks.mixin"
_GRAD_CLIP = f"{PACKAGE}.pipeline.hooks.grad_clip"
_OPTIMIZER = f"{PACKAGE}.pipeline.hooks.optimizer"
_TRAINER = f"{PACKAGE}.pipeline.training.hook_based_trainer"
_ARGS = "PipelineHookArgs"
MODULES = (_MIXIN, _GRAD_CLIP, _OPTIMIZER, _TRAINER)


def patches() -> list[Patch]:
    """What is replaced, in order; for 0.4 unless a later one is imported."""
    return [
        Patch(_MIXIN, "PipelineHooks.__init__", _compiled_channels),
        _same_as_here("begin", "self, channel, arg"),
        _same_as_here("register_hook", "self, channel, hook"),
        _same_as_here("register_pipeline_hooks", "self, hooks"),
        _same_as_here("from_hooks", "cls, hooks"),
        _Construction(_MIXIN, f"{_ARGS}.__init__", _if_plain),
        Patch(
            _MIXIN, f"{_ARGS}.copy_with_updates", _quick_copy, "self, **kwargs"
        ),
        *_clipping_patches(),
    ]


def _same_as_here(method: str, parameters: str) -> Patch:
    path, replacement = f"PipelineHooks.{method}", vars(PipelineHooks)[method]
    return Patch(_MIXIN, path, lambda *_: replacement, parameters)


def _compiled_channels(owner: Any, original: Any) -> Any:
    for method in vars(HookContextChannel).values():
        if callable(method):
            check_home(method, HookContextChannel.__module__)
    args = getattr(sys.modules[_MIXIN], _ARGS, None)
    fields = getattr(args, "__dataclass_fields__", ())

    @wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, *args, **kwargs)
        if isinstance(self.hooks, dict):
            for name, channel in self.hooks.items():
                # A channel with hooks has returned handles, which could not
                # unregister them from the channel that replaces it.
                if type(channel) is HookContextChannel and not len(channel):
                    self.hooks[name] = _dispatch.lab_channel(
                        vars(channel), "exception" in fields
                    )

    return __init__


def _if_plain(cls: Any, original: Any) -> Any:
    if reason := _fast_dataclass.unsupported_reason(cls):
        raise PatchError(f"{cls.__name__} is not a plain dataclass: {reason}")
    return original


def _quick_copy(cls: Any, original: Any) -> Any:
    copy = _fast_dataclass.copying(cls, _if_plain(cls, original))
    _dynamo.substitute(copy, original)
    return copy


class _Construction(Patch):
    """Accelerates calls of a class, whose `__init__` stays but is not run."""

    def replace(self, undo: ExitStack) -> AppliedPatch:
        replaced = super().replace(undo)
        undo.callback(_fast_dataclass.disable, replaced.owner)
        _fast_dataclass.enable(replaced.owner)
        return replaced


def _clipping_patches() -> list[Patch]:
    function = "_clip_optimizer_gradients"
    if not hasattr(sys.modules.get(_GRAD_CLIP), function):  # Before 0.5.
        return [
            Patch(
                _GRAD_CLIP,
                "GradientClippingHook._gradient_clipping",
                lambda *_: _gradient_clipping,
                "self, hook_args",
            ),
            Patch(
                _OPTIMIZER,
                "OptimizerHook._optimizer_step",
                _step_with_mark,
                "self, hook_args",
            ),
        ]
    return [
        *(
            Patch(
                module,
                function,
                lambda *_: _clip_optimizer_gradients,
                "*, accelerator, optimizer, clip_mode, clip_value, max_norm, "
                "norm_type",
            )
            for module in (_GRAD_CLIP, _TRAINER)
        ),
        Patch(
            _TRAINER,
            "_split_gradient_clipping_config",
            trainer.recognize_clipping,
            "*, hooks, grad_clip, is_deepspeed",
        ),
        Patch(
            _TRAINER,
            "HookBasedTrainer._run_gradient_clipping",
            trainer.clip_with_all_settings,
            "self, hook_args, *, is_optimizer_step_boundary",
        ),
    ]


def _gradient_clipping(self: Any, hook_args: Any) -> None:
    # RoboOrchardLab does not clip in any other mode.
    if self.clip_mode in ("norm", "value"):
        step.clip_at_step(self, hook_args)


def _step_with_mark(cls: Any, original: Any) -> Any:
    @wraps(original)
    def _optimizer_step(self: Any, hook_args: Any) -> None:
        optimizer = hook_args.optimizer
        original(self, hook_args)
        step.mark_stepped(optimizer, hook_args)

    return _optimizer_step


def _clip_optimizer_gradients(
    *, accelerator: Any, optimizer: Any, clip_mode: str, **settings: Any
) -> None:
    if clip_mode in ("norm", "value"):
        clipping = step.ClipSettings(clip_mode, **settings)
        step.clip_gradients(clipping, accelerator, optimizer)
