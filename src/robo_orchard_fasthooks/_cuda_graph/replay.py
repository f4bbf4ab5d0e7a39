"""Clipping on CUDA that is captured in a graph once and then replayed.

Experimental: it has not run on a GPU. While gradients stay at the same
addresses, one graph launch replaces all kernels, with the same bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from robo_orchard_fasthooks._clipping import algorithm
from robo_orchard_fasthooks._clipping.gradients import Call, Gradients
from robo_orchard_fasthooks._clipping.groups import Group
from robo_orchard_fasthooks._cuda_graph.capture import CudaGraph, Work
from robo_orchard_fasthooks._cuda_graph.tables import Tables
from robo_orchard_fasthooks._snapshot import Snapshot

# None of these was measured on a GPU.
_CALLS = 3
"""The call with the same gradients and settings that captures a graph."""

_ENTRIES = 4
"""Entries, and so graphs, that are kept for one list of parameters: the
allocator may alternate between addresses. A graph keeps 2 MiB or more of the
device's memory."""

_COST = 16
"""What a capture adds to the debt. A call that is not replayed adds 1, and a
replay takes 1 off."""

_DEBT = 64
"""The debt above which all entries are dropped and nothing is tried."""

_REST = 1000
"""For how many calls nothing is tried then."""

# torch makes an object of a stream in 10 us, or 60 if the caches are cold.
_current_stream: Any = getattr(
    torch._C, "_cuda_getCurrentRawStream", torch.cuda.current_stream
)

_Prepare = Callable[[Group], tuple[Work, Tables] | None]


def clip_by_norm(
    call: Call, max_norm: float, norm_type: float, error_if_nonfinite: bool
) -> tuple[Tensor, Any]:
    """Clips as algorithm.clip_by_norm, if it can by a CUDA graph."""
    max_norm, norm_type = float(max_norm), float(norm_type)

    def prepare(group: Any) -> tuple[Work, Tables]:
        tables = Tables(group.grads)

        def work() -> Tensor:
            total_norm: Tensor = group.plan.norm(group.grads, norm_type)
            coefficient = algorithm.coefficient_of(total_norm, max_norm)
            tables.multiply_(group.plan.groups(group.grads), coefficient)
            return total_norm

        return work, tables

    # For error_if_nonfinite, the host has to read the norm.
    if not error_if_nonfinite:
        # As text, -0.0 is not 0.0.
        settings = "norm", repr(max_norm), repr(norm_type)
        is_done, total_norm = _run(call, settings, prepare)
        if is_done:
            return total_norm, None
    return algorithm.clip_by_norm(
        call, max_norm, norm_type, error_if_nonfinite
    )


def clip_by_value(call: Call, clip_value: float) -> None:
    """Clips as algorithm.clip_by_value, if it can by a CUDA graph."""
    clip_value = float(clip_value)

    def prepare(group: Any) -> tuple[Work, Tables] | None:
        if not group.plan.can_clamp(clip_value):
            return None
        tables = Tables(group.grads, clip_value)
        by_dtype = group.plan.groups(group.grads)
        return lambda: tables.clamp_(by_dtype), tables

    is_done, _ = _run(call, ("value", repr(clip_value)), prepare)
    if not is_done:
        algorithm.clip_by_value(call, clip_value)


def _device(params: list[Tensor]) -> torch.device | None:
    """The CUDA device on which gradients may be."""
    cuda: Any = torch.cuda  # torch does not type all of it.
    # CUDA tensors without an initialized CUDA are fake.
    if not params or torch.version.hip or not cuda.is_initialized():
        return None
    device = params[0].device
    return device if device.type == "cuda" else None


def _eligible(call: Call, device: torch.device) -> Any:
    """The group of plain gradients on the device; None if there are others."""
    if type(call.gradients) is not Gradients or len(call.groups) != 1:
        return None
    group: Any = call.groups[0]
    if (
        not isinstance(group, Group)
        or group.mesh is not None
        or group.plan is None
        or group.plan.device != device
        or not group.plan.is_writable
        or type(group.grads[0]) is not Tensor
    ):
        return None
    return group


def _run(
    call: Call, settings: tuple[str, ...], prepare: _Prepare
) -> tuple[bool, Any]:
    replays: _Replays | None = call.gradients.replays
    if replays is None:
        replays = call.gradients.replays = _Replays()
    if replays.rest:
        replays.rest -= 1
        return False, None
    device = _device(call.params)
    if device is None:
        return False, None
    if torch.cuda.current_device() != device.index:
        with torch.cuda.device(device):
            return _run(call, settings, prepare)
    # What is prepared on the host would be freed while the graph of somebody
    # else's capture still needs it.
    if torch.cuda.is_current_stream_capturing():
        return False, None
    return replays(call, device, settings, prepare)


