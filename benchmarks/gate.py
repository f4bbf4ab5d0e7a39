"""Stops a change that makes hooks or clipping slower.

    python benchmarks/gate.py [dispatch] [torch] [wall] [--update]

Hard, `dispatch` and, with torch, clipping and RoboOrchardLab in place:
instruction counts by cachegrind, as a ratio to RoboOrchardLab 0.4.0's in the
same run. It needs no recorded baseline, and a busy machine does not change it.
Soft, `wall`: ratios of times, with RoboOrchardLab against itself as the
control. Where that leaves 0.95 to 1.05, the answer is "inconclusive", which is
neither passed nor failed.

The limits are in thresholds.toml; --update sets those that were measured to
2 % (wall: 12 %) above what they were. Exits with 1 if something is above its
limit, with 2 if nothing can be measured.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import rtoml

import compare
import workloads
from robo_orchard_fasthooks.testing import Counting

FOLDER = Path(__file__).parent
THRESHOLDS = FOLDER / "thresholds.toml"
COUNTED = ("dispatch", "torch")
MARGIN = {"dispatch": 1.02, "torch": 1.02, "wall": 1.12}
NAN = float("nan")  # The limit of what has none: nothing is below it.


@dataclass
class Result:
    """How one workload did."""

    family: str
    name: str
    upstream: float
    """Instructions or nanoseconds, for each scope, operation or parameter."""
    ours: float
    ratio: float
    limit: float
    conclusive: bool = True

    @property
    def verdict(self) -> str:
        """Whether it passed."""
        if not self.conclusive:
            return "inconclusive"
        return "passed" if self.ratio <= self.limit else "FAILED"


def measure(
    families: list[str], limits: dict[str, dict[str, float]], attempts: int
) -> list[Result]:
    """Measures what is asked for; cachegrind's processes run side by side."""
    counting = {
        family: Counting([str(FOLDER / "count.py"), family])
        for family in COUNTED
        if family in families
    }
    results = []
    for family, each in counting.items():
        counts = each.results()
        for key, theirs in counts.items():
            library, _, name = key.partition(" ")
            if library == "upstream":
                ours = counts[f"ours {name}"]
                limit = limits.get(family, {}).get(name, NAN)
                results.append(
                    Result(family, name, theirs, ours, ours / theirs, limit)
                )
    if "wall" in families:
        results += times(limits.get("wall", {}), attempts)
    return results


def times(limits: dict[str, float], attempts: int) -> list[Result]:
    """Compares times, again where the answer is not that it passed.

    Each attempt is a process of its own: where things lie in memory, which
    can make 10 %, is settled when a process starts.
    """
    left: list[str] | None = None
    results: dict[str, Result] = {}
    for _ in range(attempts):
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            found = process.submit(_times, left, limits).result()
        for result in found:
            before = results.get(result.name, result)
            # It has failed only if it did so each time.
            if before.verdict == "inconclusive" and result.verdict == "FAILED":
                result.conclusive = False
            results[result.name] = result
        left = [r.name for r in results.values() if r.verdict != "passed"]
        if not left:
            break
    return list(results.values())


def _times(names: list[str] | None, limits: dict[str, float]) -> list[Result]:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    upstream, ours = workloads.upstream(), workloads.ours()
    sides = {"upstream": upstream, "control": upstream, "ours": ours}
    runs = {
        (workload.name, side): workload.make(library)
        for workload in workloads.dispatch(ours.args)
        if names is None or workload.name in names
        for side, library in sides.items()
    }
    gc.disable()
    samples = compare.interleaved(runs, rounds=31)
    results = []
    for name in dict.fromkeys(name for name, _ in runs):
        theirs, control, mine = (samples[name, side] for side in sides)
        apart = median(c / t for c, t in zip(control, theirs, strict=True))
        ratio = median(m / t for m, t in zip(mine, theirs, strict=True))
        limit = limits.get(name, NAN)
        results.append(
            Result(
                *("wall", name, median(theirs), median(mine), ratio, limit),
                conclusive=0.95 <= apart <= 1.05,
            )
        )
    return results


def main() -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("family", nargs="*", default=[*MARGIN])
    parser.add_argument("--update", action="store_true")
    options = parser.parse_args()
    unknown = set(options.family) - set(MARGIN)
    if unknown:
        parser.error(f"there is no {unknown.pop()!r}: {', '.join(MARGIN)}")
    limits = rtoml.load(THRESHOLDS)
    try:
        results = measure(options.family, limits, 1 if options.update else 3)
    except (FileNotFoundError, RuntimeError) as error:
        parser.error(str(error))
    if options.update:
        for result in results:
            result.limit = round(result.ratio * MARGIN[result.family], 4)
            limits.setdefault(result.family, {})[result.name] = result.limit
        THRESHOLDS.write_text(rtoml.dumps(limits, pretty=True))
    print("| | upstream | ours | ratio | limit | |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    for each in results:
        print(
            f"| {each.family}: {each.name} | {each.upstream:,.0f} "
            f"| {each.ours:,.0f} | {each.ratio:.4f} | {each.limit:.4f} "
            f"| {each.verdict} |"
        )
    measured = {(each.family, each.name) for each in results}
    failed = [
        *(f"{r.family}: {r.name}" for r in results if r.verdict == "FAILED"),
        *(
            f"{family}: {name} (not measured)"
            for family in options.family
            for name in limits.get(family, {})
            if (family, name) not in measured
        ),
    ]
    if failed:
        print("\nslower than it may be: " + "; ".join(failed))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
