"""Training loops on a GPU: how often gradients stay in place, and their speed.

A CUDA graph of clipping can be replayed while gradients stay at the addresses
that they had, which the loop and torch's allocator decide.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from robo_orchard_fasthooks import clip_grad_norm_

__all__ = ["LOOPS", "Loop", "LoopRow", "measure"]

Clip = Callable[[list[nn.Parameter]], object]

CLIPS: dict[str, Clip] = {
    "no clipping": lambda params: None,
    "torch": partial(nn.utils.clip_grad_norm_, max_norm=1.0),
    "this package": partial(clip_grad_norm_, max_norm=1.0),
    "this package, cuda_graph": partial(
        clip_grad_norm_, max_norm=1.0, cuda_graph=True
    ),
}


@dataclass(frozen=True)
class Loop:
    """A training loop."""

    title: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    """Of a batch; the first dimension is its size."""
    dtype: torch.dtype = torch.float32
    set_to_none: bool = True
    varies: bool = False
    """Whether the second dimension, the length, differs from step to step."""


@dataclass
class LoopRow:
    """What was measured of a loop."""

    loop: str
    in_place: float
    """The share of steps in which each gradient lay where it lay before."""
    steps_per_second: dict[str, float]
    """By the way to clip; medians."""


def policy() -> nn.Module:
    """A small MLP, as robots are controlled by."""
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
        nn.Linear(256, 64),
    )  # fmt: skip


def transformer() -> nn.Module:
    """Six layers of width 256."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, 0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)


LOOPS = [
    Loop("MLP policy", policy, (256, 64)),
    Loop(
        "MLP policy, set_to_none=False", policy, (256, 64), set_to_none=False
    ),
    Loop("transformer, bf16", transformer, (16, 128, 256), torch.bfloat16),
    Loop(
        "transformer, bf16, lengths vary",
        transformer,
        (16, 128, 256),
        torch.bfloat16,
        varies=True,
    ),
]


class Trained:
    """A model in training."""

    def __init__(self, loop: Loop, device: str):
        torch.manual_seed(0)
        self._loop = loop
        self._model = loop.build().to(device, loop.dtype)
        self.params = list(self._model.parameters())
        self._optimizer = torch.optim.AdamW(self.params, lr=1e-4)
        self._batch = torch.randn(loop.shape, device=device, dtype=loop.dtype)
        self._lengths = random.Random(0)

    def step(self, clip: Clip) -> None:
        """Forward, backward, clipping and the optimizer's step."""
        batch: Tensor = self._batch
        if self._loop.varies:
            length = self._lengths.randint(batch.shape[1] // 4, batch.shape[1])
            batch = batch[:, :length]
        self._optimizer.zero_grad(self._loop.set_to_none)
        (self._model(batch) - batch).square().mean().backward()
        clip(self.params)
        self._optimizer.step()


def in_place(loop: Loop, device: str, steps: int) -> float:
    """The share of steps in which no gradient moved, after ten to begin."""
    trained = Trained(loop, device)
    seen: list[list[int]] = []

    def note(params: list[nn.Parameter]) -> None:
        grads = (param.grad for param in params)
        seen.append([grad.data_ptr() for grad in grads if grad is not None])

    for _ in range(steps + 10):
        trained.step(note)
    pairs = list(zip(seen[9:], seen[10:], strict=False))
    return sum(before == after for before, after in pairs) / len(pairs)


def speeds(
    loop: Loop, device: str, steps: int, rounds: int
) -> dict[str, float]:
    """Steps per second by each way to clip, in turn."""
    trained = {name: Trained(loop, device) for name in CLIPS}
    samples: dict[str, list[float]] = {name: [] for name in CLIPS}
    for _ in range(rounds + 1):
        for name, clip in CLIPS.items():
            synchronize(device)
            start = perf_counter()
            for _ in range(steps):
                trained[name].step(clip)
            synchronize(device)
            samples[name].append(steps / (perf_counter() - start))
    # The first round compiled, captured and planned.
    return {name: median(found[1:]) for name, found in samples.items()}


def synchronize(device: str) -> None:
    """Waits for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(
    device: str = "cuda", steps: int = 50, rounds: int = 7
) -> list[LoopRow]:
    """All loops."""
    return [
        LoopRow(
            loop.title,
            in_place(loop, device, 4 * steps),
            speeds(loop, device, steps, rounds),
        )
        for loop in LOOPS
    ]
