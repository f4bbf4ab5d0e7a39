"""Gradients of every placement, side by side, on two ranks."""

import re
from pathlib import Path

import pytest

from helpers import processes

RANKS = str(Path(__file__).parents[1].joinpath("helpers/placement_ranks.py"))


@pytest.mark.parametrize("program", ["placements", "random", "renewed"])
def test_on_two_ranks(program):
    out, _ = processes.run([*processes.TORCHRUN, "2", RANKS, program, "2"])
    first, *others = sorted(re.findall("^rank .*", out, re.MULTILINE))
    assert re.fullmatch(r"rank 0 of 2: [1-9]\d* cases", first)
    assert others == [first.replace("rank 0", "rank 1")]
