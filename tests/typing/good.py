"""What a user writes, for the type checker alone."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from robo_orchard_fasthooks import (
    GradientClippingHook,
    GradientClippingHookConfig,
    HookContext,
    PipelineHookArgs,
    PipelineHookChanelType,
    PipelineHooks,
    PipelineHooksConfig,
    clip_grad_norm_,
    clip_grad_value_,
)


@dataclasses.dataclass
class Args(PipelineHookArgs):
    extra: int = 0


class Timed(PipelineHooks):
    @contextmanager
    def begin(
        self, channel: PipelineHookChanelType, arg: PipelineHookArgs
    ) -> Iterator[PipelineHookArgs]:
        with super().begin(channel, arg) as given:
            yield given


def step(hooks: PipelineHooks, args: PipelineHookArgs) -> int:
    handle = hooks.register_hook(
        "on_step", HookContext.from_callable(after=print)
    )
    with hooks.begin("on_step", args) as given:
        given.batch = 1
    with handle:
        hooks += Timed()

    @hooks.begin("on_epoch", args)
    def epoch(number: int) -> int:
        return number

    hooks.begin("on_stop", args)  # type: ignore[arg-type]
    return epoch(1)


def main(accelerator: Accelerator) -> None:
    args = Args(accelerator, epoch_id=3, extra=1)
    copied: Args = args.copy_with_updates(batch=2)
    config: PipelineHooksConfig[PipelineHooks] | None = None
    hooks = PipelineHooks.from_hooks(
        [GradientClippingHookConfig(clip_mode="norm", max_norm=1.0)]
    )
    assert config is None
    step(hooks, dataclasses.replace(copied, batch=3))
    step(PipelineHooks.from_hooks(Timed()), copied)


def clip(model: torch.nn.Module, hook: GradientClippingHook) -> float:
    clip_grad_value_(model.parameters(), 1.0)
    norm = clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
    return norm.item() if hook.total_norm is None else hook.total_norm.item()
