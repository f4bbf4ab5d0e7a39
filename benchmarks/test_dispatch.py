"""Hooks and arguments: ours, upstream and the floor side by side.

    pytest benchmarks/test_dispatch.py

Each time is that of 100 repetitions. What a workload holds constant stands in
its docstring, in `workloads.py`; the floor is the same work without hooks.
"""

from __future__ import annotations

from typing import Any

import pytest

import workloads

LIBRARIES = {
    library.name: library
    for library in (
        workloads.upstream(),
        workloads.installed(),
        workloads.ours(),
    )
}
WORKLOADS = {
    workload.name: workload
    for workload in workloads.dispatch(LIBRARIES["ours"].args)
}


SIDES = [
    (name, side)
    for name, workload in WORKLOADS.items()
    for side in [*LIBRARIES, *(["floor"] if workload.floor else [])]
]


@pytest.mark.parametrize(("name", "side"), SIDES)
def test_dispatch(benchmark: Any, name: str, side: str) -> None:
    """Times one side of one workload."""
    workload = WORKLOADS[name]
    if side == "floor":
        run = workload.floor()
    else:
        run = workload.make(LIBRARIES[side])
    benchmark.group = name
    benchmark.pedantic(run, (100,), rounds=30, warmup_rounds=3)
