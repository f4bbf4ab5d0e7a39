from collections.abc import Callable
from typing import Any, final

@final
class Stats:
    count: int
    sum: int
    minimum: int
    maximum: int
    open: Callable[[], object] | None
    close: Callable[[], object] | None
    def record(self, time: int) -> None: ...
    def quantile(self, q: float) -> float: ...
    def clear(self) -> None: ...

@final
class Recorder:
    scopes: Stats
    bodies: Stats
    def __init__(
        self,
        stats_of: Callable[[tuple[Any, ...], Any], tuple[Stats, ...]],
        clock: Callable[[], int] | None = None,
        after_scope: Callable[[], object] | None = None,
    ) -> None: ...
    def forget_hooks(self) -> None: ...

__test__: dict[str, str]
