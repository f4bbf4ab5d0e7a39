"""The README's example runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_example_runs():
    (source,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    result = subprocess.run(
        [sys.executable, "-c", source],
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
