"""Measures clipping on this machine's GPU, beside RoboOrchardLab 0.4.0's hook.

    python benchmarks/gpu.py

Prints rows as JSON, in less than four minutes; exits with 2 without a GPU.
Launches and waits are tested by `pytest -m cuda`.
"""

from __future__ import annotations

import gc
import json
import platform
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from statistics import median
from time import perf_counter, thread_time_ns
from typing import Any

import torch
from torch import nn

import clipping
from clipping import BF16, MIXED, Case, Clip, different, equal
from compare import in_turn
from robo_orchard_fasthooks import clip_grad_norm_

CASES = [
    Case("160 x 64", equal(160, 64)),
    Case("1,000 x 64", equal(1000, 64)),
    Case("1,000 x 64, bfloat16 and float32", equal(1000, 64), MIXED),
    Case("300 of different shapes, mixed", different(300), MIXED),
    clipping.RESNET,
    Case("200 x 262,144", equal(200, 262_144)),
    # A billion parameters.
    Case("60 x 16.8M, bfloat16", equal(60, 4096 * 4096), (BF16,)),
    Case("60 x 16.8M", equal(60, 4096 * 4096)),
    Case("1,000 x 64, by value", equal(1000, 64), mode="value"),
    Case("200 x 262,144, by value", equal(200, 262_144), mode="value"),
]
GRAPH = "this package, cuda_graph"
HOOKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "RoboOrchardLab": (clipping.LIBRARIES["upstream"], {}),
    "this package": (clipping.LIBRARIES["ours"], {}),
    GRAPH: (clipping.LIBRARIES["ours"], {"cuda_graph": True}),
}


def host_us(clip: Clip) -> float:
    """Microseconds of the thread that launches, not of the wall."""
    start = thread_time_ns()
    clip()
    return (thread_time_ns() - start) / 1000


def device_us(clip: Clip) -> float:
    """Microseconds between CUDA events, with all the work queued.

    The device sleeps until then. It queues about a thousand launches; of a
    call that takes more, the gaps between the last ones may be counted.
    """
    torch.cuda._sleep(50_000_000)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    clip()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1000


def compare(case: Case, side: str) -> list[dict[str, Any]]:
    """Medians of the hooks, which take turns; the graph has been captured."""
    gc.collect()  # The gradients of the last case are in cycles.
    params = clipping.parameters(case, "cuda")
    restore = clipping.restoring(params)
    limit = clipping.LIMITS[side]
    clips = {
        who: clipping.clip_of(library, params, limit, case, **settings)
        for who, (library, settings) in HOOKS.items()
    }

    def restored(clip: Clip, measure: Callable[[Clip], float]) -> float:
        restore()
        torch.cuda.synchronize()
        return measure(clip)

    hosts, devices = (
        in_turn(clips, partial(restored, measure=measure), 31, warm_up=4)
        for measure in (host_us, device_us)
    )
    return [
        {
            "gradients": case.title,
            "side": side,
            "hook": who,
            "host_us": median(hosts[who]),
            "device_us": median(devices[who]),
        }
        for who in clips
    ]


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a copy of 1 GiB."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = [device_us(lambda: target.copy_(source)) for _ in range(21)]
    return 2 * source.numel() / (median(times) / 1e6)


@dataclass(frozen=True)
class Loop:
    """A training loop.

    A CUDA graph of clipping can be replayed while gradients stay at their
    addresses, which the loop and torch's allocator decide.
    """

    title: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    """Of a batch."""
    dtype: torch.dtype = torch.float32
    set_to_none: bool = True
    varies: bool = False
    """Whether the second dimension, the length, differs from step to step."""


def policy() -> nn.Module:
    """A small MLP, as robots are controlled by."""
    sizes = ((64, 256), (256, 256), (256, 64))
    return nn.Sequential(*(nn.Linear(n, m) for n, m in sizes))


def transformer() -> nn.Module:
    """Six layers of width 256."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, 0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)


LOOPS = [
    Loop("MLP policy", policy, (256, 64)),
    Loop("MLP policy, gradients kept", policy, (256, 64), set_to_none=False),
    Loop("transformer, bf16", transformer, (16, 128, 256), BF16),
    Loop("lengths vary", transformer, (16, 128, 256), BF16, varies=True),
]
CLIPS: dict[str, Callable[[list[nn.Parameter]], object]] = {
    "no clipping": lambda params: None,
    "torch": partial(nn.utils.clip_grad_norm_, max_norm=1.0),
    "this package": partial(clip_grad_norm_, max_norm=1.0),
    GRAPH: partial(clip_grad_norm_, max_norm=1.0, cuda_graph=True),
}


def trained(
    loop: Loop, clip: Callable[[list[nn.Parameter]], object]
) -> Callable[[], None]:
    """Makes a step of training: forward, backward, clipping, optimizer."""
    torch.manual_seed(0)
    model = loop.build().to("cuda", loop.dtype)
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, lr=1e-4)
    batch = torch.randn(loop.shape, device="cuda", dtype=loop.dtype)
    lengths = random.Random(0)

    def step() -> None:
        inputs = batch
        if loop.varies:
            length = lengths.randint(batch.shape[1] // 4, batch.shape[1])
            inputs = batch[:, :length]
        optimizer.zero_grad(loop.set_to_none)
        (model(inputs) - inputs).square().mean().backward()
        clip(params)
        optimizer.step()

    return step


def measure_loop(loop: Loop) -> dict[str, Any]:
    """Steps per second, and how often no gradient has moved since the last."""
    seen: list[list[int]] = []
    noting = trained(
        loop, lambda params: seen.append([p.grad.data_ptr() for p in params])
    )
    for _ in range(210):
        noting()
    pairs = list(zip(seen[9:], seen[10:], strict=False))
    steps = {name: trained(loop, clip) for name, clip in CLIPS.items()}

    def speed(step: Callable[[], None]) -> float:
        torch.cuda.synchronize()
        start = perf_counter()
        for _ in range(50):
            step()
        torch.cuda.synchronize()
        return 50 / (perf_counter() - start)

    # The first round compiles, captures and plans.
    samples = in_turn(steps, speed, 7, warm_up=1)
    return {
        "loop": loop.title,
        "in_place": sum(a == b for a, b in pairs) / len(pairs),
        **{name: median(found) for name, found in samples.items()},
    }


def main() -> int:
    """Measures and prints; returns the exit status."""
    if not torch.cuda.is_available():
        print("gpu.py: no CUDA GPU here, nothing is measured", file=sys.stderr)
        return 2
    machine = {
        "card": torch.cuda.get_device_name(),
        "CUDA": torch.version.cuda,
        "Python": platform.python_version(),
        **{n: version(n) for n in ("torch", "robo_orchard_fasthooks")},
        "copy_bytes_per_second": copy_bandwidth(),
    }
    print(json.dumps(machine), flush=True)
    for case in CASES:
        for side in clipping.LIMITS:
            for row in compare(case, side):
                print(json.dumps(row), flush=True)
    for loop in LOOPS:
        print(json.dumps(measure_loop(loop)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
