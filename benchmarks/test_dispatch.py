"""Hooks and arguments, by upstream, `lab.install()` and this package.

    pytest benchmarks/test_dispatch.py

Each time is that of 100 repetitions. What a workload holds constant is in its
docstring, in `workloads.py`.
"""

from __future__ import annotations

from typing import Any

import pytest

import workloads

LIBRARIES = (workloads.upstream(), workloads.installed(), workloads.ours())


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda each: each.name)
@pytest.mark.parametrize(
    "workload", workloads.DISPATCH, ids=lambda each: each.name
)
def test_dispatch(
    benchmark: Any, workload: workloads.Workload, library: workloads.Library
) -> None:
    """Times one workload done by one library."""
    benchmark.group = workload.name
    run = workload.make(library)
    benchmark.pedantic(run, (100,), rounds=30, warmup_rounds=3)
