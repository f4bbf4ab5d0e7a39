"""What a HookProfiler returns: times in nanoseconds."""

# pydantic accepts typing's from Python 3.12 on.
from typing_extensions import TypedDict

from robo_orchard_fasthooks._describe import Phase
from robo_orchard_fasthooks._record import Stats


class Times(TypedDict):
    """Times of one piece of work, in nanoseconds; quantiles to within 7%."""

    count: int
    sum: int
    mean: float
    p50: float
    p95: float
    min: int
    max: int


class CallbackTimes(Times):
    """Times of one callback of a hook."""

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


def times_of(stats: Stats) -> Times:
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
