"""Which hook takes how long."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from robo_orchard_fasthooks._describe import Phase, callback_of, label, where
from robo_orchard_fasthooks._dispatch import (
    Registrations,
    recorder_of,
    set_recorder,
)
from robo_orchard_fasthooks._profiling import report
from robo_orchard_fasthooks._profiling.markers import (
    DeviceTimes,
    nvtx_range,
    profiler_range,
)
from robo_orchard_fasthooks._record import Recorder, Stats

if TYPE_CHECKING:
    from accelerate import Accelerator
    from typing_extensions import Self

__all__ = ["HookProfiler"]


class HookProfiler:
    """Times the hooks of a training loop, each by itself.

    While it is on, it keeps for each hook, phase and channel the count, sum,
    extremes and a histogram of times: its memory does not grow with steps.
    Use it as a context manager, or by `start` and `stop`.

        with HookProfiler(hooks) as profiler:
            train(hooks)
        print(profiler.table())

    A scope is timed if it is on from one end of it to the other. Hooks that
    are registered while it is on are timed too; channels that are put in are
    not, and neither is a deep copy of the hooks, which can have a profiler of
    its own. Rows are kept by name and place: names that differ with each step
    add up.

    Args:
        hooks (PipelineHooks): The hooks: of this package, or of
            RoboOrchardLab with `lab.install`.
        record_function (bool): Whether each callback is a range of torch's
            profiler, as `on_step.after:GradientClippingHook`.
        nvtx (bool): Whether it is a range of NVTX.
        device_time (bool): Whether to time what a callback has the CUDA device
            do, by events in its current stream. Nobody waits for them before
            the times are asked for.
        warn_above (float | None): The share of its scope's time above which a
            hook is warned of, once.
        window (int): Over how many scopes that share is taken.
        clock (Callable[[], int] | None): Nanoseconds, instead of the system's
            monotonic clock.

    Raises:
        RuntimeError: There is no CUDA, which `nvtx` and `device_time` need.
        ValueError: `warn_above` is not between 0 and 1, or `window` not
            positive.
    """

    def __init__(
        self,
        hooks: Any,
        *,
        record_function: bool = False,
        nvtx: bool = False,
        device_time: bool = False,
        warn_above: float | None = None,
        window: int = 100,
        clock: Callable[[], int] | None = None,
    ):
        for name, asked in (("nvtx", nvtx), ("device_time", device_time)):
            if asked and not torch.cuda.is_available():
                raise RuntimeError(f"{name}=True needs CUDA: leave it False")
        if warn_above is not None and not 0 < warn_above < 1:
            raise ValueError(f"warn_above is not in (0, 1): {warn_above}")
        if window < 1:
            raise ValueError(f"window is not positive: {window}")
        self._hooks = hooks
        self._kinds = [
            make
            for make, asked in (
                (profiler_range, record_function),
                (nvtx_range, nvtx),
            )
            if asked
        ]
        self._device_time = device_time
        self._warn_above = warn_above
        self._window = window
        self._clock = clock
        self._channels: dict[str, _Channel] = {}
        self._started: list[Any] = []

    def start(self) -> None:
        """Begins to time, or goes on.

        Raises:
            RuntimeError: The hooks are being profiled already.
            TypeError: A channel is not this package's.
        """
        channels = dict(self._hooks.hooks)
        for name, channel in channels.items():
            if not isinstance(channel, Registrations):
                raise TypeError(
                    f"cannot profile channel {name!r}: it is "
                    f"{type(channel).__module__}'s. Make the hooks after "
                    "robo_orchard_fasthooks.lab.install()"
                )
            if recorder_of(channel) is not None:
                raise RuntimeError(
                    f"channel {name!r} is being profiled already: stop that "
                    "HookProfiler first"
                )
        for name, channel in channels.items():
            if name not in self._channels:
                self._channels[name] = _Channel(name, self)
            set_recorder(channel, self._channels[name].recorder)
        self._started = list(channels.values())

    def stop(self) -> None:
        """Ends timing; what was timed stays.

        Raises:
            RuntimeError: It was not started.
        """
        if not self._started:
            raise RuntimeError("this HookProfiler was not started")
        for channel in self._started:
            set_recorder(channel, None)
        self._started = []
        for known in self._channels.values():
            known.forget_hooks()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._started:  # It may have been stopped within.
            self.stop()

    def reset(self) -> None:
        """Forgets all times."""
        for channel in self._channels.values():
            channel.clear()

    def to_dict(self) -> dict[str, Any]:
        """What was timed, in nanoseconds.

        Returns:
            dict[str, Any]: By channel that ran: "scope" and "body", each with
                "count", "sum", "mean", "p50", "p95", "min" and "max", and
                "hooks", a list of such times with "hook", "phase", "where",
                "share_of_scope", and "device" if that was timed. A body holds
                the scopes within it.
        """
        if self._device_time:
            torch.cuda.synchronize()
        return {
            name: channel.to_dict()
            for name, channel in self._channels.items()
            if channel.recorder.scopes.count
        }

    def to_json(self, path: str | Path) -> None:
        """Writes `to_dict` to a file.

        Args:
            path (str | Path): The file.
        """
        text = json.dumps(self.to_dict(), indent=2)
        Path(path).write_text(text + "\n", encoding="utf-8")

    def table(
        self, reduce: Accelerator | None = None, timeout: float = 60.0
    ) -> str:
        """What was timed, the hook that took most first.

        Args:
            reduce (Accelerator | None): Compares all its ranks: least, median
                and greatest mean time of each hook, and the slowest rank.
                Every rank has to call it.
            timeout (float): How many seconds to wait for the other ranks.

        Returns:
            str: To be printed.

        Raises:
            RuntimeError: Not all ranks called it in time.
        """
        if reduce is None:
            return report.table(self.to_dict())
        ranks = report.gather(self.to_dict(), reduce, timeout)
        return report.table_of_ranks(ranks)

    def plot(self, path: str | Path) -> None:
        """Draws the hooks as bars, before and after apart; needs matplotlib.

        Args:
            path (str | Path): The picture, of any kind that matplotlib writes.
        """
        report.draw(self.to_dict(), path)


@dataclass
class _Row:
    hook: str
    phase: Phase
    where: str | None
    """None where the hook has no such callback."""
    stats: Stats
    device: DeviceTimes | None = None
    device_stats: Stats | None = None
    in_last_window: int = 0


class _Channel:
    """What is kept of one channel."""

    def __init__(self, name: str, profiler: HookProfiler):
        self.name = name
        self.rows: dict[tuple[Any, ...], _Row] = {}
        self.current: list[tuple[Any, _Row]] = []
        self.in_last_window = 0
        self.warned: set[str] = set()
        self.profiler = profiler
        watched = profiler._warn_above is not None
        self.recorder = Recorder(
            self._stats_of,
            profiler._clock,
            self._watch if watched else None,
        )

    def clear(self) -> None:
        self.recorder.scopes.clear()
        self.recorder.bodies.clear()
        self.in_last_window = 0
        for row in self.rows.values():
            row.stats.clear()
            row.in_last_window = 0
            if row.device is not None:
                row.device.clear()

    def forget_hooks(self) -> None:
        self.find_late_callbacks()
        self.current = []
        self.recorder.forget_hooks()

    def find_late_callbacks(self) -> None:
        """Finds those that hooks were given when they had been seen."""
        for hook, row in self.current:
            if row.where is None:
                row.where = _describe(hook, row.phase)[1]

    def to_dict(self) -> dict[str, Any]:
        self.find_late_callbacks()
        whole = self.recorder.scopes.sum
        return {
            "scope": _times(self.recorder.scopes),
            "body": _times(self.recorder.bodies),
            "hooks": [
                {
                    "hook": row.hook,
                    "phase": row.phase,
                    "where": row.where,
                    **_times(row.stats),
                    "share_of_scope": row.stats.sum / whole if whole else 0.0,
                    **_device_times(row),
                }
                for row in self.rows.values()
                if row.where is not None and row.stats.count
            ],
        }

    def _stats_of(
        self, hooks: tuple[Any, ...], phase: Phase
    ) -> tuple[Stats, ...]:
        # By what they are, not by identity: hooks that come and go with each
        # step are one row.
        seen: Counter[tuple[str, str | None]] = Counter()
        rows = []
        for hook in hooks:
            name, place = _describe(hook, phase)
            seen[name, place] += 1
            key = (phase, name, place, seen[name, place])
            if key not in self.rows:
                self.rows[key] = self._new_row(phase, name, place)
            rows.append(self.rows[key])
        self.current = [
            pair for pair in self.current if pair[1].phase != phase
        ]
        self.current += zip(hooks, rows, strict=True)
        return tuple(row.stats for row in rows)

    def _new_row(self, phase: Phase, name: str, place: str | None) -> _Row:
        # Rows of one name are told apart by number.
        same = sum(key[:2] == (phase, name) for key in self.rows)
        hook = f"{name} #{same + 1}" if same else name
        row = _Row(hook, phase, place, Stats())
        title = f"{self.name}.{phase}:{hook}"
        ends = [make(title) for make in self.profiler._kinds]
        if self.profiler._device_time and place is not None:
            row.device_stats = Stats()
            row.device = DeviceTimes(row.device_stats)
            ends.append((row.device.start, row.device.end))
        if ends and place is not None:
            starts = [start for start, _ in ends]
            finishes = [finish for _, finish in reversed(ends)]
            row.stats.open = lambda: [start() for start in starts]
            row.stats.close = lambda: [finish() for finish in finishes]
        return row

    def _watch(self) -> None:
        """Warns of slow hooks, at the end of each window of scopes."""
        scopes = self.recorder.scopes
        if scopes.count % self.profiler._window:
            return
        limit = self.profiler._warn_above or 0.0
        whole, self.in_last_window = (
            scopes.sum - self.in_last_window,
            scopes.sum,
        )
        spent: Counter[str] = Counter()
        places: dict[str, list[str]] = {}
        for row in self.rows.values():
            spent[row.hook] += row.stats.sum - row.in_last_window
            row.in_last_window = row.stats.sum
            if row.where is not None:
                places.setdefault(row.hook, []).append(
                    f"in {row.phase}: {row.where}"
                )
        slow = [name for name in spent if spent[name] > limit * whole]
        for name in slow:
            if name not in self.warned:
                self.warned.add(name)
                warnings.warn(
                    f"{name} takes {spent[name] / whole:.0%} of "
                    f"{self.name!r}, {'; '.join(places.get(name, ()))}",
                    stacklevel=2,
                )


def _describe(hook: Any, phase: Phase) -> tuple[str, str | None]:
    """The name of a hook, and where its callback is, None if it has none."""
    try:
        function = callback_of(hook, phase)
        place = None if function is None else where(function)
        name = label(hook)
        if name.startswith("HookContextFromCallable"):  # A mere function.
            named = isinstance(hook.name, str) and hook.name
            name = named or (place or name).partition(" (")[0]
        return name, place
    except Exception:  # A hook that cannot be named runs all the same.
        return type(hook).__name__, "?"


def _times(stats: Stats) -> dict[str, float]:
    return {
        "count": stats.count,
        "sum": stats.sum,
        "mean": stats.sum / stats.count if stats.count else 0.0,
        "p50": stats.quantile(0.5),
        "p95": stats.quantile(0.95),
        "min": stats.minimum,
        "max": stats.maximum,
    }


def _device_times(row: _Row) -> dict[str, Any]:
    if row.device is None or row.device_stats is None:
        return {}
    row.device.resolve()
    return {"device": _times(row.device_stats)}
