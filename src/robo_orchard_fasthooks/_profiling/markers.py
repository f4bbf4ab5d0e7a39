"""What is opened before a callback and closed after it, by name."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from robo_orchard_fasthooks._record import Stats

__all__ = ["DeviceTimes", "nvtx_range", "profiler_range"]

Ends = tuple[Callable[[], object], Callable[[], object]]


def profiler_range(name: str) -> Ends:
    """Opens and closes a range of torch's profiler."""
    opened: list[Any] = []  # More than one where a hook runs itself.
    make: Any = torch.profiler.record_function

    def start() -> None:
        opened.append(make(name))
        opened[-1].__enter__()

    def end() -> None:
        opened.pop().__exit__(None, None, None)

    return start, end


def nvtx_range(name: str) -> Ends:
    """Opens and closes a range of NVTX."""
    nvtx: Any = torch.cuda.nvtx
    return lambda: nvtx.range_push(name), nvtx.range_pop


class DeviceTimes:
    """Times of the CUDA device, which nobody waits for.

    Args:
        stats (Stats): Gets the times, in nanoseconds.
    """

    def __init__(self, stats: Stats):
        self._stats = stats
        self._opened: list[Any] = []
        self._pending: deque[tuple[Any, Any]] = deque()

    def start(self) -> None:
        """Marks a beginning in the current stream."""
        self._opened.append(self._now())

    def end(self) -> None:
        """Marks the end."""
        self._pending.append((self._opened.pop(), self._now()))
        self.resolve()

    def resolve(self) -> None:
        """Takes the times of what the device is done with, in its order."""
        while self._pending and self._pending[0][1].query():
            start, end = self._pending.popleft()
            self._stats.record(int(start.elapsed_time(end) * 1e6))

    def clear(self) -> None:
        """Forgets all times, also those to come of what is done already."""
        self._pending.clear()
        self._stats.clear()

    def _now(self) -> Any:
        make: Any = torch.cuda.Event
        event = make(enable_timing=True)
        event.record()
        return event
