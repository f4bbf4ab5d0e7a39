"""The Python blocks of the page about RoboOrchardLab run as they stand."""

import sys
from pathlib import Path

from helpers import processes

PAGE = Path(__file__).parents[2] / "docs" / "robo_orchard_lab.md"


def test_the_page():
    command = [sys.executable, "-m", "helpers.run_page", str(PAGE)]
    out, _ = processes.run(command, timeout=180)
    assert "is active in robo_orchard_lab 0.4.0" in out
