"""Measures this package beside others, and writes the figures of the pages.

    python benchmarks/report.py [--rounds N] [--lab-python PYTHON]

Prints a table, and writes report/results.json, the picture, and the tables of
README.md and docs (`figures.py`). Hooks and models are measured on one core.
Peers that are not installed are left out, and named. The end-to-end figures
need a Python that has the whole of RoboOrchardLab 0.4.0; without one, those
that were measured before are kept.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import figures
import peers
import picture
import upstream
from measured import measure

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "_static" / "benchmarks.png"


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


def measured_by(command: list[str]) -> Any:
    """What another benchmark writes when it is given --json FILE."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "results.json")
        # Its exit status says whether it reached its goals.
        subprocess.run([*command, "--json", str(file)], cwd=HERE, check=False)
        return json.loads(file.read_text(encoding="utf-8"))


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--lab-python", metavar="PYTHON")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds: less than 1: {options.rounds}")
    results = {}
    if figures.RESULTS.exists():
        results = json.loads(figures.RESULTS.read_text(encoding="utf-8"))
    results["clipping"] = measured_by([sys.executable, "clipping.py"])
    torchrun = ["-m", "torch.distributed.run", "--standalone"]
    results["fsdp2"] = measured_by(
        [
            *(sys.executable, *torchrun, "--nproc-per-node", "2"),
            "clipping_fsdp2.py",
        ]
    )
    if options.lab_python:
        results["end_to_end"] = measured_by(
            [options.lab_python, "end_to_end.py"]
        )
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    gc.disable()
    rows = measure(options.rounds)
    notes = {**peers.installed(), "torch": peers.torch_clip}
    results["hooks"] = [vars(row) for row in rows]
    results["machine"] = caption(options.rounds)
    results["peers"] = {
        name: " ".join(inspect.getdoc(make).split())
        for name, make in notes.items()
    }
    figures.RESULTS.write_text(
        json.dumps(results, indent=1, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
    print(figures.everyone(results), end="")
    picture.draw(rows, results["machine"], PICTURE)
    for page in figures.pages():
        text = page.read_text(encoding="utf-8")
        page.write_text(figures.filled(text, results), encoding="utf-8")


if __name__ == "__main__":
    main()
