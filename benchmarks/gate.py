"""Stops a change that makes hooks or clipping slower.

    python benchmarks/gate.py [dispatch] [torch] [--update] [--json FILE]

Counts instructions by cachegrind: of hooks and arguments (`dispatch`), and of
clipping and RoboOrchardLab with `lab.install()` (`torch`). A workload fails if
the ratio of this package's count to RoboOrchardLab 0.4.0's, counted in the
same run, is above its limit in thresholds.toml. The ratio needs no recorded
baseline, and a busy machine does not change it.

--update sets the limits of what was counted to 2 % above the ratios; --json
writes the counts to a file. Exits with 1 if a ratio is above its limit, with 2
if nothing can be counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import rtoml

from robo_orchard_fasthooks.testing import Counting

FOLDER = Path(__file__).parent
THRESHOLDS = FOLDER / "thresholds.toml"
FAMILIES = ("dispatch", "torch")
MARGIN = 1.02
NAN = float("nan")  # The limit of a workload that has none: it fails.

Limits = dict[str, dict[str, float]]


@dataclass
class Result:
    """The counts of one workload."""

    family: str
    name: str
    upstream: float
    """Instructions, for each scope, operation or parameter."""
    ours: float
    limit: float

    @property
    def ratio(self) -> float:
        """Of this package's instructions to upstream's."""
        return self.ours / self.upstream

    @property
    def passed(self) -> bool:
        """Whether the ratio is within its limit."""
        return self.ratio <= self.limit


def count(families: list[str], limits: Limits) -> list[Result]:
    """Counts the families' workloads, in processes side by side."""
    counting = {
        family: Counting([str(FOLDER / "count.py"), family])
        for family in families
    }
    results = []
    for family, process in counting.items():
        counts = process.results()
        for key, upstream in counts.items():
            library, _, name = key.partition(" ")
            if library == "upstream":
                ours = counts[f"ours {name}"]
                limit = limits.get(family, {}).get(name, NAN)
                results.append(Result(family, name, upstream, ours, limit))
    return results


def failures(results: list[Result], limits: Limits) -> list[str]:
    """The workloads above their limits, and the limits of no workload."""
    counted = {(each.family, each.name) for each in results}
    return [
        *(f"{r.family}: {r.name}" for r in results if not r.passed),
        *(
            f"{family}: {name} (not counted)"
            for family in dict.fromkeys(each.family for each in results)
            for name in limits.get(family, {})
            if (family, name) not in counted
        ),
    ]


def main() -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("family", nargs="*", default=[*FAMILIES])
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    unknown = set(options.family) - set(FAMILIES)
    if unknown:
        parser.error(f"unknown: {unknown.pop()!r}; use {', '.join(FAMILIES)}")
    limits = rtoml.load(THRESHOLDS)
    try:
        results = count(options.family, limits)
    except (FileNotFoundError, RuntimeError) as error:
        parser.error(str(error))
    if options.update:
        for result in results:
            result.limit = round(result.ratio * MARGIN, 4)
            limits.setdefault(result.family, {})[result.name] = result.limit
        THRESHOLDS.write_text(rtoml.dumps(limits, pretty=True))
    if options.json:
        text = json.dumps([asdict(each) for each in results], indent=1)
        options.json.write_text(f"{text}\n", encoding="utf-8")
    print("| | upstream | ours | ratio | limit | |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    for each in results:
        print(
            f"| {each.family}: {each.name} | {each.upstream:,.0f} "
            f"| {each.ours:,.0f} | {each.ratio:.4f} | {each.limit:.4f} "
            f"| {'passed' if each.passed else 'FAILED'} |"
        )
    failed = failures(results, limits)
    if failed:
        print("\nabove the limit, without one, or not counted: ", end="")
        print("; ".join(failed))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
