"""The report of measurements on a GPU, where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gpu
import gpu_loops
import gpu_measured

# Invented: nothing of this was measured, on any card.
ROWS = [
    gpu.Row(
        case="10 x 8, float32",
        side=side,
        who=who,
        host_us=1234.4,
        device_us=56.5,
        launches=1042,
        modelled=None if who == gpu.NAMES[2] else 42,
        syncs=0,
        bytes=3_210_000,
        share=0.256,
    )
    for side in ("below", "above")
    for who in gpu.NAMES
]
LOOPS = [
    gpu_loops.LoopRow("a loop", 0.985, dict.fromkeys(gpu_loops.CLIPS, 1234.4))
]
MACHINE = {"card": "an invented card", "driver": "1.2.3", "torch": "0.0"}
REPORT = gpu.Report(MACHINE, 2.5e12, ROWS, LOOPS, "12 passed")


def test_tables():
    text = gpu.markdown(REPORT)
    lines = text.splitlines()
    assert "- card: an invented card" in lines
    assert "- copy of 1 GiB: 2,500 GB/s, read and written" in lines
    assert "- tests that need a GPU: 12 passed" in lines
    table = [line for line in lines if line.startswith("|")]
    second = table[2 + len(ROWS) :]
    assert second[0].endswith("| this package | this package, cuda_graph |")
    assert second[2:] == ["| a loop | 98% | 1,234 | 1,234 | 1,234 | 1,234 |"]
    assert {line.count("|") for line in second} == {7}
    del table[2 + len(ROWS) :]
    assert table[2] == (
        "| 10 x 8, float32 | below | RoboOrchardLab | 1,234 | 56 "
        "| 1,042 (42) | 0 | 3.2 | 26% |"
    )
    assert table[4] == (
        "| 10 x 8, float32 | below | this package, cuda_graph | 1,234 | 56 "
        "| 1,042 | 0 | 3.2 | 26% |"
    )
    assert len(table) == 2 + len(ROWS)
    # Every row has as many cells as the head.
    assert {line.count("|") for line in table} == {table[0].count("|")}


def test_what_is_written(tmp_path, monkeypatch, capsys):
    """With a GPU that is invented, too."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_measured, "copy_bandwidth", lambda: 2.5e12)
    monkeypatch.setattr(gpu, "measure", lambda bandwidth: ROWS)
    monkeypatch.setattr(gpu_loops, "measure", lambda: LOOPS)
    monkeypatch.setattr(gpu, "machine", lambda: MACHINE)
    monkeypatch.setattr(gpu, "tests", lambda: "12 passed")
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "--out", str(tmp_path / "r.md")]
    )
    assert gpu.main() == 0
    text = tmp_path.joinpath("r.md").read_text()
    assert text == gpu.markdown(REPORT)
    assert capsys.readouterr().out == text
    data = json.loads(tmp_path.joinpath("r.json").read_text())
    assert data["machine"] == MACHINE
    assert data["copy_bytes_per_second"] == 2.5e12
    assert [gpu.Row(**row) for row in data["rows"]] == ROWS
    assert [gpu_loops.LoopRow(**loop) for loop in data["loops"]] == LOOPS


@pytest.mark.parametrize("title", gpu_measured.CASES)
def test_what_is_computed(title):
    """The model knows every op of every case, of either side."""
    case = gpu_measured.CASES[title]
    theirs, ours = (gpu.modelled(case, 1.0, who) for who in gpu.NAMES[:2])
    assert 0 < ours.launches(gpu.CUDA_12) <= theirs.launches(gpu.CUDA_12)
    sizes = [torch.Size(shape).numel() for shape in case.shapes]
    grads = sum(sizes) * case.dtypes[0].itemsize
    if len(case.dtypes) == 1:
        # Three passes of a norm, four of a minimum and a maximum.
        least = grads * (3 if case.mode == "norm" else 4)
        assert least <= ours.bytes <= 1.3 * least
        # Without the multiply below the bound, and in one pass by value.
        below, above = (
            gpu.replayed_bytes(case, side) for side in gpu_measured.LIMITS
        )
        passes = (1, 3) if case.mode == "norm" else (2, 2)
        assert (below, above) == tuple(each * grads for each in passes)


def test_loops(monkeypatch):
    """On a CPU, where gradients that are not freed stay in place."""
    kept = [loop for loop in gpu_loops.LOOPS if not loop.set_to_none]
    monkeypatch.setattr(gpu_loops, "LOOPS", kept)
    (row,) = gpu_loops.measure("cpu", steps=2, rounds=1)
    assert row.in_place == 1
    assert list(row.steps_per_second) == list(gpu_loops.CLIPS)
    assert min(row.steps_per_second.values()) > 0


@pytest.mark.parametrize("loop", gpu_loops.LOOPS, ids=lambda loop: loop.title)
def test_a_step_of_a_loop(loop):
    trained = gpu_loops.Trained(loop, "cpu")
    before = [param.detach().clone() for param in trained.params]
    trained.step(gpu_loops.CLIPS["torch"])
    assert all(param.grad is not None for param in trained.params)
    # In bf16, a step is too small for parameters of about 1.
    assert sum(map(torch.equal, trained.params, before)) < len(before) / 2


def test_without_a_gpu(tmp_path):
    file = Path(gpu.__file__)
    run = subprocess.run(
        [sys.executable, file, "--out", tmp_path / "r.md"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert run.returncode == 2
    assert run.stderr == "gpu.py: no CUDA GPU here, nothing is measured\n"
    assert not list(tmp_path.iterdir())
