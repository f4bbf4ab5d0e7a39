"""Stand-in: the trainer of 0.5, which clips and steps by itself."""

from robo_orchard_lab.pipeline.hooks.grad_clip import _clip_optimizer_gradients
from robo_orchard_lab.pipeline.hooks.mixin import (
    PipelineHookArgs,
    PipelineHooks,
)


class HookBasedTrainer:
    def __init__(self, accelerator, model, optimizer, hooks, **clipping):
        self.accelerator, self.model = accelerator, model
        self.optimizer, self.clipping = optimizer, clipping
        self.hooks = PipelineHooks.from_hooks(hooks)

    def train(self, batches, micro_steps=2):
        for step, batch in enumerate(batches):
            ends = (step + 1) % micro_steps == 0
            args = PipelineHookArgs(
                accelerator=self.accelerator,
                step_id=step,
                optimizer=self.optimizer,
                micro_step=step % micro_steps,
                is_optimizer_step_boundary=ends,
            )
            with self.hooks.begin("on_step", args):
                forward = args.copy_with_updates(batch=batch)
                with self.hooks.begin("on_model_forward", forward):
                    loss = self.model(batch).square().mean()
                with self.hooks.begin("on_model_backward", forward):
                    self.accelerator.backward(loss)
            if ends:
                with self.hooks.begin("on_optimizer_step", args):
                    self.step(args)

    def step(self, args):
        if self.clipping:
            _clip_optimizer_gradients(
                accelerator=self.accelerator,
                optimizer=self.optimizer,
                clip_mode=self.clipping["clip_mode"],
                clip_value=self.clipping.get("clip_value"),
                max_norm=self.clipping.get("max_norm"),
                norm_type=self.clipping.get("norm_type", 2.0),
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        args.is_optimizer_step_committed = True
