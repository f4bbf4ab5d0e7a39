"""Times this package against RoboOrchardLab 0.4.0, in one interleaved run.

    python benchmarks/compare.py [--rounds N]

Prints a Markdown table: the median time of each side, and the median of the
ratios of samples taken side by side. Exits with 1 if a ratio is short of what
is asked of it.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import sys
from statistics import median
from time import perf_counter_ns

import workloads
from workloads import Run


def interleaved(
    runs: dict[str, Run], rounds: int, sample_ns: int = 2_000_000
) -> dict[str, list[float]]:
    """Times each run in turn, round after round, in samples of equal length.

    Args:
        runs (dict[str, Run]): What to time, by name.
        rounds (int): How many samples to take of each.
        sample_ns (int): How long a sample should take, in nanoseconds.

    Returns:
        dict[str, list[float]]: Nanoseconds per repetition, by name; the
            samples of one round share an index.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    repeats = {}
    for name, run in runs.items():
        run(200)
        start = perf_counter_ns()
        run(200)
        repeats[name] = max(1, 200 * sample_ns // (perf_counter_ns() - start))
    for _ in range(rounds):
        for name, run in runs.items():
            start = perf_counter_ns()
            run(repeats[name])
            times[name].append((perf_counter_ns() - start) / repeats[name])
    return times


def main() -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=101)
    rounds = parser.parse_args().rounds
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    gc.disable()

    ours, upstream = workloads.ours(), workloads.upstream()
    installed = workloads.installed()
    asked = {
        workloads.from_callable: {0: 14, 1: 9, 4: 5.5, 16: 3.2},
        workloads.subclassed: {0: 14, 1: 9, 4: 4.5, 16: 2.2},
    }
    rows = []
    for make_hooks, least in asked.items():
        for count, ratio in least.items():
            rows.append(
                (
                    f"begin, {count} hooks ({make_hooks.__name__})",
                    lambda lib, m=make_hooks, c=count: workloads.begin(
                        lib, m, c
                    ),
                    ours,
                    ratio,
                )
            )
    rows += [
        ("whole training step", workloads.step, ours, 7.5),
        ("arguments built", workloads.build_args, ours, 4),
        ("arguments copied, 3 updates", workloads.copy_args, ours, 6),
        ("RoboOrchardLab's step, installed", workloads.step, installed, 4),
    ]
    runs = {
        (title, name): make(library)
        for title, make, measured, _ in rows
        for name, library in (("upstream", upstream), ("ours", measured))
    }
    loops = "callbacks in loops"
    runs |= {
        (loops, "0"): workloads.callbacks_in_loops(0),
        (loops, "16"): workloads.callbacks_in_loops(16),
        (loops, "step"): workloads.step_inlined(ours),
    }
    times = interleaved(runs, rounds)

    print(
        f"{platform.processor() or platform.machine()}, "
        f"Python {platform.python_version()}, median of {rounds} rounds\n"
    )
    print("| | upstream, ns | ours, ns | ratio | asked |")
    print("| --- | ---: | ---: | ---: | ---: |")
    short = []
    for title, _, _, least in rows:
        theirs, mine = times[title, "upstream"], times[title, "ours"]
        ratio = median(t / m for t, m in zip(theirs, mine, strict=True))
        print(
            f"| {title} | {median(theirs):.0f} | {median(mine):.0f} "
            f"| {ratio:.1f} | {least} |"
        )
        if ratio < least:
            short.append(title)

    few = times["begin, 0 hooks (from_callable)", "ours"]
    many = times["begin, 16 hooks (from_callable)", "ours"]
    loop = zip(times[loops, "0"], times[loops, "16"], strict=True)
    per_hook = [(m - f) / 16 for f, m in zip(few, many, strict=True)]
    in_loop = [(m - f) / 16 for f, m in loop]
    floor = times[loops, "step"]
    for title, value, base, most in (
        ("one more hook", per_hook, in_loop, 1.4),
        ("step", times["whole training step", "ours"], floor, 1.5),
    ):
        ratio = median(v / b for v, b in zip(value, base, strict=True))
        print(
            f"\n{title}: {median(value):.0f} ns, its callbacks in plain loops "
            f"{median(base):.0f} ns, ratio {ratio:.2f} (asked: {most})"
        )
        if ratio > most:
            short.append(title)
    if short:
        print("\nshort of what is asked: " + ", ".join(short))
    return bool(short)


if __name__ == "__main__":
    sys.exit(main())
