"""Work that is captured in a CUDA graph.

Experimental: it has not run on a GPU.
"""

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

Work = Callable[[], Tensor | None]

_DEFERRED: list[Any] = []
"""Graphs whose owners died during a capture by somebody else."""


class CudaGraph:
    """Work that torch.cuda.CUDAGraph has captured, without doing it.

    torch.cuda.graph would also collect garbage and empty the cache. Whatever
    the host has to prepare for the work was prepared by an earlier call.
    """

    def __init__(self, work: Work, kept: Any = None):
        _DEFERRED.clear()
        cuda: Any = torch.cuda  # torch does not type its streams.
        self._kept = kept
        self._graph = cuda.CUDAGraph()
        pool, stream = cuda.graph_pool_handle(), cuda.Stream()
        # capture_begin writes the seed and offset of the default generator,
        # which a graph of the user may be reading.
        stream.wait_stream(cuda.current_stream())
        with _no_garbage_collection(), cuda.stream(stream):
            self._graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                self._result = work()
            except BaseException:
                # What goes wrong from here on only follows from this error.
                with suppress(Exception), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self._end(pool)
                raise
            self._end(pool)
        cuda.current_stream().wait_stream(stream)

    def _end(self, pool: Any) -> None:
        try:
            self._graph.capture_end()
        except BaseException:
            with suppress(Exception):
                _clean_up(pool)
            raise

    def replay(self) -> Tensor | None:
        """Does the work; returns a copy of its result, which is kept."""
        result: Any = self._result
        # First what may fail, so that nothing has changed if it does.
        copy = None if result is None else torch.empty_like(result)
        self._graph.replay()
        return None if copy is None else copy.copy_(result)

    def __del__(self) -> None:
        # Destroying a graph would end another capture (pytorch#161037).
        with suppress(Exception):
            if torch.cuda.is_current_stream_capturing():
                _DEFERRED.append((self._graph, self._kept, self._result))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Garbage may hold a graph, whose destruction would end the capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _clean_up(pool: Any) -> None:
    """Does what CUDAGraph.capture_end of torch 2.11 leaves undone if it fails.

    Otherwise, from then on, the allocator would not free its cache, and the
    default generator would act as if it were being captured.
    """
    cuda: Any = torch._C
    device = torch.cuda.current_device()
    cuda._cuda_endAllocateToPool(device, pool)
    cuda._cuda_releasePool(device, pool)
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(capture_error_mode="thread_local")
    torch.zeros(1, device="cuda")
    graph.capture_end()
