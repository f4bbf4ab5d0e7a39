"""The README's example runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


EXAMPLE, IN_CI = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


def test_the_example_runs():
    result = subprocess.run(
        [sys.executable, "-c", EXAMPLE],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "on_step"
    assert lines[1] == "  0 GradientClippingHook"
    assert lines[3] == "  1 OptimizerHook"
    assert re.fullmatch(r"step 2: loss \d+\.\d{3}", lines[-1])


@pytest.mark.slow
def test_the_gate_of_your_ci_runs(tmp_path):
    (tmp_path / "test_hooks.py").write_text(IN_CI)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "test_hooks.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout
    assert "1 passed" in result.stdout
