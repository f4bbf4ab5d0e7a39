"""What the report measures, and by whom it is done.

Hooks and arguments are timed in one interleaved run, clipping in turn on one
thread, with the gradients restored before each call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter_ns

import torch
from accelerate import Accelerator
from torch.nn import Parameter

import peers
import workloads
from clipping import LIBRARIES, OF_MODELS, gradients, hook_of_config
from compare import interleaved
from figures import OURS, UPSTREAM
from workloads import Run

__all__ = ["FLOOR", "Row", "measure"]

FLOOR = "floor"
MODELS = ("policy of 2,000 tensors", "ResNet-50")
LIMITS = {"below": 1e12, "above": 1e-3}
WARM_UP = 3


@dataclass
class Row:
    """How long one implementation takes for one piece of work."""

    work: str
    who: str
    ns: float
    """The median."""
    ratio: float
    """To ours: the median over the rounds."""


Samples = dict[tuple[str, str], list[float]]


def dispatch(rounds: int) -> Samples:
    """Hooks and arguments: nanoseconds by work and implementation."""
    ours, theirs = workloads.ours(), workloads.upstream()
    runs: dict[tuple[str, str], Run] = {}

    def add(work: str, make: Callable, floor: Run | None, mine=ours) -> None:
        runs[work, OURS] = make(mine)
        runs[work, UPSTREAM] = make(theirs)
        if floor:
            runs[work, FLOOR] = floor

    for count in (1, 4, 16):
        work = f"begin, {count} hook{'s' * (count > 1)}"
        hooks = workloads.from_callable
        make = partial(workloads.begin, make_hooks=hooks, count=count)
        add(work, make, workloads.begin_in_loops(hooks, count))
        for name, peer in peers.installed().items():
            runs[work, name] = peer(count)
    add("arguments built", workloads.build_args, None)
    add("arguments copied, 3 updates", workloads.copy_args, None)
    step, floor = workloads.step, workloads.step_inlined
    add("training step", step, floor(ours.args))
    lab = workloads.installed()
    add("RoboOrchardLab's step, install()", step, floor(lab.args), lab)
    return interleaved(runs, rounds)


def clip(rounds: int) -> Samples:
    """Clipping of models' gradients, below and above the threshold."""
    samples: Samples = {}
    for model in MODELS:
        case = next(c for c in OF_MODELS if c.title == f"{model}, float32")
        # The same memory for all: where it lies can make 10 % of the time.
        params = gradients(case)
        grads = [param.grad for param in params]
        saved = [grad.clone() for grad in grads]
        for side, limit in LIMITS.items():
            work = f"clip {model}, {side} threshold"
            clips = list(clips_of(params, limit).items())
            for number in range(WARM_UP + rounds):
                for who, call in clips:
                    torch._foreach_copy_(grads, saved)
                    start = perf_counter_ns()
                    call()
                    taken = perf_counter_ns() - start
                    if number >= WARM_UP:
                        samples.setdefault((work, who), []).append(taken)
    return samples


def clips_of(
    params: list[Parameter], limit: float
) -> dict[str, Callable[[], object]]:
    """All that clips by norm, by its name."""
    accelerator = Accelerator(cpu=True)
    hooks = {
        name: hook_of_config(
            library,
            accelerator,
            accelerator.prepare(torch.optim.SGD(params, lr=0.1)),
            max_norm=limit,
        )
        for name, library in LIBRARIES.items()
    }
    return {
        OURS: hooks["ours"],
        UPSTREAM: hooks["upstream"],
        "torch, foreach": peers.torch_clip(params, limit, foreach=True),
        "torch, single": peers.torch_clip(params, limit, foreach=False),
    }


def measure(rounds: int) -> list[Row]:
    """Medians, and ratios of what was measured side by side."""
    samples = dispatch(rounds) | clip(rounds)
    rows = []
    for (work, who), times in samples.items():
        pairs = zip(times, samples[work, OURS], strict=True)
        ratio = median(time / ours for time, ours in pairs)
        rows.append(Row(work, who, median(times), ratio))
    return rows
