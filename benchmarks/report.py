"""Measures this package beside others, and writes the figures of the pages.

    python benchmarks/report.py [--rounds N] [--lab-python PYTHON]
    python benchmarks/report.py --rounds 1 --dry-run

Writes report/results.json, the picture, and the tables of README.md and docs.
The end-to-end figures need a Python that has this package and RoboOrchardLab
0.4.0; without one, the old ones are kept. --dry-run only prints figures.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from time import perf_counter_ns

import torch

import clipping
import compare
import pages
import peers
import upstream
import workloads
from clipping import Clip
from compare import FLOOR, OURS, UPSTREAM, Row, in_turn
from workloads import Run, Workload

HERE = Path(__file__).parent
BEGINS = {count: f"begin, {count} hooks (from_callable)" for count in (4, 16)}
SAMPLE_NS = 2_000_000


def dispatch(rounds: int) -> list[Row]:
    """Scopes and whole steps."""
    named = {each.name: each for each in workloads.DISPATCH}
    ours, theirs = workloads.ours(), workloads.upstream()
    runs: dict[str, dict[str, Run]] = {}

    def add(work: Workload, mine: workloads.Library) -> None:
        runs[work.name] = {OURS: work.make(mine), UPSTREAM: work.make(theirs)}

    for count, name in BEGINS.items():
        add(named[name], ours)
        runs[name][FLOOR] = workloads.begin_in_loops(count)
        for peer, make in peers.PEERS.items():
            runs[name][peer] = make(count)
    add(named["training step"], ours)
    add(workloads.LAB_STEP, workloads.installed())
    rows = []
    for work, ways in runs.items():
        samples = in_turn(ways, time_of_run, rounds)
        rows += compare.rows(work, samples)
    return rows


def time_of_run(run: Run) -> float:
    """Nanoseconds per repetition, over about two milliseconds."""
    start = perf_counter_ns()
    run(100)
    n = max(1, 100 * SAMPLE_NS // (perf_counter_ns() - start))
    start = perf_counter_ns()
    run(n)
    return (perf_counter_ns() - start) / n


def clips(rounds: int) -> list[Row]:
    """Clipping of models' gradients, below and above the threshold."""
    rows = []
    for case in (clipping.POLICY, clipping.RESNET):
        params = clipping.parameters(case)
        restore = clipping.restoring(params)

        def time_of_clip(
            clip: Clip, restore: Callable[[], None] = restore
        ) -> float:
            restore()
            start = perf_counter_ns()
            clip()
            return perf_counter_ns() - start

        for side, limit in clipping.LIMITS.items():
            ways = clipping.ways(params, limit, case)
            samples = in_turn(ways, time_of_clip, rounds)
            work = f"clip {case.title}, {side} threshold"
            rows += compare.rows(work, samples)
    return rows


def measured_by(*command: str) -> list[Row]:
    """The rows that another benchmark prints."""
    out = subprocess.run(
        command, cwd=HERE, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    lines = (line for line in out.splitlines() if line.startswith("{"))
    return [Row(**json.loads(line)) for line in lines]


def caption(rounds: int) -> str:
    """Where, when and with what this was measured."""
    cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    named = re.search(r"^model name\s*: (.*)", cpus, re.M)
    versions = {
        "CPython": platform.python_version(),
        "robo_orchard_fasthooks": version("robo_orchard_fasthooks"),
        "robo_orchard_lab": upstream.VERSION,
        **{n: version(n) for n in ("torch", "accelerate", *peers.PEERS)},
    }
    return (
        f"Medians of {rounds} rounds on one core of {os.cpu_count()}, "
        f"{named[1] if named else platform.machine()}, "
        f"{datetime.now(timezone.utc):%Y-%m-%d}. "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + "."
    )


def main() -> None:
    """Measures, and writes or prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--lab-python", metavar="PYTHON")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    sharded, trained = [], []
    if not options.dry_run:
        torchrun = ("-m", "torch.distributed.run", "--standalone")
        two = ("--nproc-per-node", "2", "fsdp2.py")
        sharded = measured_by(sys.executable, *torchrun, *two)
        if options.lab_python:
            trained = measured_by(options.lab_python, "end_to_end.py")
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    gc.disable()
    rows = dispatch(options.rounds) + clips(options.rounds) + sharded
    if options.dry_run:
        compare.print_rows(rows)
        return
    before = json.loads(pages.RESULTS.read_text(encoding="utf-8"))
    results = {
        "machine": caption(options.rounds),
        "hooks": [asdict(row) for row in rows],
        "end_to_end": [asdict(r) for r in trained] or before["end_to_end"],
    }
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    pages.RESULTS.write_text(text, encoding="utf-8")
    pages.write()


if __name__ == "__main__":
    main()
