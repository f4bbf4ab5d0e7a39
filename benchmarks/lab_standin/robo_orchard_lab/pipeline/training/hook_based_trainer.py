"""Stand-in: the trainer of 0.5, which clips and steps by itself."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils import DistributedType
from robo_orchard_lab.pipeline.hooks.grad_clip import (
    GradientClippingHook,
    GradientClippingHookConfig,
    _clip_optimizer_gradients,
)
from robo_orchard_lab.pipeline.hooks.mixin import (
    MicroStepProgressState,
    PipelineHookArgs,
    PipelineHooks,
    PipelineHooksConfig,
)

__all__ = ["GradientClippingHookConfig", "HookBasedTrainer"]


@dataclass
class TrainerProgressState:
    epoch_id: int = 0
    step_id: int = 0
    global_step_id: int = 0
    micro_step: MicroStepProgressState = field(
        default_factory=MicroStepProgressState
    )

    def preview_next_micro_step(self):
        index = self.micro_step.index_in_optimizer_step + 1
        return replace(self.micro_step, index_in_optimizer_step=index)

    def commit_micro_step(self, current):
        self.micro_step.epoch_step_id = current.epoch_step_id + 1
        self.micro_step.global_step_id = current.global_step_id + 1
        self.micro_step.index_in_optimizer_step = (
            current.index_in_optimizer_step
        )

    def commit_optimizer_step(self, *, micro_steps):
        self.step_id += 1
        self.global_step_id += 1
        self.micro_step.last_optimizer_step_size = micro_steps
        self.micro_step.index_in_optimizer_step = 0

    def reset_optimizer_step_window(self):
        self.micro_step.index_in_optimizer_step = 0

    def update_epoch(self):
        self.epoch_id += 1
        self.step_id = 0
        self.micro_step.epoch_step_id = 0
        self.micro_step.index_in_optimizer_step = 0

    def sync_pipeline_hook_arg(self, hook_args):
        hook_args.epoch_id = self.epoch_id
        hook_args.step_id = self.step_id
        hook_args.global_step_id = self.global_step_id
        hook_args.micro_step = replace(self.micro_step)


def _normalize_hook_inputs(hooks):
    if hooks is None:
        return []
    if isinstance(hooks, (PipelineHooksConfig, PipelineHooks)):
        return [hooks]
    if not isinstance(hooks, Iterable):
        raise TypeError(
            "Expected PipelineHooks, PipelineHooksConfig, an iterable of "
            "them, or None."
        )
    return list(hooks)


def _split_gradient_clipping_config(*, hooks, grad_clip, is_deepspeed):
    remaining, hook_seen = [], False
    for each in _normalize_hook_inputs(hooks):
        if isinstance(each, GradientClippingHookConfig):
            if hook_seen:
                raise ValueError("grad_clip beside a GradientClippingHook")
            if grad_clip is not None:
                raise ValueError("Only one gradient clipping config")
            grad_clip = each
            continue
        if isinstance(each, GradientClippingHook):
            if hook_seen:
                raise ValueError("Only one gradient clipping hook")
            hook_seen = True
            if is_deepspeed:
                raise ValueError("DeepSpeed gradient clipping needs a config")
            if grad_clip is not None:
                raise ValueError("grad_clip beside a GradientClippingHook")
        remaining.append(each)
    return remaining, grad_clip


class HookBasedTrainer:
    def __init__(
        self,
        accelerator,
        model,
        dataloader,
        batch_processor,
        optimizer,
        lr_scheduler,
        hooks=None,
        max_epoch=1,
        grad_clip=None,
    ):
        self.accelerator = accelerator
        user_hooks, self._grad_clip = _split_gradient_clipping_config(
            hooks=[] if hooks is None else hooks,
            grad_clip=grad_clip,
            is_deepspeed=(
                accelerator.distributed_type == DistributedType.DEEPSPEED
            ),
        )
        user_hooks = PipelineHooks.from_hooks(user_hooks)
        self.max_epoch = max_epoch
        self.dataloader, self.model, self.optimizer, self.lr_scheduler = (
            accelerator.prepare(dataloader, model, optimizer, lr_scheduler)
        )
        self.trainer_progress_state = TrainerProgressState()
        self.batch_processor = batch_processor
        self.hooks = PipelineHooks()
        self.hooks += user_hooks

    def _get_hook_args(self, *, current_micro_step=None):
        hookargs = PipelineHookArgs(
            accelerator=self.accelerator,
            max_step=None,
            max_epoch=self.max_epoch,
            epoch_id=self.trainer_progress_state.epoch_id,
            step_id=self.trainer_progress_state.step_id,
            global_step_id=self.trainer_progress_state.global_step_id,
            dataloader=self.dataloader,
            model=self.model,
            optimizer=self.optimizer,
            lr_scheduler=self.lr_scheduler,
            start_epoch=0,
            start_step=0,
        )
        self.trainer_progress_state.sync_pipeline_hook_arg(hookargs)
        if current_micro_step is not None:
            hookargs.micro_step = current_micro_step
            hookargs.is_optimizer_step_boundary = (
                self.accelerator.sync_gradients
            )
        return hookargs

    def _run_gradient_clipping(self, hook_args, *, is_optimizer_step_boundary):
        if (
            self._grad_clip is None
            or hook_args.exception is not None
            or not is_optimizer_step_boundary
        ):
            return
        _clip_optimizer_gradients(
            accelerator=self.accelerator,
            optimizer=self.optimizer,
            clip_mode=self._grad_clip.clip_mode,
            clip_value=self._grad_clip.clip_value,
            max_norm=self._grad_clip.max_norm,
            norm_type=self._grad_clip.norm_type,
        )

    def _run_optimizer_step(
        self, hook_args, *, is_optimizer_step_boundary, micro_steps
    ):
        if hook_args.exception is not None:
            return False
        if hook_args.micro_step is None:
            raise RuntimeError("PipelineHookArgs.micro_step is required")
        self._run_gradient_clipping(
            hook_args, is_optimizer_step_boundary=is_optimizer_step_boundary
        )
        self.optimizer.step()
        committed = (
            is_optimizer_step_boundary
            and not self.accelerator.optimizer_step_was_skipped
        )
        if committed or (
            isinstance(self.lr_scheduler, AcceleratedScheduler)
            and self.lr_scheduler.step_with_optimizer
        ):
            self.lr_scheduler.step()
        self.optimizer.zero_grad()
        progress = self.trainer_progress_state
        if committed:
            progress.commit_optimizer_step(micro_steps=micro_steps)
            progress.sync_pipeline_hook_arg(hook_args)
        elif is_optimizer_step_boundary:
            progress.reset_optimizer_step_window()
            progress.sync_pipeline_hook_arg(hook_args)
        return committed

    def _run_batch_step(self, batch):
        progress = self.trainer_progress_state
        preview = progress.preview_next_micro_step()
        boundary = self.accelerator.sync_gradients
        step = {
            "is_optimizer_step_boundary": boundary,
            "micro_steps": preview.index_in_optimizer_step,
        }
        args = self._get_hook_args(current_micro_step=preview)
        with self.hooks.begin("on_step", args):
            with self.hooks.begin(
                "on_batch", args.copy_with_updates(batch=batch)
            ) as batch_args:
                self.batch_processor(
                    pipeline_hooks=self.hooks,
                    on_batch_hook_args=batch_args,
                    model=self.model,
                )
                args.model_outputs = batch_args.model_outputs
            progress.commit_micro_step(preview)
            progress.sync_pipeline_hook_arg(args)
        progress.sync_pipeline_hook_arg(args)
        args.is_optimizer_step_boundary = boundary
        args.is_optimizer_step_committed = False
        with (
            self.hooks.begin("on_optimizer_step", args)
            if boundary
            else nullcontext()
        ):
            committed = self._run_optimizer_step(args, **step)
            args.is_optimizer_step_committed = committed
            progress.sync_pipeline_hook_arg(args)

    def _run_epoch_steps(self, on_epoch_hook_args):
        progress = self.trainer_progress_state
        for batch in self.dataloader:
            with self.accelerator.accumulate(self.model):
                self._run_batch_step(batch=batch)
            progress.sync_pipeline_hook_arg(on_epoch_hook_args)

    def __call__(self):
        progress = self.trainer_progress_state
        self.model.train()
        with self.hooks.begin("on_loop", self._get_hook_args()) as loop_args:
            while progress.epoch_id < self.max_epoch:
                with self.hooks.begin(
                    "on_epoch", self._get_hook_args()
                ) as epoch_args:
                    self._run_epoch_steps(epoch_args)
                progress.update_epoch()
                progress.sync_pipeline_hook_arg(loop_args)
