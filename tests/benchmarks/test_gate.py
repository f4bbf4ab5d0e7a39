"""The gate fails on slowdowns that are put in on purpose, on nothing else."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

import gate

ROOT = Path(__file__).parents[2]

# A second lookup per dispatch, and a second gradient list per clip.
SLOWDOWNS = {
    "csrc/robo_orchard_fasthooks/_dispatch.pyx": (
        '    hooks = getattr(self, "hooks", None)\n',
        '    hooks = getattr(self, "hooks", None)\n' * 2,
    ),
    "src/robo_orchard_fasthooks/_clipping/local.py": (
        "self.norm_of(self.local(params), ",
        "self.norm_of(self.local(params) and self.local(params), ",
    ),
}


def run_gate(*arguments, **environment):
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gate.py", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
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
    result = run_gate("dispatch", "torch", PYTHONPATH=str(tmp_path / "src"))
    assert result.returncode == 1, result.stdout + result.stderr
    rows = re.findall(
        r"^\| (\w+: .*?) \|.*\| (\w+) \| [\d.]* \|$", result.stdout, re.M
    )
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
    ("ours", "limit", "verdict"),
    [
        (20, 0.2, "passed"),
        (21, 0.2, "FAILED"),
        (20, gate.NAN, "FAILED"),  # It has no limit yet.
    ],
)
def test_verdicts(ours, limit, verdict):
    result = gate.Result("torch", "step", 100, ours, limit)
    assert result.verdict == verdict
    assert gate.failures([result], {}) == ["torch: step"] * (
        verdict == "FAILED"
    )


def test_a_limit_of_what_was_not_counted_fails():
    results = [gate.Result("torch", "step", 100, 20, 0.2)]
    limits = {"torch": {"step": 0.2, "gone": 0.1}, "dispatch": {"other": 1}}
    assert gate.failures(results, limits) == ["torch: gone (not counted)"]


@pytest.mark.parametrize("slower", [1e-3, 1e3])
def test_times_are_shown_and_cannot_fail(slower, monkeypatch, capsys):
    counts = {"upstream step": 100, "ours step": 20}
    monkeypatch.setattr(sys, "argv", ["gate.py", "dispatch"])
    monkeypatch.setattr(gate.rtoml, "load", lambda _: LIMITS)
    monkeypatch.setattr(
        gate, "Counting", lambda _: mock.Mock(results=lambda: counts)
    )
    monkeypatch.setattr(gate, "times", lambda: {"step": slower})
    assert gate.main() == 0
    assert f"| passed | {slower:.2f} |" in capsys.readouterr().out


LIMITS = {"dispatch": {"step": 0.2}}


def test_without_valgrind_it_says_what_to_install():
    result = run_gate("dispatch", PATH="")
    assert result.returncode == 2
    assert "apt-get install valgrind" in result.stderr


def test_unknown_family_is_an_error():
    result = run_gate("dispatches")
    assert result.returncode == 2
    assert "'dispatches'" in result.stderr