def _same_as(call: Call, group: Any) -> Callable[[Call], bool]:
    """Makes a function that tells whether a call has the same gradients."""
    with suppress(AttributeError):  # Not every torch has such an API.
        matches = Snapshot(call.params, Tensor).matches
        return lambda call: matches(call.params)
    plan, addresses = group.plan, _addresses(group.grads)

    def is_same(call: Call) -> bool:
        group = _eligible(call, plan.device)
        is_planned = group is not None and group.plan is plan
        return is_planned and _addresses(group.grads) == addresses

    return is_same


def _addresses(grads: list[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, grads))


class _Entry:
    """Gradients at some addresses, to be clipped in some way.

    The first call keeps the addresses of three gradients. When they come
    again, `is_same` is made, which compares all gradients; the call that it
    recognizes next is captured, and those that follow are replayed.
    """

    def __init__(self, way: Any, sample: list[int]):
        self.way, self.sample = way, sample
        self.is_same: Callable[[Call], bool] | None = None
        self.calls = 0
        self.graph: CudaGraph | None = None


class _Replays:
    """When the clipping of one list of parameters is captured and replayed."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []  # The one used last is first.
        self._debt = 0
        self.rest = 0.0
        self._lock = Lock()

    def __call__(
        self,
        call: Call,
        device: torch.device,
        settings: tuple[str, ...],
        prepare: _Prepare,
    ) -> tuple[bool, Any]:
        """Replays or captures the work; returns whether it did, and the norm.

        `prepare` makes the work, and what has to exist while it is replayed.
        """
        # A thread that comes meanwhile must not wait, nor replay a graph
        # whose result another thread has yet to copy.
        if not self._lock.acquire(blocking=False):
            return False, None
        try:
            stream = _current_stream(device.index)
            way = settings, stream, torch.is_autocast_enabled("cuda")
            entry = self._known(way, call)
            if entry is not None and entry.graph is not None:
                return self._replay(entry.graph)
            group = _eligible(call, device)
            if group is None:
                return False, None
            if entry is None:
                entry = self._sampled(way, call, group)
            entry.calls += 1
            self._debt += 1
            if self._debt > _DEBT:
                self._forget(_REST)
                return False, None
            # The kernel would race where a gradient is there twice.
            if entry.calls != _CALLS or _has_repeats(group.grads):
                return False, None
            return self._capture(entry, prepare, group)
        finally:
            self._lock.release()

    def _known(self, way: Any, call: Call) -> _Entry | None:
        for entry in self._entries:
            if entry.is_same and entry.way == way and entry.is_same(call):
                self._entries.remove(entry)
                self._entries.insert(0, entry)
                return entry
        return None

    def _sampled(self, way: Any, call: Call, group: Any) -> _Entry:
        # So that addresses which never repeat cost next to nothing.
        first, middle = group.grads[0], group.grads[len(group.grads) // 2]
        sample = _addresses([first, middle, group.grads[-1]])
        for entry in self._entries:
            known = entry.way, entry.sample
            if entry.is_same is None and known == (way, sample):
                entry.is_same = _same_as(call, group)
                return entry
        entry = _Entry(way, sample)
        del self._entries[_ENTRIES - 1 :]
        self._entries.insert(0, entry)
        return entry

    def _replay(self, graph: CudaGraph) -> tuple[bool, Any]:
        try:
            result = graph.replay()
        except Exception as error:
            self._give_up("replayed", error)
            return False, None
        self._debt = max(0, self._debt - 1)
        return True, result

    def _capture(
        self, entry: _Entry, prepare: _Prepare, group: Any
    ) -> tuple[bool, Any]:
        with torch.set_grad_enabled(False):
            prepared = prepare(group)
            if prepared is None:
                return False, None
            self._debt += _COST
            work, kept = prepared
            # Done before it is captured: a capture that fails loses nothing,
            # and what is compiled, planned or copied to the device exists.
            result = work()
            try:
                entry.graph = CudaGraph(work, kept)
            except Exception as error:
                self._give_up("captured", error)
        return True, result

    def _give_up(self, what: str, error: Exception) -> None:
        self._forget(float("inf"))
        warnings.warn(
            "gradients are clipped without a CUDA graph, because it could "
            f"not be {what}: {type(error).__name__}: {error}",
            stacklevel=2,
        )

    def _forget(self, rest: float) -> None:
        self._entries, self._debt, self.rest = [], 0, rest


def _has_repeats(grads: list[Tensor]) -> bool:
    present = list(filter(None, _addresses(grads)))  # Empty ones are at 0.
    return len(set(present)) < len(present)
