"""Trains a small convolutional network on handwritten digits, with hooks.

The data are scikit-learn's digits, 1,797 images that come with the package.
On one process, with its hooks timed, and on two processes::

    python examples/train_digits.py
    python examples/train_digits.py --profile
    torchrun --nproc-per-node 2 examples/train_digits.py --cpu

Processes share each batch, so that training takes the same course, up to
rounding, on any number of them that divides 64. (`accelerate launch --cpu`
starts one process, whatever its options say.)

Needs scikit-learn, matplotlib and tqdm beside the package.
"""

from __future__ import annotations

import argparse
import math
import os
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from robo_orchard_fasthooks import (
    GradientClippingHook,
    GradientClippingHookConfig,
    HookContext,
    HookProfiler,
    OptimizerHookConfig,
    PipelineHookArgs,
    PipelineHooks,
)


class TrackingHook(PipelineHooks):
    """Tracks loss, accuracy and gradient norm, and shows a progress bar.

    Register it after the clipping hook: callbacks run in the order of
    registration, and the norm it records is the one that was clipped by.

    Args:
        clipping (GradientClippingHook): Clips the gradients by their norm.
    """

    def __init__(self, clipping: GradientClippingHook) -> None:
        super().__init__()
        self._clipping = clipping
        # Kept as tensors: making a number of one waits for the device.
        self.losses: list[Tensor] = []
        self.grad_norms: list[Tensor] = []
        self._hits: list[Tensor] = []
        for channel, before, after in (
            ("on_loop", self._start, self._stop),
            ("on_epoch", None, self._show),
            ("on_step", None, self._record),
        ):
            hook = HookContext.from_callable(before=before, after=after)
            self.register_hook(channel, hook)

    def _start(self, args: PipelineHookArgs) -> None:
        silent = not args.accelerator.is_main_process
        self._bar = tqdm(total=args.max_step, unit="step", disable=silent)
        self._started = perf_counter()

    def _stop(self, args: PipelineHookArgs) -> None:
        self.seconds = perf_counter() - self._started
        self._bar.close()

    def _record(self, args: PipelineHookArgs) -> None:
        if args.exception is None:
            self.grad_norms.append(self._clipping.total_norm)
            self.losses.append(args.reduce_loss)
            self._hits.append(args.model_outputs["hits"])
            self._bar.update()

    def _show(self, args: PipelineHookArgs) -> None:
        if args.exception is None:
            hits = args.accelerator.gather(torch.cat(self._hits))
            self._hits.clear()
            accuracy = f"{hits.float().mean():.4f}"
            grad_norm = f"{self.grad_norms[-1]:.3f}"
            self._bar.set_postfix(accuracy=accuracy, grad_norm=grad_norm)


def train(hooks: PipelineHooks, args: PipelineHookArgs) -> None:
    """Runs the training loop, with the hooks around each piece of it."""
    with hooks.begin("on_loop", args):
        for epoch in range(args.max_epoch):
            args.epoch_id = epoch
            with hooks.begin("on_epoch", args.copy_with_updates()):
                for step, batch in enumerate(args.dataloader):
                    args.step_id = step
                    train_step(hooks, args.copy_with_updates(), batch)
                    args.global_step_id += 1


def train_step(
    hooks: PipelineHooks, args: PipelineHookArgs, batch: list[Tensor]
) -> None:
    """Runs the model forward and backward; the optimizer has its hook."""
    images, labels = batch
    with (
        hooks.begin("on_step", args),
        hooks.begin("on_batch", args.copy_with_updates(batch=batch)) as inner,
    ):
        with hooks.begin("on_model_forward", inner.copy_with_updates()) as out:
            logits = args.model(images)
            loss = nn.functional.cross_entropy(logits, labels)
            out.model_outputs = {"hits": logits.argmax(1) == labels}
            out.reduce_loss = args.accelerator.reduce(loss.detach(), "mean")
        for scope in (inner, args):
            scope.model_outputs = out.model_outputs
            scope.reduce_loss = out.reduce_loss
        with hooks.begin("on_model_backward", inner.copy_with_updates()):
            args.accelerator.backward(loss)


@torch.no_grad()
def evaluate(args: PipelineHookArgs, dataloader: DataLoader) -> float:
    """The share of images, over all processes, that the model gets right."""
    args.model.eval()
    gather = args.accelerator.gather_for_metrics
    hits = [gather(args.model(x).argmax(1) == y) for x, y in dataloader]
    return torch.cat(hits).float().mean().item()


