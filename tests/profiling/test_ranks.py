"""`table(reduce=accelerator)` on two real processes."""

import json
from pathlib import Path

from helpers import processes

RANKS = str(Path(__file__).parents[1].joinpath("helpers/profiling_ranks.py"))


def test_every_rank_compares_all(tmp_path):
    processes.run([*processes.TORCHRUN, "2", RANKS, str(tmp_path)])
    first, second = (
        json.loads((tmp_path / f"{rank}.json").read_text())
        for rank in range(2)
    )
    alone, seconds = first.pop("alone"), first.pop("seconds")
    assert "within 0.5 s these ranks did not: 1" in alone
    assert 0.4 < seconds < 20
    assert first == second
    assert first == {
        case: [
            ["both", "on_step.before", *times, "2"],
            ["only 1", "on_loop.before", *3 * ["0 ns"], "rank 1", "1"],
        ]
        for case, times in {
            "first": ["150 ns", "275 ns", "400 ns", "rank 0"],
            # Of another profiler.
            "after alone": ["1 µs", "2 µs", "3 µs", "rank 0"],
        }.items()
    }
