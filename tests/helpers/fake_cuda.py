"""A stand-in for CUDA streams and events, for machines without a GPU.

It follows torch's c10/cuda/CUDAEvent.h (torch 2.13) and CUDA's rules for
captures in the mode "global", torch's default: an event belongs to the device
on which it was recorded first; recorded again, it counts from there; whoever
queries an event or waits for one during a capture gets an error, and the
capture is lost. Streams run nothing. Each has a clock of its own, which an
event that is recorded puts forward by 1 ms.
"""

import itertools
import threading
from contextlib import contextmanager

import torch


class FakeCuda:
    """Takes the place of what HookProfiler uses of `torch.cuda`.

    Attributes:
        keeps_up (bool): Whether work has finished as soon as it is launched.
            If not, it has where somebody waited for it.
        made (list): All events.
        queries (int): How many times an event was queried.
    """

    def __init__(self):
        self.keeps_up = True
        self.made = []
        self.queries = 0
        self._default = Stream(0)
        self._current = threading.local()
        self._capture = None

    def install(self, monkeypatch):
        cuda = self

        class Event(FakeEvent):
            def __init__(self, enable_timing=False):
                super().__init__(cuda, enable_timing)

        for name, value in {
            "Event": Event,
            "current_stream": self.current_stream,
            "is_available": lambda: True,
            "is_current_stream_capturing": self.is_current_stream_capturing,
            "synchronize": self.synchronize,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def current_stream(self):
        return getattr(self._current, "stream", self._default)

    def set_stream(self, stream):
        """As torch's, it also makes the stream's device the current one."""
        self._current.stream = stream

    @contextmanager
    def stream(self, stream):
        before = self.current_stream()
        self.set_stream(stream)
        try:
            yield
        finally:
            self.set_stream(before)

    def capture_begin(self):
        assert self._capture is None
        self._capture = self.current_stream()
        self._capture_is_valid = True

    def capture_end(self):
        self._capture = None
        if not self._capture_is_valid:
            raise error("operation failed due to a previous error during")

    @contextmanager
    def graph(self):
        """Captures on a side stream, as `torch.cuda.graph` does."""
        with self.stream(Stream(self.current_stream().device.index)):
            self.capture_begin()
            yield
            self.capture_end()

    def is_current_stream_capturing(self):
        return self._capture is self.current_stream()

    def synchronize(self):
        """Waits for the current device, and for no other."""
        self.check_no_capture()
        for event in self.made:
            if event.device == self.current_stream().device:
                event.stream.wait_until(event.time)

    def check_no_capture(self):
        if self._capture is not None:
            self._capture_is_valid = False
            raise error("operation not permitted when stream is capturing")


class Stream:
    def __init__(self, device):
        self.device = torch.device("cuda", device)
        self.clock = itertools.count(1)
        self.finished = 0
        self.lock = threading.Lock()

    def wait_until(self, time):
        with self.lock:
            self.finished = max(self.finished, time)


class FakeEvent:
    def __init__(self, cuda, enable_timing):
        self.cuda = cuda
        self.enable_timing = enable_timing
        self.device = None
        cuda.made.append(self)

    def record(self, stream=None):
        stream = stream or self.cuda.current_stream()
        self.device = self.device or stream.device
        if self.device != stream.device:
            raise RuntimeError(
                f"Event device {self.device.index} does not match recording "
                f"stream's device {stream.device.index}."
            )
        self.stream = stream
        self.captured = stream is self.cuda._capture
        if not self.captured:
            self.time = next(stream.clock)

    def query(self):
        self.cuda.queries += 1
        if self.device is None:
            return True
        self.check()
        if self.cuda.keeps_up:
            self.stream.wait_until(self.time)  # What is done stays done.
        return self.time <= self.stream.finished

    def synchronize(self):
        if self.device is not None:
            self.check()
            self.stream.wait_until(self.time)

    def check(self):
        if self.captured:
            raise error(
                "operation not permitted on an event last recorded in a "
                "capturing stream"
            )
        self.cuda.check_no_capture()

    def elapsed_time(self, end):
        if not (self.enable_timing and end.enable_timing):
            raise ValueError(
                "Both events must be created with argument "
                "'enable_timing=True'."
            )
        if self.device is None or end.device is None:
            raise ValueError(
                "Both events must be recorded before calculating elapsed time."
            )
        if not (self.query() and end.query()):
            raise RuntimeError(
                "Both events must be completed before calculating elapsed "
                "time."
            )
        if self.device != end.device:
            raise error("invalid resource handle")
        # What two streams of one device do has times, too, but not here.
        assert self.stream is end.stream
        return float(end.time - self.time)


def error(text):
    return RuntimeError(f"CUDA error: {text}")
