"""`table(reduce=accelerator)` on two real processes."""

import json
from pathlib import Path

import pytest

from helpers import processes

RANKS = str(Path(__file__).parents[1].joinpath("helpers/profiling_ranks.py"))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each rank found, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    processes.run([*processes.TORCHRUN, "2", RANKS, str(folder)])
    return [json.loads((folder / f"{r}.json").read_text()) for r in range(2)]


@pytest.mark.parametrize(
    ("case", "times"),
    [
        ("first", ["10 ns", "20 ns", "30 ns", "rank 1"]),
        ("after a reset", ["150 ns", "275 ns", "400 ns", "rank 0"]),
        # Of another profiler.
        ("after alone", ["1 µs", "2 µs", "3 µs", "rank 0"]),
    ],
)
def test_every_rank_compares_all(found, case, times):
    for rank in found:
        assert rank[case] == [
            ["both", "on_step.before", *times, "2"],
            ["only 1", "on_loop.before", *3 * ["0 ns"], "rank 1", "1"],
        ]


def test_one_rank_alone_is_told_which_did_not_come(found):
    assert "within 0.5 s these ranks did not: 1" in found[0]["alone"]
    assert 0.4 < found[0]["seconds"] < 20
