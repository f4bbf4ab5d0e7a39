"""The rows of a profile: the times of each callback of a channel."""

import itertools
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from robo_orchard_fasthooks._describe import Phase, callback_of, label, where
from robo_orchard_fasthooks._profiling.profile import ChannelProfile, times_of
from robo_orchard_fasthooks._profiling.ranges import Ranges
from robo_orchard_fasthooks._record import Recorder, Stats

# Phase, name of the hook, place of the callback, number among equal ones.
_Key = tuple[Phase, str, str | None, int]


@dataclass
class _Row:
    hook: str
    phase: Phase
    where: str | None  # None if the hook has no callback.
    stats: Stats


class _Totals(NamedTuple):  # When a window of scopes began.
    scopes: int = 0
    time: int = 0
    hooks: Counter[str] = Counter()


class ChannelRows:
    # Scopes may run in several threads while another one reads or resets the
    # times. A lock that another thread holds would never be free after a fork;
    # instead, Stats change under the interpreter's lock, `setdefault` decides
    # which thread adds a row or warns, and no _Totals is ever changed.

    def __init__(
        self,
        name: str,
        ranges: Callable[[str], Ranges] | None,
        warn_above: float | None,
        window: int,
        clock: Callable[[], int] | None,
    ):
        self._name = name
        self._ranges = ranges
        self._warn_above = warn_above
        self._window = window
        self._rows: dict[_Key, _Row] = {}
        self._numbers: dict[tuple[Phase, str, int], _Key] = {}
        self._began = _Totals()
        self._warned: dict[str, _Totals] = {}
        self.recorder = Recorder(
            self._stats_of, clock, None if warn_above is None else self._watch
        )

    def clear(self) -> None:
        self.recorder.scopes.clear()
        self.recorder.bodies.clear()
        for row in self._all_rows():
            row.stats.clear()

    def forget_hooks(self) -> None:
        self._find_late_callbacks()
        self.recorder.forget_hooks()

    def to_dict(self) -> ChannelProfile:
        self._find_late_callbacks()
        rows = [
            (row, row.where, times_of(row.stats))
            for row in self._all_rows()
            if row.where is not None and row.stats.count
        ]
        # Last, to include those whose callbacks may be in the rows.
        scopes = times_of(self.recorder.scopes)
        whole = scopes["sum"]
        return {
            "scope": scopes,
            "body": times_of(self.recorder.bodies),
            "hooks": [
                {
                    "hook": row.hook,
                    "phase": row.phase,
                    "where": place,
                    **times,
                    "share_of_scope": times["sum"] / whole if whole else 0.0,
                }
                for row, place, times in rows
            ],
        }

    def _find_late_callbacks(self) -> None:
        # A hook may have been given a callback after its rows were made.
        hooks, befores, afters = self.recorder.current or ((), (), ())
        rows = {id(row.stats): row for row in self._all_rows()}
        for hook, stats in zip(2 * hooks, befores + afters, strict=True):
            row = rows[id(stats)]
            if row.where is None:
                row.where = _describe(hook, row.phase)[1]

    def _all_rows(self) -> list[_Row]:
        # A copy in one step: other threads and finalizers may add rows.
        return list(self._rows.values())

    def _stats_of(
        self, hooks: tuple[Any, ...], phase: Phase
    ) -> tuple[Stats, ...]:
        # By name and callback: hooks registered anew in each step share a row.
        seen: Counter[tuple[str, str | None]] = Counter()
        found = []
        for hook in hooks:
            described = _describe(hook, phase)
            seen[described] += 1
            key = (phase, *described, seen[described])
            found.append((self._rows.get(key) or self._new_row(key)).stats)
        # A tuple made of a generator raises SystemError if a debugger's thread
        # holds the objects that the collector tracks.
        return tuple(found)

    def _new_row(self, key: _Key) -> _Row:
        phase, name, place, _ = key
        for number in itertools.count(1):
            if self._numbers.setdefault((phase, name, number), key) == key:
                break
        hook = f"{name} #{number}" if number > 1 else name
        row = _Row(hook, phase, place, Stats())
        if place is not None and self._ranges is not None:
            ranges = self._ranges(f"{self._name}.{phase}:{hook}")
            row.stats.open, row.stats.close = ranges.open, ranges.close
        return self._rows.setdefault(key, row)

    def _watch(self) -> None:
        scopes, began = self.recorder.scopes, self._began
        if scopes.count < began.scopes:  # The times were discarded.
            began = self._began = _Totals()
        if scopes.count < began.scopes + self._window:
            return
        rows = self._all_rows()
        hooks: Counter[str] = Counter()
        for row in rows:
            hooks[row.hook] += row.stats.sum
        now = self._began = _Totals(scopes.count, scopes.sum, hooks)
        whole = now.time - began.time
        limit = whole * (self._warn_above or 0.0)
        for hook, time in (now.hooks - began.hooks).items():
            if time > limit > 0 and self._warned.setdefault(hook, now) is now:
                places = [
                    f"in {row.phase}: {row.where}"
                    for row in rows
                    if row.hook == hook and row.where
                ]
                warnings.warn(
                    f"{hook} takes {time / whole:.0%} of {self._name!r}, "
                    f"{'; '.join(places)}",
                    stacklevel=2,
                )


def _describe(hook: Any, phase: Phase) -> tuple[str, str | None]:
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
