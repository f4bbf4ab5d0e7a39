"""What surrounds a callback while it is profiled: ranges and CUDA events."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from robo_orchard_fasthooks._record import Stats

__all__ = ["DeviceTimer", "Markers", "nvtx_range"]


class Markers:
    """Enters context managers before a callback and exits them after it.

    Args:
        *factories (Callable[[], AbstractContextManager]): Make the context
            managers of one run of the callback.
    """

    def __init__(
        self, *factories: Callable[[], AbstractContextManager[object]]
    ):
        self._factories = factories
        self._thread = _Thread()

    def open(self) -> None:
        """Enters a new context manager of each kind, or none if one raises."""
        with ExitStack() as stack:
            for factory in self._factories:
                stack.enter_context(factory())
            self._thread.entered.append(stack.pop_all())

    def close(self) -> None:
        """Exits the context managers that this thread entered last."""
        self._thread.entered.pop().close()


class _Thread(threading.local):
    # One list for each thread, because several threads may run the same
    # callback at once. It has several entries where a callback runs itself.
    def __init__(self) -> None:
        self.entered: list[ExitStack] = []


@contextmanager
def nvtx_range(name: str) -> Iterator[None]:
    """Marks the body as an NVTX range.

    Args:
        name (str): The name of the range. `torch.cuda.nvtx.range` would pass
            it to `str.format`, which raises for a name with braces.
    """
    nvtx: Any = torch.cuda.nvtx
    nvtx.range_push(name)
    try:
        yield
    finally:
        nvtx.range_pop()


class DeviceTimer:
    """Times work on CUDA devices by events, without waiting for it.

    Attributes:
        stats (Stats): The times that are known, in nanoseconds.
    """

    def __init__(self) -> None:
        self.stats = Stats()
        self._pending: deque[tuple[torch.device, Any, Any]] = deque()
        # Events to be recorded again, by device: an event belongs to the
        # device on which it was recorded first.
        self._free: dict[torch.device, list[Any]] = {}

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Times what its body launches in the current stream."""
        if torch.cuda.is_current_stream_capturing():
            yield  # The work runs when the graph is replayed.
            return
        stream = torch.cuda.current_stream()
        start = self._record(stream)
        yield
        if torch.cuda.is_current_stream_capturing():
            return
        self._pending.append((stream.device, start, self._record(stream)))
        self.resolve()

    def resolve(self, wait: bool = False) -> None:
        """Adds the times of the work that has finished.

        Nothing is added while the current stream is being captured, because
        CUDA then permits neither to query an event nor to wait for one.

        Args:
            wait (bool): Whether to wait for all work that is being timed, each
                on its own device.
        """
        if torch.cuda.is_current_stream_capturing():
            return
        for _ in range(len(self._pending)):
            try:
                # Taken out first, so that only this thread reads its time.
                pending = self._pending.popleft()
            except IndexError:
                return
            device, start, end = pending
            finished = False
            try:
                if wait:
                    end.synchronize()
                finished = end.query()
            finally:
                if not finished:
                    self._pending.appendleft(pending)
            if not finished:
                return
            self.stats.record(int(start.elapsed_time(end) * 1e6))
            self._free.setdefault(device, []).extend((start, end))

    def clear(self) -> None:
        """Discards all times, including those that are not known yet."""
        self._pending.clear()
        self.stats.clear()

    def _record(self, stream: torch.cuda.Stream) -> Any:
        try:
            event = self._free[stream.device].pop()
        except LookupError:
            make: Any = torch.cuda.Event
            event = make(enable_timing=True)
        event.record(stream)
        return event
