"""What clipping costs on a GPU, ours against RoboOrchardLab 0.4.0's hook.

    pytest benchmarks/test_clipping_cuda.py -s

Host time is that of the thread that launches kernels, device time that between
CUDA events; launches and waits are counted by torch's profiler and torch
itself. Both sides clip the same gradients, below and above the threshold, in
one interleaved run, and ratios of medians are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import thread_time_ns
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import clipping

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA GPU"
    ),
]

LIMITS = {"below": 1e12, "above": 1e-3}
CASES = {
    case.title: case
    for case in clipping.CASES
    if case.title in ("160 x 64 elements", "1,000 x 64", "150 x 500,000")
    or case.title.startswith(("transformer", "1,000 of", "20 x"))
}


@pytest.fixture(params=LIMITS)
def hooks(request: Any, title: str) -> list[Any]:
    """Each side's clip and restore functions, upstream's first."""
    limit = LIMITS[request.param]
    clips, restore = clipping.hooks_of(CASES[title], limit, "cuda")
    made = [(clip, restore) for clip in clips.values()]
    for clip, _ in made * 3:
        restore()
        clip()
    torch.cuda.synchronize()
    return made


def launches(clip: Any) -> int:
    """How many kernels a call launches."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        clip()
        torch.cuda.synchronize()
    return sum(
        event.device_type == torch.autograd.DeviceType.CUDA
        for event in profiled.events()
    )


def medians(
    hooks: list[Any], measure: Callable[[Any], float]
) -> tuple[float, float]:
    """Of what each side's clipping measures, in turn."""
    samples: list[list[float]] = [[], []]
    for _ in range(51):
        for (clip, restore), found in zip(hooks, samples, strict=True):
            restore()
            torch.cuda.synchronize()
            found.append(measure(clip))
    return median(samples[0]), median(samples[1])


def host_ns(clip: Any) -> float:
    """Nanoseconds of the calling thread."""
    start = thread_time_ns()
    clip()
    return thread_time_ns() - start


def device_ms(clip: Any) -> float:
    """Milliseconds of the device, which finds all the work queued."""
    torch.cuda._sleep(20_000_000)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    clip()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


@pytest.mark.parametrize("title", ["1,000 x 64"])
def test_host_time(hooks: list[Any], title: str) -> None:
    """Three times less of the thread that launches kernels."""
    theirs, mine = medians(hooks, host_ns)
    print(f"\n{title}: host {theirs / 1e3:.0f} us, ours {mine / 1e3:.0f} us")
    assert theirs >= 3 * mine


@pytest.mark.parametrize("title", ["1,000 x 64"])
def test_launches(hooks: list[Any], title: str) -> None:
    """At most three for each four of upstream's."""
    theirs, mine = (launches(clip) for clip, _ in hooks)
    print(f"\n{title}: {theirs} kernels launched, ours {mine}")
    assert mine <= 0.75 * theirs


@pytest.mark.parametrize("title", CASES)
def test_no_waiting(hooks: list[Any], title: str) -> None:
    """None for the device."""
    _, (clip, _) = hooks
    torch.cuda.set_sync_debug_mode("error")
    try:
        clip()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("title", CASES)
def test_device_time(hooks: list[Any], title: str) -> None:
    """No more of the device's than upstream's."""
    theirs, mine = medians(hooks, device_ms)
    print(f"\n{title}: device {theirs:.3f} ms, ours {mine:.3f} ms")
    assert theirs >= 0.95 * mine
