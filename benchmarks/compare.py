"""Measures several ways to do one piece of work, and words for the result."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from statistics import median
from typing import TypeVar

OURS, UPSTREAM, FLOOR = "this package", "RoboOrchardLab", "floor"
Way = TypeVar("Way")


@dataclass
class Row:
    """How long one implementation takes for one piece of work."""

    work: str
    who: str
    ns: float
    """The median."""
    ratio: float
    """To ours: the median over the rounds."""


def in_turn(
    ways: dict[str, Way],
    measure: Callable[[Way], float],
    rounds: int,
    warm_up: int = 3,
) -> dict[str, list[float]]:
    """Measures each way once per round, so that what slows one slows all.

    Returns:
        dict[str, list[float]]: What was measured, by name; the samples of one
            round share an index.
    """
    samples: dict[str, list[float]] = {who: [] for who in ways}
    for number in range(warm_up + rounds):
        # Each goes first in half of the rounds.
        for who in list(ways)[:: -1 if number % 2 else 1]:
            taken = measure(ways[who])
            if number >= warm_up:
                samples[who].append(taken)
    return samples


def rows(work: str, samples: dict[str, list[float]]) -> list[Row]:
    """Makes rows of nanoseconds that were measured in turn."""
    return [
        Row(
            work,
            who,
            median(times),
            median(t / o for t, o in zip(times, samples[OURS], strict=True)),
        )
        for who, times in samples.items()
    ]


def duration(ns: float) -> str:
    """A time with its unit, in three significant digits."""
    for unit in ("ns", "µs", "ms"):
        if ns < 999.5 or unit == "ms":
            break
        ns /= 1000
    digits = 2 if ns < 9.995 else 1 if ns < 99.95 else 0
    return f"{ns:,.{digits}f} {unit}"


def times(ratio: float) -> str:
    """A ratio of times: 12x, 5.6x, 1.03x."""
    digits = 2 if ratio < 1.995 else 1 if ratio < 9.95 else 0
    return f"{ratio:.{digits}f}x"


def title(work: str) -> str:
    """A work as pages and picture call it."""
    return work.removesuffix(" (from_callable)")


def print_rows(found: Iterable[Row]) -> None:
    """Prints one JSON object per line, which `report.py` reads."""
    for row in found:
        print(json.dumps(asdict(row)), flush=True)
