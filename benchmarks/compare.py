"""Measures several ways to do one piece of work side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from statistics import median
from typing import TypeVar

OURS, UPSTREAM = "this package", "RoboOrchardLab"
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


def print_rows(found: Iterable[Row]) -> None:
    """Prints one JSON object per line, which `report.py` reads."""
    for row in found:
        print(json.dumps(asdict(row)), flush=True)
