"""Trains on digits as users of RoboOrchardLab do, and knows nothing of us."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from robo_orchard_lab.pipeline.batch_processor.simple import (
    SimpleBatchProcessor,
)
from robo_orchard_lab.pipeline.hook_based_trainer import (
    GradientClippingHookConfig,
    HookBasedTrainer,
    ResumeCheckpointConfig,
)
from robo_orchard_lab.pipeline.hooks.checkpoint import SaveCheckpointConfig
from robo_orchard_lab.pipeline.hooks.loss_tracker import LossTrackerConfig
from robo_orchard_lab.pipeline.hooks.mixin import (
    ClassType,
    HookContext,
    PipelineHookArgs,
    PipelineHooks,
    PipelineHooksConfig,
)
from robo_orchard_lab.pipeline.hooks.stats import StatsMonitorConfig
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from helpers import processes


class Classify(SimpleBatchProcessor):
    def forward(self, model, batch):
        images, labels = batch
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, labels)
        return {"entropy_loss": loss}, loss


class Recorder(PipelineHooks):
    """Keeps losses and gradient norms."""

    def __init__(self, cfg: RecorderConfig) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.norms: list[float] = []
        for channel, after in (
            ("on_step", self.end_step),
            ("on_model_backward", self.take_norm),
        ):
            hook = HookContext.from_callable(after=after)
            self.register_hook(channel, hook)

    def take_norm(self, args: PipelineHookArgs) -> None:
        grads = [param.grad for param in args.model.parameters()]
        self.norms.append(nn.utils.get_total_norm(grads).item())

    def end_step(self, args: PipelineHookArgs) -> None:
        self.losses.append(args.reduce_loss.item())


class RecorderConfig(PipelineHooksConfig[Recorder]):
    class_type: ClassType[Recorder] = Recorder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--resume", metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    logging.basicConfig(
        stream=sys.stdout,
        level=logging.INFO,
        format="%(name)s:%(lineno)d %(message)s",
    )
    set_seed(0)
    accelerator = Accelerator(
        cpu=True,
        project_config=ProjectConfiguration(
            project_dir=str(options.out), automatic_checkpoint_naming=True
        ),
    )
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)
    data = TensorDataset(images.unsqueeze(1), torch.tensor(digits.target))
    model = nn.Sequential(
        nn.Conv2d(1, 8, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),  # So that the state of the generator matters.
        nn.Linear(8 * 4 * 4, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    recorder = RecorderConfig()()
    trainer = HookBasedTrainer(
        accelerator=accelerator,
        model=model,
        dataloader=DataLoader(data, batch_size=64, shuffle=True),
        batch_processor=Classify(),
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 20),
        hooks=[
            StatsMonitorConfig(step_log_freq=8),
            LossTrackerConfig(step_log_freq=8),
            SaveCheckpointConfig(save_epoch_freq=1),
            recorder,
        ],
        max_epoch=options.epochs,
        grad_clip=GradientClippingHookConfig(clip_mode="norm", max_norm=0.5),
        resume_from=ResumeCheckpointConfig(resume_from=options.resume)
        if options.resume
        else None,
    )
    trainer()
    if accelerator.is_main_process:
        result = {
            "parameters": accelerator.unwrap_model(model).state_dict(),
            "losses": recorder.losses,
            "norms": recorder.norms,
            "num_processes": accelerator.num_processes,
        }
        torch.save(result, options.out / "result.pt")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    processes.end_rank()


if __name__ == "__main__":
    main()
