"""Clipping on CUDA that is captured in a graph once and then replayed.

Experimental: it has not run on a GPU. While gradients stay at the same
addresses, one graph launch replaces all kernels, with the same bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from robo_orchard_fasthooks._clipping import algorithm
from robo_orchard_fasthooks._clipping.gradients import Call, Gradients
from robo_orchard_fasthooks._clipping.groups import Group
from robo_orchard_fasthooks._cuda_graph.capture import CudaGraph, Work
from robo_orchard_fasthooks._cuda_graph.tables import Tables

# None of these was measured on a GPU.
_CALLS = 3
"""Calls with the same key after which one is captured."""

_KEYS = 4
"""Keys, and so graphs, that are kept for one list of parameters: the allocator
may alternate between addresses. A graph keeps 2 MiB or more of the device's
memory."""

_COST = 16
"""Replays that make up for one capture; one makes up for one miss."""

_DEBT = 64
"""Misses that are not made up for, above which nothing is tried."""

_REST = 1000
"""Calls for which nothing is tried then."""

_ARE_AT = "_tensors_data_ptrs_at_indices_equal"
"""A function of torch._C, of CUDA builds only."""

# torch makes an object of a stream in 10 us, or 60 if the caches are cold.
_current_stream: Any = getattr(
    torch._C, "_cuda_getCurrentRawStream", torch.cuda.current_stream
)

_Prepare = Callable[[], tuple[Work, Tables]]


def clip_by_norm(
    call: Call,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> tuple[Tensor, Any]:
    """Clips as algorithm.clip_by_norm, if it can by a CUDA graph."""
    max_norm, norm_type = float(max_norm), float(norm_type)
    group = _eligible(call)
    # For error_if_nonfinite, the host has to read the norm.
    if group is not None and not error_if_nonfinite:

        def prepare() -> tuple[Work, Tables]:
            tables = Tables(group.grads)

            def work() -> Tensor:
                total_norm: Tensor = group.plan.norm(group.grads, norm_type)
                coefficient = algorithm.coefficient_of(total_norm, max_norm)
                tables.multiply_(group.plan.groups(group.grads), coefficient)
                return total_norm

            return work, tables

        # As text, -0.0 is not 0.0.
        settings = "norm", repr(max_norm), repr(norm_type)
        is_done, total_norm = _run(call, group, settings, prepare)
        if is_done:
            return total_norm, None
    return algorithm.clip_by_norm(
        call, max_norm, norm_type, error_if_nonfinite
    )


def clip_by_value(call: Call, clip_value: float) -> None:
    """Clips as algorithm.clip_by_value, if it can by a CUDA graph."""
    clip_value = float(clip_value)
    group = _eligible(call)
    if group is not None and group.plan.can_clamp(clip_value):

        def prepare() -> tuple[Work, Tables]:
            tables = Tables(group.grads, clip_value)
            by_dtype = group.plan.groups(group.grads)
            return lambda: tables.clamp_(by_dtype), tables

        settings = "value", repr(clip_value)
        is_done, _ = _run(call, group, settings, prepare)
        if is_done:
            return
    algorithm.clip_by_value(call, clip_value)


def _eligible(call: Call) -> Any:
    """The group of plain gradients on CUDA; None if there are others."""
    if type(call.gradients) is not Gradients or len(call.groups) != 1:
        return None
    group: Any = call.groups[0]
    if (
        not isinstance(group, Group)
        or group.mesh is not None
        or group.plan is None
        or group.plan.device.type != "cuda"
        or torch.version.hip is not None
        or not group.plan.is_writable
        or type(group.grads[0]) is not Tensor
    ):
        return None
    return group


# A graph is freed with the plans of the list that it belongs to.
_REPLAYS: WeakKeyDictionary[Gradients, _Replays] = WeakKeyDictionary()


def _run(
    call: Call, group: Any, settings: tuple[str, ...], prepare: _Prepare
) -> tuple[bool, Any]:
    replays = _REPLAYS.get(call.gradients)
    if replays is None:
        replays = _REPLAYS[call.gradients] = _Replays()
    if replays.rest:
        replays.rest -= 1
        return False, None
    device = group.plan.device
    if torch.cuda.current_device() != device.index:
        with torch.cuda.device(device):
            return _run(call, group, settings, prepare)
    # What is prepared on the host would not outlive a capture by somebody
    # else.
    if torch.cuda.is_current_stream_capturing():
        return False, None
    return replays(group, settings, prepare)


class _Entry:
    """Gradients at some addresses, to be clipped in some way."""

    def __init__(self, key: Any):
        self._key = key
        # All addresses are read when the key comes again.
        self.addresses: list[int] = []
        self._indices: list[int] = []
        self.calls = 0
        self.graph: CudaGraph | None = None

    def is_for(self, key: Any, grads: list[Tensor]) -> bool:
        if key != self._key:
            return False
        if not self.addresses:
            self.addresses = list(map(Tensor.data_ptr, grads))
            self._indices = list(range(len(grads)))
            return True
        # torch's own comparison takes 50 ns for each gradient, a list of its
        # addresses 80.
        are_at = getattr(torch._C, _ARE_AT, None)
        if are_at is not None:
            return bool(are_at(grads, self.addresses, self._indices))
        return list(map(Tensor.data_ptr, grads)) == self.addresses


class _Replays:
    """When the clipping of one list of parameters is captured and replayed."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []  # The one used last is first.
        self._debt = 0
        self.rest = 0.0
        self._lock = Lock()

    def __call__(
        self, group: Any, settings: tuple[str, ...], prepare: _Prepare
    ) -> tuple[bool, Any]:
        """Replays or captures the work; returns whether it did, and the norm.

        `prepare` makes the work, and what has to exist while it is replayed.
        """
        # A thread that comes meanwhile must not wait, nor replay a graph
        # whose result another thread has yet to copy.
        if not self._lock.acquire(blocking=False):
            return False, None
        try:
            grads = group.grads
            key = (
                settings,
                _current_stream(group.plan.device.index),
                torch.is_autocast_enabled("cuda"),
                group.plan,  # For the same types, dtypes and layouts.
                # So that addresses which never repeat cost next to nothing.
                grads[0].data_ptr(),
                grads[len(grads) // 2].data_ptr(),
                grads[-1].data_ptr(),
            )
            entry = self._entry(key, grads)
            if entry.graph is not None:
                return self._replay(entry.graph)
            entry.calls += 1
            self._debt += 1
            if self._debt > _DEBT:
                self._forget(_REST)
                return False, None
            # The kernel would race where a gradient is there twice.
            if entry.calls != _CALLS or _has_repeats(entry.addresses):
                return False, None
            return True, self._capture(entry, prepare)
        finally:
            self._lock.release()

    def _entry(self, key: Any, grads: list[Tensor]) -> _Entry:
        entries = self._entries
        for index, entry in enumerate(entries):
            if entry.is_for(key, grads):
                del entries[index]
                break
        else:
            entry = _Entry(key)
            del entries[_KEYS - 1 :]
        entries.insert(0, entry)
        return entry

    def _replay(self, graph: CudaGraph) -> tuple[bool, Any]:
        try:
            result = graph.replay()
        except Exception as error:
            self._give_up("replayed", error)
            return False, None
        self._debt = max(0, self._debt - 1)
        return True, result

    def _capture(self, entry: _Entry, prepare: _Prepare) -> Any:
        self._debt += _COST
        with torch.set_grad_enabled(False):
            work, kept = prepare()
            # Done before it is captured: a capture that fails loses nothing,
            # and what is compiled, planned or copied to the device exists.
            result = work()
            try:
                entry.graph = CudaGraph(work, kept)
            except Exception as error:
                self._give_up("captured", error)
        return result

    def _give_up(self, what: str, error: Exception) -> None:
        self._forget(float("inf"))
        warnings.warn(
            f"gradients are clipped without a CUDA graph, because it could "
            f"not be {what}: {type(error).__name__}: {error}",
            stacklevel=2,
        )

    def _forget(self, rest: float) -> None:
        self._entries, self._debt, self.rest = [], 0, rest


def _has_repeats(addresses: list[int]) -> bool:
    present = list(filter(None, addresses))  # Empty gradients are at 0.
    return len(set(present)) < len(present)