def make_model() -> nn.Module:
    """A network of 29,066 parameters, for images of shape (N, 1, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 10),
    )


def make_dataloaders(seed: int) -> tuple[DataLoader, DataLoader]:
    """The images to train on, in an order drawn by the seed, and to test."""
    digits = load_digits()
    # From 0 to 16, to -1 to 1.
    images = torch.tensor(digits.images / 8 - 1, dtype=torch.float32)
    samples = list(zip(images.unsqueeze(1), digits.target, strict=True))
    train_set, test_set = train_test_split(
        samples, stratify=digits.target, random_state=0
    )
    train_loader = DataLoader(
        train_set,
        batch_size=64,
        shuffle=True,
        drop_last=True,
        # Of its own, so that any number of processes gets the same order.
        generator=torch.Generator().manual_seed(seed),
    )
    return train_loader, DataLoader(test_set, batch_size=64)


def draw(path: Path, losses: Tensor, norms: Tensor, max_norm: float) -> None:
    """Draws loss and gradient norm over the steps, with the threshold."""
    # A figure that is not pyplot's needs no display and no closing.
    figure = Figure(figsize=(8, 6), dpi=150, layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    steps = torch.arange(1, len(losses) + 1)
    window = min(15, len(losses))
    middles = steps.unfold(0, window, 1)[:, window // 2]
    for axes, values, color, label in (
        (upper, losses, "tab:blue", "training loss (cross-entropy)"),
        (lower, norms, "tab:green", "gradient norm before clipping"),
    ):
        # Geometric: what is the mean to the eye on a logarithmic axis.
        means = values.log().unfold(0, window, 1).mean(1).exp()
        axes.semilogy(steps, values, color, alpha=0.4, linewidth=0.8)
        axes.semilogy(middles, means, color, label=f"mean of {window} steps")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    label, red = f"max_norm = {max_norm:g}", "tab:red"
    lower.axhline(max_norm, color=red, linestyle="--", label=label)
    lower.fill_between(
        steps,
        norms,
        max_norm,
        where=norms > max_norm,
        interpolate=True,
        facecolor=red,
        alpha=0.2,
        label="clipped",
    )
    lower.set_xlabel("step")
    upper.legend()
    lower.legend()
    figure.savefig(path, format="png")


class OneLineParser(argparse.ArgumentParser):
    """Reports a bad value in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Exits with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse_args() -> argparse.Namespace:
    """The options, checked before there is any work to lose."""
    parser = OneLineParser(description="Trains a network on digits.")
    add = parser.add_argument
    add("--epochs", type=int, default=12)
    add("--max-norm", type=float, default=0.5, help="clipping threshold")
    add("--out", type=Path, default="train_digits.png", metavar="FILE.png")
    add("--seed", type=int, default=0)
    add("--cpu", action="store_true", help="use no GPU")
    add("--profile", action="store_true", help="time the hooks")
    args = parser.parse_args()
    folder = args.out.parent
    if args.epochs < 1:
        parser.error(f"--epochs: less than 1: {args.epochs}")
    if not 0 < args.max_norm < math.inf:
        parser.error(f"--max-norm: not positive and finite: {args.max_norm}")
    if not 0 <= args.seed < 2**32:
        parser.error(f"--seed: not from 0 to 2**32 - 1: {args.seed}")
    if args.out.suffix.lower() != ".png" or args.out.is_dir():
        parser.error(f"--out: not a name for a .png file: {str(args.out)!r}")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        parser.error(f"--out: not a folder to write to: {str(folder)!r}")
    return args


def main() -> None:
    """Trains, tests, and reports from the main process."""
    options = parse_args()
    set_seed(options.seed)
    split = DataLoaderConfiguration(split_batches=True)
    accelerator = Accelerator(cpu=options.cpu, dataloader_config=split)
    train_loader, test_loader = accelerator.prepare(
        *make_dataloaders(options.seed)
    )
    max_step = options.epochs * len(train_loader)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.01, total_steps=max_step
    )
    model, optimizer, lr_scheduler = accelerator.prepare(
        model, optimizer, lr_scheduler
    )
    args = PipelineHookArgs(
        accelerator,
        max_epoch=options.epochs,
        max_step=max_step,
        dataloader=train_loader,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        model=model,
    )
    clipping = GradientClippingHookConfig(
        clip_mode="norm", max_norm=options.max_norm
    )()
    tracker = TrackingHook(clipping)
    hooks = PipelineHooks.from_hooks(
        [clipping, tracker, OptimizerHookConfig()]
    )
    profiler = HookProfiler(hooks)
    with profiler if options.profile else nullcontext():
        train(hooks, args)
    accuracy = evaluate(args, test_loader)
    if accelerator.is_main_process:
        losses = torch.stack(tracker.losses).cpu()
        norms = torch.stack(tracker.grad_norms).cpu()
        draw(options.out, losses, norms, options.max_norm)
        count = accelerator.num_processes
        last_epoch = losses[-len(train_loader) :].mean()
        clipped = (norms > options.max_norm).sum()
        print(hooks.describe())
        print(f"processes {count}, steps {max_step}, clipped {clipped}")
        print(f"training loss {last_epoch:.4f}")
        print(f"steps per second {max_step / tracker.seconds:.0f}")
        print(f"test accuracy {accuracy:.4f}")
        if options.profile:
            print(profiler.table())
            profiler.plot(options.out.with_stem(f"{options.out.stem}_hooks"))
    # Without these, torchrun's children were seen to die as they exit.
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
