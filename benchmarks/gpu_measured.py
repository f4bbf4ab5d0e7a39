"""Measures what clipping costs on a GPU, in RoboOrchardLab 0.4.0's hook too.

All sides clip the same gradients, in turn, and these are restored before each
call.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import thread_time_ns

import torch
from torch.profiler import ProfilerActivity, profile

import clipping

__all__ = [
    "CASES",
    "LIMITS",
    "Side",
    "copy_bandwidth",
    "device_us",
    "host_us",
    "launches",
    "medians",
    "sides",
    "sync_debug_mode",
    "syncs",
]

Clip = Callable[[], object]

LIMITS = {"below": 1e12, "above": 1e-3}
"""Bounds, by the side of them on which the norm is."""

CASES = {
    case.title: case
    for case in (
        clipping.Case("160 x 64, float32", clipping.equal(160, 64)),
        clipping.Case("1,000 x 64, float32", clipping.equal(1000, 64)),
        clipping.Case("2,000 x 64, float32", clipping.equal(2000, 64)),
        clipping.Case(
            "1,000 x 64, bfloat16 and float32",
            clipping.equal(1000, 64),
            dtypes=[torch.bfloat16, torch.float32],
        ),
        clipping.Case(
            "300 of different shapes, bfloat16 and float32",
            clipping.different(300),
            dtypes=[torch.bfloat16, torch.float32],
        ),
        clipping.Case(
            "transformer, 12 layers of 256", clipping.transformer(12, 256)
        ),
        clipping.Case("200 x 262,144, float32", clipping.equal(200, 262_144)),
        # A billion parameters.
        clipping.Case(
            "60 x 16.8M, bfloat16",
            clipping.equal(60, 4096 * 4096),
            dtypes=[torch.bfloat16],
        ),
        clipping.Case("60 x 16.8M, float32", clipping.equal(60, 4096 * 4096)),
        clipping.Case(
            "1,000 x 64, by value", clipping.equal(1000, 64), mode="value"
        ),
        clipping.Case(
            "200 x 262,144, by value",
            clipping.equal(200, 262_144),
            mode="value",
        ),
    )
}


@dataclass(frozen=True)
class Side:
    """A hook that clips, and what restores the gradients."""

    clip: Clip
    restore: Clip


def sides(case: clipping.Case, limit: float) -> list[Side]:
    """RoboOrchardLab's hook, and this package's without and with a graph.

    All are warm: the graph is captured.
    """
    gc.collect()  # The gradients of the last case are in cycles.
    clips, restore = clipping.hooks_of(case, limit, "cuda")
    made = [Side(clip, restore) for clip in clips.values()]
    for side in made * 4:
        side.restore()
        side.clip()
    torch.cuda.synchronize()
    return made


@contextmanager
def sync_debug_mode(mode: str) -> Iterator[None]:
    """Whatever makes the host wait for the device warns, or is an error."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*prototype feature")
            torch.cuda.set_sync_debug_mode(mode)
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def syncs(clip: Clip) -> int:
    """How often a call makes the host wait for the device."""
    with (
        warnings.catch_warnings(record=True) as found,
        sync_debug_mode("warn"),
    ):
        warnings.simplefilter("always")
        clip()
    return sum("synchronizing" in str(each.message) for each in found)


def launches(clip: Clip) -> int:
    """How many kernels, copies and fills a call has the device run."""
    torch.cuda.synchronize()
    with profile(
        activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]
    ) as profiled:
        clip()
        torch.cuda.synchronize()
    return sum(
        event.device_type == torch.autograd.DeviceType.CUDA
        for event in profiled.events()
    )


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


def medians(
    compared: Sequence[Side],
    measure: Callable[[Clip], float],
    rounds: int = 31,
) -> list[float]:
    """Measures the sides in turn, and returns the median of each."""
    samples: list[list[float]] = [[] for _ in compared]
    for _ in range(rounds):
        for side, found in zip(compared, samples, strict=True):
            side.restore()
            torch.cuda.synchronize()
            found.append(measure(side.clip))
    return list(map(median, samples))


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a copy of 1 GiB."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = [device_us(lambda: target.copy_(source)) for _ in range(21)]
    return 2 * source.numel() / (median(times) / 1e6)
