"""HookProfiler: how long each hook of a training loop takes."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from typing_extensions import Self

from robo_orchard_fasthooks._dispatch import Registrations, set_recorder
from robo_orchard_fasthooks._profiling import report
from robo_orchard_fasthooks._profiling.profile import (
    CallbackTimes,
    ChannelProfile,
    Profile,
    Times,
)
from robo_orchard_fasthooks._profiling.ranges import Ranges
from robo_orchard_fasthooks._profiling.ranks import gather
from robo_orchard_fasthooks._profiling.rows import ChannelRows

__all__ = [
    "CallbackTimes",
    "ChannelProfile",
    "HookProfiler",
    "Profile",
    "Times",
]


@runtime_checkable  # pydantic checks parameters by isinstance.
class _HasChannels(Protocol):
    @property
    def hooks(self) -> Mapping[Any, Any]: ...


class HookProfiler:
    """Times each hook of a training loop.

    It keeps the count, sum, extremes and a histogram of each hook's times, so
    its memory does not grow with the number of steps. Use it as a context
    manager, or call `start` and `stop`::

        with HookProfiler(hooks) as profiler:
            train(hooks)
        print(profiler.table())

    A scope is timed if the profiler was on when it was entered and when it was
    left. Hooks that are registered while it is on are timed too; channels that
    are added then, and copies of the hooks, are not. Hooks with the same name
    and callback share a row; one with a new name in each step adds a row in
    each step.

    Hooks may run in several threads: their times add up. All methods may be
    called from any thread while hooks run; scopes that have not been left then
    count by their callbacks only.

    Args:
        hooks (PipelineHooks): The hooks, of this package or, after
            `lab.install()`, of RoboOrchardLab.
        record_function (bool): Whether to make each callback a range of
            torch's profiler, such as `on_step.after:GradientClippingHook`.
        nvtx (bool): Whether to make each callback an NVTX range of that name.
        warn_above (float | None): Warns once of each hook that takes more than
            this share, between 0 and 1, of the time of its channel's scopes.
        window (int): The number of scopes over which that share is taken.
        clock (Callable[[], int] | None): Returns the time in nanoseconds. None
            is the system's monotonic clock.

    Raises:
        RuntimeError: `nvtx` is True and CUDA is not available.
        TypeError: `hooks` are not PipelineHooks.
        ValueError: `warn_above` is not between 0 and 1, or `window` is not
            positive.
    """

    def __init__(
        self,
        hooks: _HasChannels,
        *,
        record_function: bool = False,
        nvtx: bool = False,
        warn_above: float | None = None,
        window: int = 100,
        clock: Callable[[], int] | None = None,
    ):
        if not isinstance(getattr(hooks, "hooks", None), Mapping):
            raise TypeError(
                "HookProfiler times the hooks of PipelineHooks, not of a "
                f"{type(hooks).__name__}: pass the PipelineHooks that the "
                "hooks are registered on"
            )
        if nvtx and not torch.cuda.is_available():
            raise RuntimeError("nvtx=True needs CUDA, which is not available")
        if warn_above is not None and not 0 < warn_above < 1:
            raise ValueError(
                f"warn_above has to be between 0 and 1: {warn_above}"
            )
        if window < 1:
            raise ValueError(f"window has to be positive: {window}")
        self._hooks = hooks
        ranged = record_function or nvtx
        self._new_rows = partial(
            ChannelRows,
            ranges=partial(Ranges, record_function, nvtx) if ranged else None,
            warn_above=warn_above,
            window=window,
            clock=clock,
        )
        self._channels: dict[str, ChannelRows] = {}
        self._started: list[Any] = []

    def start(self) -> None:
        """Starts timing; after a `stop`, times are added to those before.

        Raises:
            RuntimeError: The hooks are already being profiled.
            TypeError: A channel is not of this package.
        """
        if self._started:
            raise RuntimeError("this HookProfiler has been started already")
        channels = dict(self._hooks.hooks)
        for name, channel in channels.items():
            if not isinstance(channel, Registrations):
                raise TypeError(
                    f"cannot profile channel {name!r}: its class is "
                    f"{type(channel).__module__}.{type(channel).__name__}. "
                    "Create the hooks after "
                    "robo_orchard_fasthooks.lab.install()"
                )
            if channel._recorder is not None:
                raise RuntimeError(
                    f"channel {name!r} is already being profiled: stop the "
                    "other HookProfiler first"
                )
        for name, channel in channels.items():
            if name not in self._channels:
                self._channels[name] = self._new_rows(name)
            set_recorder(channel, self._channels[name].recorder)
        self._started = list(channels.values())

    def stop(self) -> None:
        """Stops timing; the times are kept.

        Raises:
            RuntimeError: The profiler was not started.
        """
        if not self._started:
            raise RuntimeError("this HookProfiler was not started")
        for channel in self._started:
            set_recorder(channel, None)
        self._started = []
        for rows in self._channels.values():
            rows.forget_hooks()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._started:  # The body may have stopped it.
            self.stop()

    def reset(self) -> None:
        """Discards all times."""
        for rows in list(self._channels.values()):
            rows.clear()

    def to_dict(self) -> Profile:
        """Returns the times, in nanoseconds.

        Returns:
            dict[str, ChannelProfile]: For each channel that has run, the times
                of its scopes, of their bodies (with the scopes of other
                channels within them) and of each callback.
        """
        return {
            name: rows.to_dict()
            for name, rows in list(self._channels.items())
            if rows.recorder.scopes.count
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
        """Returns the times as a table, slowest callback first.

        Args:
            reduce (Accelerator | None): Compares all its ranks: the least,
                median and greatest mean time of each callback, and the slowest
                rank. Every rank has to call this method.
            timeout (float): How many seconds to wait for the other ranks.

        Returns:
            str: The table, to be printed.

        Raises:
            RuntimeError: Not all ranks called this method in time.
        """
        if reduce is None:
            return report.table(self.to_dict())
        return report.table_of_ranks(gather(self.to_dict(), reduce, timeout))

    def plot(self, path: str | Path) -> None:
        """Draws the times as a bar chart with a bar for each phase.

        Args:
            path (str | Path): The image, in any format that matplotlib writes.

        Raises:
            ImportError: matplotlib is not installed; the message says how to
                install it.
        """
        report.draw(self.to_dict(), path)
