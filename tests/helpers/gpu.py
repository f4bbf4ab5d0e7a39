"""What a call has a GPU do, and whether it waits for it."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile


def launches(call: Callable[[], object]) -> int:
    """How many kernels, copies and fills a call has the device run."""
    torch.cuda.synchronize()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as profiled:
        call()
        torch.cuda.synchronize()
    return sum(
        event.device_type == torch.autograd.DeviceType.CUDA
        for event in profiled.events()
    )


@contextmanager
def sync_debug_mode(mode: str) -> Iterator[None]:
    """Has what makes the host wait for the device warn, or be an error."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*prototype feature")
            torch.cuda.set_sync_debug_mode(mode)
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
