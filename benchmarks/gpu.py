"""Measures clipping on this machine's GPU, as tables and as JSON.

    python benchmarks/gpu.py --out FILE

Writes Markdown to FILE and JSON beside it, in less than eight minutes, of
which the tests that need a GPU take up to four. Without a GPU, it says so and
exits with 2.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import clipping
import gpu_loops
import gpu_measured as measured
from robo_orchard_fasthooks import clip

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

from helpers.cuda_trace import (  # noqa: E402
    CUDA_12,
    CUDA_13,
    Recorded,
    recorded,
)

TESTS_SECONDS = 240
NAMES = ("RoboOrchardLab", "this package", "this package, cuda_graph")


@dataclass
class Row:
    """What one hook costs for one list of gradients."""

    case: str
    side: str
    """Below or above the bound."""
    who: str
    host_us: float
    device_us: float
    launches: int
    modelled: int | None
    """Launches by the model that the tests have, which knows no graphs."""
    syncs: int
    bytes: int
    """That are read and written, by that model; by a graph, the least."""
    share: float
    """Of the bandwidth of a copy that was measured in the same run."""


@dataclass
class Report:
    """All that is written."""

    machine: dict[str, str]
    copy_bytes_per_second: float
    rows: list[Row]
    loops: list[gpu_loops.LoopRow]
    tests: str = "not run"

    def write(self, out: Path) -> str:
        """Writes the tables, and JSON beside them; returns the tables."""
        text = markdown(self)
        out.write_text(text)
        data = json.dumps(asdict(self), indent=1) + "\n"
        out.with_suffix(".json").write_text(data)
        return text


def machine() -> dict[str, str]:
    """The card, its driver, and versions."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv"]
    try:
        found = subprocess.run(
            query, capture_output=True, text=True, timeout=30, check=True
        )
        driver = found.stdout.splitlines()[-1].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = "unknown"
    return {
        "card": torch.cuda.get_device_name(),
        "driver": driver,
        "CUDA": str(torch.version.cuda),
        "torch": torch.__version__,
        "accelerate": version("accelerate"),
        "Python": platform.python_version(),
        "robo_orchard_fasthooks": version("robo_orchard_fasthooks"),
    }


def modelled(case: clipping.Case, bound: float, who: str) -> Recorded:
    """What the tests' model has the device do."""
    # torch does not use foreach kernels for fake tensors of its own accord.
    module, foreach = (
        (torch.nn.utils, True) if who == NAMES[0] else (clip, None)
    )
    with FakeTensorMode():
        params = []
        for index, shape in enumerate(case.shapes):
            dtype = case.dtypes[index % len(case.dtypes)]
            value = torch.empty(shape, dtype=dtype, device="cuda")
            params.append(torch.nn.Parameter(value))
            params[-1].grad = torch.empty_like(value)
        with recorded() as found:
            if case.mode == "norm":
                module.clip_grad_norm_(params, bound, foreach=foreach)
            else:
                module.clip_grad_value_(params, bound, foreach=foreach)
    return found


def replayed_bytes(case: clipping.Case, side: str) -> int:
    """What a graph has to read and write: gradients are read for the norm."""
    passes = 2 if case.mode == "value" else 1 if side == "below" else 3
    sizes = (torch.Size(shape).numel() for shape in case.shapes)
    return passes * sum(
        size * case.dtypes[index % len(case.dtypes)].itemsize
        for index, size in enumerate(sizes)
    )


def measure(bandwidth: float) -> list[Row]:
    """All cases, below and above their bounds, by all hooks."""
    new = torch.__version__ >= (2, 12) and str(torch.version.cuda) >= "13"
    limits = CUDA_13 if new else CUDA_12
    cases = [
        (case, side, bound)
        for case in measured.CASES.values()
        for side, bound in measured.LIMITS.items()
    ]
    # All times first: once used, the profiler stays attached to the device.
    times = []
    for case, _, bound in cases:
        compared = measured.sides(case, bound)
        hosts = measured.medians(compared, measured.host_us)
        devices = measured.medians(compared, measured.device_us)
        times.append((hosts, devices))
    rows = []
    for (case, side, bound), found in zip(cases, times, strict=True):
        for who, each, host_us, device_us in zip(
            NAMES, measured.sides(case, bound), *found, strict=True
        ):
            if who == NAMES[2]:
                launches, moved = None, replayed_bytes(case, side)
            else:
                model = modelled(case, bound, who)
                launches, moved = model.launches(limits), model.bytes
            rows.append(
                Row(
                    case.title,
                    side,
                    who,
                    host_us,
                    device_us,
                    measured.launches(each.clip),
                    launches,
                    measured.syncs(each.clip),
                    moved,
                    moved / (device_us / 1e6) / bandwidth,
                )
            )
    return rows


def tests() -> str:
    """What pytest says last of the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda"]
    try:
        run = subprocess.run(
            [*command, "tests", "benchmarks", "--benchmark-disable"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=TESTS_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"did not end within {TESTS_SECONDS} s"
    lines = run.stdout.strip().splitlines() or [run.stderr[-500:]]
    return "; ".join(
        line
        for line in lines
        if line.startswith(("FAILED", "ERROR")) or line is lines[-1]
    )


def markdown(report: Report) -> str:
    """The tables."""
    lines = [f"- {name}: {value}" for name, value in report.machine.items()]
    bandwidth = report.copy_bytes_per_second
    lines += [
        f"- copy of 1 GiB: {bandwidth / 1e9:,.0f} GB/s, read and written",
        f"- tests that need a GPU: {report.tests}",
        "",
        "Medians. Host time is that of the thread that launches kernels; "
        "device time is between CUDA events, with all the work queued. Bytes, "
        "and the launches in parentheses, are computed, not measured. CUPTI "
        "before CUDA 13.1 may count the kernels of a graph wrongly.",
        "",
        "| gradients | norm | hook | host, µs | device, µs | launches | syncs "
        "| MB | of copy |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row.case} | {row.side} | {row.who} | {row.host_us:,.0f} "
        f"| {row.device_us:,.0f} | {row.launches:,}{_modelled(row)} "
        f"| {row.syncs} | {row.bytes / 1e6:,.1f} | {row.share:.0%} |"
        for row in report.rows
    ]
    names = list(gpu_loops.CLIPS)
    lines += [
        "",
        "Steps per second of training loops by the way to clip, medians; and "
        "the share of steps in which each gradient lay where it lay in the "
        "step before, so that a graph can be replayed.",
        "",
        f"| loop | in place | {' | '.join(names)} |",
        f"| --- | ---: |{' ---: |' * len(names)}",
    ]
    for loop in report.loops:
        found = (f"{loop.steps_per_second[name]:,.0f}" for name in names)
        lines.append(
            f"| {loop.loop} | {loop.in_place:.0%} | {' | '.join(found)} |"
        )
    return "\n".join(lines) + "\n"


def _modelled(row: Row) -> str:
    return "" if row.modelled is None else f" ({row.modelled:,})"


def main() -> int:
    """Measures and writes; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        print("gpu.py: no CUDA GPU here, nothing is measured", file=sys.stderr)
        return 2
    about, bandwidth = machine(), measured.copy_bandwidth()
    rows, loops = measure(bandwidth), gpu_loops.measure()
    report = Report(about, bandwidth, rows, loops)
    report.write(out)  # Nothing is lost if the tests take too long.
    gc.collect()
    torch.cuda.empty_cache()
    report.tests = tests()
    print(report.write(out), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
