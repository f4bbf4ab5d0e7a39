"""Clipping the gradients of well-known models, by upstream's hook and ours.

    pytest benchmarks/test_clipping.py

The gradients are the same for both, and are restored before each round.
"""

from __future__ import annotations

from typing import Any

import pytest

import clipping
from helpers import processes

CASES = {case.title: case for case in clipping.OF_MODELS}
LIMITS = {"below": 1e12, "above": 1e-3}


@pytest.mark.parametrize("name", clipping.LIBRARIES)
@pytest.mark.parametrize("side", LIMITS)
@pytest.mark.parametrize("title", CASES)
def test_clipping(benchmark: Any, title: str, side: str, name: str) -> None:
    """Times the hook of one library."""
    clips, restore = clipping.hooks_of(CASES[title], LIMITS[side])
    benchmark.group = f"{title}, {side}"
    benchmark.pedantic(clips[name], setup=restore, rounds=7, warmup_rounds=2)


def test_two_ranks() -> None:
    """Sharded gradients: `clipping_fsdp2.py` prints its own table."""
    out, _ = processes.run(
        [*processes.TORCHRUN, "2", clipping.__file__[:-3] + "_fsdp2.py"]
    )
    print(out)
    assert out.count("ratio") == 4
