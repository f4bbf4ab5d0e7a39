"""The gate fails on slowdowns that are put in on purpose, on nothing else."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from gate import NAN, Result, times

ROOT = Path(__file__).parents[2]

# Ratios, and whether the control says that they mean something.
FAST, SLOW, NOISY = (0.1, True), (0.3, True), (0.1, False)

# A second lookup per dispatch, and a second gradient list per clip.
SLOWDOWNS = {
    "csrc/robo_orchard_fasthooks/_dispatch.pyx": (
        '    hooks = getattr(self, "hooks", None)\n',
        '    hooks = getattr(self, "hooks", None)\n' * 2,
    ),
    "src/robo_orchard_fasthooks/_clipping/local.py": (
        "        grads = self.local(params)\n",
        "        grads = self.local(params)\n" * 2,
    ),
}


def gate(*arguments, **environment):
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gate.py", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_slowdowns_fail_by_name(tmp_path):
    for folder in ("csrc", "src"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path)
    for file, (code, slower) in SLOWDOWNS.items():
        text = (tmp_path / file).read_text()
        assert text.count(code) == 1
        (tmp_path / file).write_text(text.replace(code, slower))
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    result = gate("dispatch", "torch", PYTHONPATH=str(tmp_path / "src"))
    assert result.returncode == 1, result.stdout + result.stderr
    rows = re.findall(r"^\| (\w+: .*?) \|.*\| (\w+) \|$", result.stdout, re.M)
    verdicts = dict(rows)
    for name in (
        "dispatch: begin, 0 hooks (from_callable)",
        "torch: clipping, 1,000 x 64 elements, below",
    ):
        assert verdicts[name] == "FAILED"
        assert name in result.stdout.splitlines()[-1]
    assert verdicts["dispatch: arguments built"] == "passed"
    assert verdicts["torch: clipping, 1,000 x 64, by value"] == "passed"


@pytest.mark.parametrize(
    ("ratio", "limit", "conclusive", "verdict"),
    [
        (0.2, 0.2, True, "passed"),
        (0.21, 0.2, True, "FAILED"),
        (0.2, NAN, True, "FAILED"),  # It has no limit yet.
        (0.1, 0.2, False, "inconclusive"),
        (0.3, 0.2, False, "inconclusive"),
    ],
)
def test_verdicts(ratio, limit, conclusive, verdict):
    result = Result("wall", "step", 100, 20, ratio, limit, conclusive)
    assert result.verdict == verdict


@pytest.mark.parametrize(
    ("attempts", "verdict"),
    [
        ([FAST], "passed"),
        ([SLOW, SLOW, FAST], "passed"),
        ([SLOW, SLOW, SLOW], "FAILED"),
        ([NOISY, SLOW, SLOW], "inconclusive"),
        ([SLOW, SLOW, NOISY], "inconclusive"),
        ([NOISY, NOISY, NOISY], "inconclusive"),
    ],
)
def test_times_fail_only_if_they_do_each_time(monkeypatch, attempts, verdict):
    left = list(attempts)

    def attempt(names, limits):
        ratio, conclusive = left.pop(0)
        return [Result("wall", "step", 100, 20, ratio, 0.2, conclusive)]

    class Process:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, function, *arguments):
            return mock.Mock(result=lambda: attempt(*arguments))

    monkeypatch.setattr("gate.ProcessPoolExecutor", Process)
    (result,) = times({"step": 0.2}, 3)
    assert result.verdict == verdict and not left


def test_without_valgrind_it_says_what_to_install():
    result = gate("dispatch", PATH="")
    assert result.returncode == 2
    assert "apt-get install valgrind" in result.stderr


def test_unknown_family_is_an_error():
    result = gate("dispatches")
    assert result.returncode == 2
    assert "'dispatches'" in result.stderr
