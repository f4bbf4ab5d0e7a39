"""Measures this package beside others, as a table and a picture.

    python benchmarks/report.py [--rounds N] [--out-dir FOLDER]

Prints the table, and writes report.md and report.png. All is measured on one
core. Peers that are not installed are left out, and named.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import os
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

import peers
import picture
import upstream
from measured import Row, measure


def caption(rounds: int) -> str:
    """Where, when and with what this was measured."""
    there = peers.versions()
    versions = {
        "CPython": platform.python_version(),
        "robo_orchard_fasthooks": version("robo_orchard_fasthooks"),
        "robo_orchard_lab": upstream.VERSION,
        **{name: version(name) for name in ("torch", "accelerate")},
        **{name: number for name, number in there.items() if number},
    }
    missing = [name for name, number in there.items() if not number]
    return (
        f"Medians of {rounds} rounds on one core of {os.cpu_count()}, {cpu()}"
        f", {datetime.now(timezone.utc):%Y-%m-%d}. "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + f". Not installed: {', '.join(missing)}" * bool(missing)
        + "."
    )


def cpu() -> str:
    """The processor's name, as far as the system tells it."""
    file = Path("/proc/cpuinfo")
    for line in file.read_text().splitlines() if file.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(rows: list[Row], about: str) -> str:
    """Markdown: the caption, a row for each bar, what the peers do."""
    notes = {
        **peers.installed(),
        "torch": peers.torch_clip,
    }
    lines = [about, "", "| work | by | time | times ours |"]
    lines += ["| --- | --- | ---: | ---: |"]
    lines += [
        f"| {row.work} | {row.who} | {row.time} | {row.ratio:.2f} |"
        for row in rows
    ]
    lines += ["", "What the other systems do for this:", ""]
    for name, make in notes.items():
        lines.append(f"- {name}: " + " ".join(inspect.getdoc(make).split()))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument(
        "--out-dir", type=Path, default=Path(__file__).with_name("report")
    )
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds: less than 1: {options.rounds}")
    options.out_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    gc.disable()
    rows = measure(options.rounds)
    about = caption(options.rounds)
    text = table(rows, about)
    print(text, end="")
    (options.out_dir / "report.md").write_text(text, encoding="utf-8")
    picture.draw(rows, about, options.out_dir / "report.png")


if __name__ == "__main__":
    main()
