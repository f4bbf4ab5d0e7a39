"""Clipping on CUDA that is captured in a graph once and then replayed.

Experimental: it has not run on a GPU. While gradients lie where they lay, one
launch does what the captured kernels did, with the same bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from robo_orchard_fasthooks._clipping import algorithm
from robo_orchard_fasthooks._clipping.algorithm import scale_to_norm_
from robo_orchard_fasthooks._clipping.cuda_graph import CudaGraph, Work
from robo_orchard_fasthooks._clipping.gradients import GradientNorm, Gradients
from robo_orchard_fasthooks._clipping.local import LocalGradients
from robo_orchard_fasthooks._clipping.norms import norm_of_gradients
from robo_orchard_fasthooks._clipping.refusals import (
    Name,
    are_contiguous,
    by_index,
    is_clampable,
)
from robo_orchard_fasthooks._clipping.scale_once import Tables

__all__ = ["Captured", "Replays", "clip_by_norm", "clip_by_value"]

# None of these was measured.
_CALLS = 3
"""Calls with the same key after which one is captured."""

_KEYS = 4
"""Keys, and so graphs, that are kept for one list of parameters. The
allocator may alternate between addresses, and lists that clip_grad_norm_ gets
may alternate too. A graph keeps 2 MiB or more of the device's memory."""

_COST = 16
"""Replays that make up for one capture; one makes up for one miss."""

_DEBT = 64
"""Misses that are not made up for, after which nothing is tried."""

_REST = 1000
"""Calls for which nothing is tried then."""

Key = Callable[[], Any]
Prepare = Callable[[], tuple[Work, Any]]


class Captured(Protocol):
    """Work that was captured, and not done. It refers to no gradient."""

    def replay(self) -> Tensor | None:
        """Does the work on the memory that the gradients had.

        Returns:
            Tensor | None: A copy of its result, which no replay changes.
        """

    def release(self) -> None:
        """Gives back the memory of the graph."""


@dataclass(eq=False)
class _Entry:
    """What is known of one key."""

    key: Any
    calls: int = 0
    captured: Captured | None = None
    kept: Any = None

    def release(self) -> None:
        if self.captured is not None:
            self.captured.release()


class Replays:
    """When the clipping of one list of parameters is captured and replayed.

    Args:
        capture (Callable[[Work], Captured]): Captures work without doing it.
    """

    def __init__(self, capture: Callable[[Work], Captured]):
        self._capture = capture
        self._entries: list[_Entry] = []  # The one used last is first.
        self._debt = 0
        self._rest = 0.0
        self._lock = Lock()

    def __call__(self, key: Key, prepare: Prepare) -> Tensor | None:
        """Does some work, or replays it.

        Args:
            key (Key): Returns all that the work depends on but the values of
                gradients.
            prepare (Prepare): Makes the work, and what has to be kept for as
                long as it may be replayed.

        Returns:
            Tensor | None: The result of the work.
        """
        # A thread that comes meanwhile must not wait, nor replay a graph
        # whose result another thread has yet to copy.
        if not self._lock.acquire(blocking=False):
            return prepare()[0]()
        try:
            if self._rest:
                self._rest -= 1
                return prepare()[0]()
            return self._run(self._entry(key()), prepare)
        finally:
            self._lock.release()

    def _run(self, entry: _Entry, prepare: Prepare) -> Tensor | None:
        if entry.captured is not None:
            try:
                result = entry.captured.replay()
                self._debt = max(0, self._debt - 1)
            except Exception as error:
                result = prepare()[0]()
                self._failed("replayed", error)
            return result
        work, kept = prepare()
        # Done before it is captured: a capture that fails loses nothing, and
        # whatever has to be compiled, planned or copied to the device exists.
        result = work()
        entry.calls += 1
        self._debt += 1
        if entry.calls == _CALLS:
            self._debt += _COST
            try:
                entry.captured = self._capture(work)
                entry.kept = kept
            except Exception as error:
                self._failed("captured", error)
        if self._debt > _DEBT:
            self._forget(_REST)
        return result

    def _entry(self, key: Any) -> _Entry:
        entries = self._entries
        entry = next((each for each in entries if each.key == key), None)
        if entry is None:
            entry = _Entry(key)
            if len(entries) == _KEYS:
                entries.pop().release()
        else:
            entries.remove(entry)
        entries.insert(0, entry)
        return entry

    def _failed(self, what: str, error: Exception) -> None:
        self._forget(float("inf"))
        warnings.warn(
            f"gradients are clipped without a CUDA graph, because it could "
            f"not be {what}: {type(error).__name__}: {error}",
            stacklevel=2,
        )

    def _forget(self, rest: float) -> None:
        for entry in self._entries:
            entry.release()
        self._entries, self._debt, self._rest = [], 0, rest


