"""Times several runs in turn, so that what slows one slows all of them."""

from __future__ import annotations

from time import perf_counter_ns

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
