"""The rows of a profile: the times of each callback of a channel."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict, cast

import torch

from robo_orchard_fasthooks._describe import Phase, callback_of, label, where
from robo_orchard_fasthooks._profiling.markers import (
    DeviceTimer,
    Markers,
    nvtx_range,
)
from robo_orchard_fasthooks._record import Recorder, Stats

__all__ = [
    "CallbackTimes",
    "ChannelProfile",
    "ChannelRows",
    "Profile",
    "ProfilerSettings",
    "Times",
]


class Times(TypedDict):
    """Times of one piece of work, in nanoseconds.

    The quantiles are within 13 % of the true ones.
    """

    count: int
    sum: int
    mean: float
    p50: float
    p95: float
    min: int
    max: int


class _DeviceTimes(TypedDict, total=False):
    device: Times


class CallbackTimes(Times, _DeviceTimes):
    """Times of one callback of a hook.

    It has `device`, the times on the CUDA device, if these were measured.
    """

    hook: str
    phase: Phase
    where: str
    share_of_scope: float


class ChannelProfile(TypedDict):
    """Times of a channel: of whole scopes, their bodies, and each callback."""

    scope: Times
    body: Times
    hooks: list[CallbackTimes]


Profile = dict[str, ChannelProfile]
"""What `HookProfiler.to_dict` returns: the channels that ran, by name."""


@dataclass(frozen=True)
class ProfilerSettings:
    """The settings of a HookProfiler, which documents them."""

    record_function: bool
    nvtx: bool
    device_time: bool
    warn_above: float | None
    window: int
    clock: Callable[[], int] | None


@dataclass
class _Row:
    hook: str
    phase: Phase
    where: str | None
    """The place of the callback, None if the hook has none."""
    stats: Stats
    device: DeviceTimer | None = None
    sum_at_last_window: int = 0


class ChannelRows:
    """The times that a HookProfiler keeps of one channel.

    Scopes may run in several threads while another one reads or resets the
    profile. A change of Stats is atomic, since compiled code makes it without
    releasing the interpreter's lock. The rest changes under a lock, which is
    never held while user code is called, since that may wait for a thread.

    Args:
        name (str): The name of the channel.
        settings (ProfilerSettings): The settings of the profiler.

    Attributes:
        recorder (Recorder): Times the scopes of the channel.
    """

    def __init__(self, name: str, settings: ProfilerSettings):
        self._name = name
        self._settings = settings
        # Reentrant: a finalizer that runs within may run a scope.
        self._lock = threading.RLock()
        self._rows: dict[tuple[Any, ...], _Row] = {}
        self._names: Counter[tuple[Phase, str]] = Counter()
        self._sum_at_last_window = 0
        self._end_of_window = settings.window
        self._warned: set[str] = set()
        watched = settings.warn_above is not None
        self.recorder = Recorder(
            self._stats_of,
            settings.clock,
            self._watch if watched else None,
        )

    def clear(self) -> None:
        """Discards all times."""
        with self._lock:
            self.recorder.scopes.clear()
            self.recorder.bodies.clear()
            self._sum_at_last_window = 0
            self._end_of_window = self._settings.window
            for row in self._all_rows():
                row.stats.clear()
                row.sum_at_last_window = 0
                if row.device is not None:
                    row.device.clear()

    def forget_hooks(self) -> None:
        """Drops the references to the hooks; their rows stay."""
        self._find_late_callbacks()
        self.recorder.forget_hooks()

    def to_dict(self) -> ChannelProfile:
        """The times of this channel, after waiting for those of the device."""
        self._find_late_callbacks()
        rows = [
            (row, _times(row.stats))
            for row in self._all_rows()
            if row.where is not None and row.stats.count
        ]
        # Scopes are read last, so that they include those that other threads
        # have just left, whose callbacks may be in the rows.
        scopes = _times(self.recorder.scopes)
        whole = scopes["sum"]
        hooks = []
        for row, times in rows:
            found: dict[str, Any] = {
                "hook": row.hook,
                "phase": row.phase,
                "where": row.where,
                **times,
                "share_of_scope": times["sum"] / whole if whole else 0.0,
            }
            if row.device is not None:
                row.device.resolve(wait=True)
                found["device"] = _times(row.device.stats)
            hooks.append(cast(CallbackTimes, found))
        return {
            "scope": scopes,
            "body": _times(self.recorder.bodies),
            "hooks": hooks,
        }

    def _find_late_callbacks(self) -> None:
        # A hook may have been given a callback after its rows were made.
        current = self.recorder.current
        if current is None:
            return
        hooks, befores, afters = current
        rows = {id(row.stats): row for row in self._all_rows()}
        for hook, stats in zip(2 * hooks, befores + afters, strict=True):
            row = rows[id(stats)]
            if row.where is None:
                row.where = _describe(hook, row.phase)[1]

    def _all_rows(self) -> list[_Row]:
        # A copy in one step: a scope in another thread, or in a finalizer,
        # may add rows at any time.
        return list(self._rows.values())

    def _stats_of(
        self, hooks: tuple[Any, ...], phase: Phase
    ) -> tuple[Stats, ...]:
        # Rows are found by name and callback, not by identity, so that hooks
        # that are registered anew in each step share a row.
        seen: Counter[tuple[str, str | None]] = Counter()
        keys = []
        for hook in hooks:
            described = _describe(hook, phase)
            seen[described] += 1
            keys.append((phase, *described, seen[described]))
        with self._lock:
            for key in keys:
                if key not in self._rows:
                    self._rows[key] = self._new_row(*key[:3])
            return tuple(self._rows[key].stats for key in keys)

    def _new_row(self, phase: Phase, name: str, place: str | None) -> _Row:
        # Rows of one name are told apart by number.
        self._names[phase, name] += 1
        number = self._names[phase, name]
        hook = f"{name} #{number}" if number > 1 else name
        row = _Row(hook, phase, place, Stats())
        if place is None:
            return row
        title = f"{self._name}.{phase}:{hook}"
        factories: list[Callable[[], Any]] = []
        if self._settings.record_function:
            factories.append(partial(torch.profiler.record_function, title))
        if self._settings.nvtx:
            factories.append(partial(nvtx_range, title))
        if self._settings.device_time:
            row.device = DeviceTimer()
            factories.append(row.device.measure)
        if factories:
            markers = Markers(*factories)
            row.stats.open, row.stats.close = markers.open, markers.close
        return row

    def _watch(self) -> None:
        """Warns of slow hooks at the end of each window of scopes."""
        scopes = self.recorder.scopes
        with self._lock:
            if scopes.count < self._end_of_window:
                return
            limit = self._settings.warn_above or 0.0
            spent: Counter[str] = Counter()
            places: dict[str, list[str]] = {}
            self._end_of_window = scopes.count + self._settings.window
            whole = scopes.sum - self._sum_at_last_window
            self._sum_at_last_window += whole
            for row in self._all_rows():
                time = row.stats.sum - row.sum_at_last_window
                row.sum_at_last_window += time
                spent[row.hook] += time
                if row.where is not None:
                    places.setdefault(row.hook, []).append(
                        f"in {row.phase}: {row.where}"
                    )
            slow = [
                hook
                for hook, time in spent.items()
                if time > limit * whole > 0 and hook not in self._warned
            ]
            self._warned.update(slow)
        for hook in slow:
            warnings.warn(
                f"{hook} takes {spent[hook] / whole:.0%} of "
                f"{self._name!r}, {'; '.join(places.get(hook, ()))}",
                stacklevel=2,
            )


def _describe(hook: Any, phase: Phase) -> tuple[str, str | None]:
    """The name of a hook, and where its callback is, None if it has none."""
    try:
        function = callback_of(hook, phase)
        place = None if function is None else where(function)
        name = label(hook)
        if name.startswith("HookContextFromCallable"):  # A plain function.
            named = isinstance(hook.name, str) and hook.name
            name = named or (place or name).partition(" (")[0]
        return name, place
    except Exception:  # A hook that cannot be named runs all the same.
        return type(hook).__name__, "?"


def _times(stats: Stats) -> Times:
    stats = stats.copy()  # They change while other threads run scopes.
    return {
        "count": stats.count,
        "sum": stats.sum,
        "mean": stats.sum / stats.count if stats.count else 0.0,
        "p50": stats.quantile(0.5),
        "p95": stats.quantile(0.95),
        "min": stats.minimum,
        "max": stats.maximum,
    }