# A graph is freed with the plans of the list that it belongs to.
_REPLAYS: WeakKeyDictionary[Gradients, Replays] = WeakKeyDictionary()


def clip_by_norm(
    gradients: Gradients,
    params: list[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    name: Name = by_index,
) -> GradientNorm:
    """Clips as algorithm.clip_by_norm, if it can by a CUDA graph."""
    grads, addresses = _eligible(gradients, params, foreach)
    others = (foreach, name)
    if not grads or error_if_nonfinite:  # The host has to read the norm.
        return algorithm.clip_by_norm(
            gradients, params, max_norm, norm_type, error_if_nonfinite, *others
        )
    max_norm, norm_type = float(max_norm), float(norm_type)

    def prepare() -> tuple[Work, Any]:
        tables = Tables(grads)

        def work() -> Tensor:
            norm = norm_of_gradients(
                gradients, params, norm_type, False, *others
            )
            scale_to_norm_(
                gradients, params, norm, max_norm, *others, tables.multiply_
            )
            return norm.total_norm

        return work, tables

    # As text, -0.0 is not 0.0.
    settings = ("norm", repr(max_norm), repr(norm_type))
    total_norm: Any = _run(gradients, grads, addresses, settings, prepare)
    return GradientNorm(total_norm, [])


def clip_by_value(
    gradients: Gradients,
    params: list[Tensor],
    clip_value: float,
    foreach: bool | None = None,
    name: Name = by_index,
) -> None:
    """Clips as algorithm.clip_by_value, if it can by a CUDA graph."""
    clip_value = float(clip_value)
    grads, addresses = _eligible(gradients, params, foreach)
    if (
        not grads
        or not are_contiguous(grads)
        or not is_clampable(grads, clip_value)
    ):
        algorithm.clip_by_value(gradients, params, clip_value, foreach, name)
        return

    def prepare() -> tuple[Work, Any]:
        tables = Tables(grads, clip_value)
        return lambda: tables.clamp_(grads), tables

    settings = ("value", repr(clip_value))
    _run(gradients, grads, addresses, settings, prepare)


@torch.no_grad()
def _run(
    gradients: Gradients,
    grads: list[Tensor],
    addresses: list[int],
    settings: tuple[str, ...],
    prepare: Prepare,
) -> Tensor | None:
    if gradients not in _REPLAYS:
        _REPLAYS[gradients] = Replays(CudaGraph)
    with torch.cuda.device(grads[0].get_device()):
        key = partial(_key, grads, addresses, settings)
        return _REPLAYS[gradients](key, prepare)


def _eligible(
    gradients: Gradients, params: list[Tensor], foreach: bool | None
) -> tuple[list[Tensor], list[int]]:
    """The gradients and their addresses; none if not for a CUDA graph."""
    if foreach is False or type(gradients) is not LocalGradients:
        return [], []
    grads = gradients.local(params)
    if set(map(type, grads)) != {Tensor} or not _on_cuda(grads):
        return [], []
    if {grad.layout for grad in grads} != {torch.strided}:
        return [], []
    addresses = list(map(Tensor.data_ptr, grads))
    # The kernel would race where one is there twice. Empty ones are at 0.
    others = max(0, addresses.count(0) - 1)
    if len(set(addresses)) + others < len(grads):
        return [], []
    return grads, addresses


def _on_cuda(grads: list[Tensor]) -> bool:
    """Whether one CUDA device has all, and is not capturing already.

    What this package prepares on the host does not outlive a capture by
    somebody else.
    """
    one = len(set(map(Tensor.get_device, grads))) == 1
    if not (one and grads[0].is_cuda and torch.version.hip is None):
        return False
    with torch.cuda.device(grads[0].get_device()):
        return not torch.cuda.is_current_stream_capturing()


def _key(
    grads: list[Tensor], addresses: list[int], settings: tuple[str, ...]
) -> Any:
    """All that the work depends on, but the values of gradients."""
    return (
        settings,
        _queue(grads[0].device),
        addresses,
        [grad.dtype for grad in grads],
        [grad.shape for grad in grads],
        list(map(Tensor.stride, grads)),
    )


def _queue(device: torch.device) -> tuple[Any, ...]:
    """Where kernels are queued, and how torch.autocast changes them."""
    return (
        device,
        torch.cuda.current_stream(device).cuda_stream,
        torch.is_autocast_enabled("cuda"),
        Tables.usable,
    )
