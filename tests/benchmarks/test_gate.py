"""The gate fails where work takes more instructions, and nowhere else."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gate

ROOT = Path(__file__).parents[2]

# A Python function around the compiled one.
SLOWDOWN = """
def _slower(self, channel, arg, begin=PipelineHooks.begin):
    return begin(self, channel, arg)
PipelineHooks.begin = _slower
"""


@pytest.mark.slow
def test_a_slowdown_fails_by_name(tmp_path):
    shutil.copytree(ROOT / "src", tmp_path / "src")
    with open(tmp_path / "src/robo_orchard_fasthooks/mixin.py", "a") as file:
        file.write(SLOWDOWN)
    result = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gate.py", "dispatch"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    row = r"^\| dispatch: (.*?) \|.*\| (\w+) \|$"
    verdicts = dict(re.findall(row, result.stdout, re.M))
    assert verdicts["begin, 0 hooks (from_callable)"] == "FAILED"
    assert verdicts["arguments built"] == "passed"
    last = result.stdout.splitlines()[-1]
    assert "dispatch: begin, 0 hooks (from_callable)" in last


@pytest.mark.parametrize(
    ("ours", "limits", "failures"),
    [
        (20, {"step": 0.2}, []),
        (21, {"step": 0.2}, ["torch: step"]),
        (20, {}, ["torch: step"]),
        (20, {"step": 0.2, "gone": 1}, ["torch: gone (not counted)"]),
    ],
    ids=["passes", "above its limit", "without a limit", "not counted"],
)
def test_failures(ours, limits, failures):
    limit = limits.get("step", gate.NAN)
    results = [gate.Result("torch", "step", 100, ours, limit)]
    assert gate.failures(results, {"torch": limits}) == failures
