"""Times RoboOrchardLab's own trainer, with and without `install()`.

    python benchmarks/end_to_end.py

Needs the whole of RoboOrchardLab 0.4.0 (tests/downstream/requirements.txt).
HookBasedTrainer trains each model on fixed random data, with its statistics
hook, gradient clipping and one hook of the user's, with and without install()
in turn. Printed as JSON is the CPU time of the training thread per step.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from time import thread_time_ns

import torch
from accelerate import Accelerator
from robo_orchard_lab.pipeline.batch_processor.simple import (
    SimpleBatchProcessor,
)
from robo_orchard_lab.pipeline.hook_based_trainer import (
    GradientClippingHookConfig,
    HookBasedTrainer,
)
from robo_orchard_lab.pipeline.hooks.mixin import HookContext, PipelineHooks
from robo_orchard_lab.pipeline.hooks.stats import StatsMonitorConfig
from torch import Tensor, nn

import compare
from robo_orchard_fasthooks.lab import install

Batch = tuple[Tensor, Tensor]
ROUNDS, STEPS = 15, 200


class Regress(SimpleBatchProcessor):
    """The squared error of a model's output."""

    def forward(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Computes output and loss."""
        inputs, targets = batch
        outputs = model(inputs)
        return outputs, nn.functional.mse_loss(outputs, targets)


def mlp(width: int, layers: int) -> nn.Module:
    """A multilayer perceptron from 16 inputs to 4 outputs."""
    sizes = [16, *[width] * (layers - 1), 4]
    return nn.Sequential(
        *(
            nn.Sequential(nn.Linear(n, m), nn.Tanh())
            for n, m in zip(sizes, sizes[1:], strict=False)
        )
    )


def transformer() -> nn.Module:
    """Four layers of width 64, for sequences of 16 steps."""
    layer = nn.TransformerEncoderLayer(
        64, 4, 128, dropout=0.0, batch_first=True
    )
    return nn.Sequential(
        nn.Linear(16, 64),
        nn.TransformerEncoder(layer, 4, enable_nested_tensor=False),
        nn.Linear(64, 4),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP policy, 3 layers of 64": (lambda: mlp(64, 3), (32,)),
    "deep MLP, 120 tensors of width 64": (lambda: mlp(64, 60), (32,)),
    "transformer, 4 layers of 64": (transformer, (8, 16)),
}
"""What is trained, by name, and the shape of a batch."""


def train(model: str, steps: int) -> float:
    """Trains a model; returns nanoseconds of CPU time per step."""
    make, shape = MODELS[model]
    torch.manual_seed(0)
    network = make()
    batch = torch.randn(*shape, 16), torch.randn(*shape, 4)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    count = PipelineHooks()
    seen: list[int] = []
    count.register_hook(
        "on_step",
        HookContext.from_callable(after=lambda a: seen.append(a.step_id)),
    )
    trainer = HookBasedTrainer(
        accelerator=Accelerator(cpu=True),
        model=network,
        dataloader=[batch] * steps,  # What loads data is not measured.
        batch_processor=Regress(),
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 10**6),
        hooks=[StatsMonitorConfig(batch_size=32, step_log_freq=10**6), count],
        max_epoch=1,
        grad_clip=GradientClippingHookConfig(clip_mode="norm", max_norm=1.0),
    )
    start = thread_time_ns()
    trainer()
    taken = thread_time_ns() - start
    assert len(seen) == steps
    return taken / steps


WAYS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    compare.UPSTREAM: nullcontext,
    compare.OURS: install,
}


def main() -> None:
    """Prints the rows."""
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    for model in MODELS:

        def trained(
            way: Callable[[], AbstractContextManager[None]], model: str = model
        ) -> float:
            gc.collect()
            with way():
                return train(model, STEPS)

        samples = compare.in_turn(WAYS, trained, ROUNDS, warm_up=1)
        compare.print_rows(compare.rows(model, samples))


if __name__ == "__main__":
    main()
