"""The times that a HookProfiler keeps."""

from collections.abc import Callable
from typing import Any, final

@final
class Stats:
    """Count, sum, extremes and a histogram of times, in nanoseconds.

    Threads may share it: no method releases the interpreter's lock.
    """

    @property
    def count(self) -> int:
        """The number of times."""
    @property
    def sum(self) -> int:
        """The sum of the times."""
    @property
    def minimum(self) -> int:
        """The least time, 0 if there are none."""
    @property
    def maximum(self) -> int:
        """The greatest time, 0 if there are none."""
    open: Callable[[], object] | None
    """Called before the work that is timed, in its thread."""
    close: Callable[[], object] | None
    """Called after the work that is timed, also if it raised."""
    def record(self, time: int) -> None:
        """Adds a time.

        Args:
            time (int): Nanoseconds.
        """
    def quantile(self, q: float) -> float:
        """Estimates a quantile from the histogram, to within 13 %.

        Args:
            q (float): Between 0 and 1.

        Returns:
            float: The quantile in nanoseconds, 0 if there are no times.
        """
    def copy(self) -> Stats:
        """Copies all times at one moment, also if other threads add some.

        Returns:
            Stats: The copy, without `open` and `close`.
        """
    def clear(self) -> None:
        """Forgets all times."""

@final
class Recorder:
    """Times the scopes of one channel and the callbacks in them.

    Args:
        stats_of (Callable[[tuple, str], tuple[Stats, ...]]): Returns the Stats
            of each of the given hooks in a phase, in their order. Called again
            when the hooks of the channel have changed.
        clock (Callable[[], int] | None): Returns the time in nanoseconds. None
            is the system's monotonic clock.
        after_scope (Callable[[], object] | None): Called when a scope has been
            left.
    """

    def __init__(
        self,
        stats_of: Callable[[tuple[Any, ...], Any], tuple[Stats, ...]],
        clock: Callable[[], int] | None = None,
        after_scope: Callable[[], object] | None = None,
    ) -> None: ...
    @property
    def scopes(self) -> Stats:
        """The times of whole scopes, callbacks included."""
    @property
    def bodies(self) -> Stats:
        """The times of the bodies of the scopes."""
    @property
    def current(
        self,
    ) -> tuple[tuple[Any, ...], tuple[Stats, ...], tuple[Stats, ...]] | None:
        """The hooks that were timed last and the Stats of their callbacks.

        The tuple holds the hooks, the Stats of their `before` callbacks and
        the Stats of their `after` callbacks. None if nothing was timed yet.
        """
    def forget_hooks(self) -> None:
        """Drops the references to the hooks; the times stay."""

__test__: dict[str, str]
