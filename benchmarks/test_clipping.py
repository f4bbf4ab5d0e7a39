"""Clipping of gradients by RoboOrchardLab 0.4.0's hook and by ours.

    pytest benchmarks/test_clipping.py

The gradients are the same for both, and are restored before each round.
"""

from __future__ import annotations

from typing import Any

import pytest

import clipping


@pytest.mark.parametrize("name", clipping.LIBRARIES)
@pytest.mark.parametrize("side", clipping.LIMITS)
@pytest.mark.parametrize("case", clipping.CASES, ids=lambda case: case.title)
def test_clipping(
    benchmark: Any, case: clipping.Case, side: str, name: str
) -> None:
    """Times the hook of one library."""
    params = clipping.parameters(case)
    clip = clipping.clip_of(
        clipping.LIBRARIES[name], params, clipping.LIMITS[side], case
    )
    benchmark.group = f"{case.title}, {side}"
    benchmark.pedantic(
        clip, setup=clipping.restoring(params), rounds=7, warmup_rounds=2
    )
