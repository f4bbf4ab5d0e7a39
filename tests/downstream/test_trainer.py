"""A training script of RoboOrchardLab's, run as it is and with us."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from helpers import processes

SCRIPT = str(Path(__file__).with_name("train_lab.py"))
RUN = ("-m", "robo_orchard_fasthooks", "run")
MAX_NORM = 0.5
STEPS = 29  # In an epoch: 1,797 images by 64.
TIMES = re.compile(r"[\d.:]+(?= sec| samples/sec|\.\t)")


@dataclass
class Run:
    """What a run of the script left behind."""

    log: str
    err: str
    files: dict[str, bytes]
    folder: Path

    @property
    def result(self) -> dict:
        return torch.load(self.folder / "out" / "result.pt")

    @property
    def bits(self) -> dict[str, bytes]:
        """Those of the parameters."""
        return {
            name: value.numpy().tobytes()
            for name, value in self.result["parameters"].items()
        }


def train(folder: Path, *command: str) -> Run:
    log, err = processes.run([*command, "--out", "out"], cwd=folder)
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    return Run(log, err, files, folder)


def train_both(
    factory: pytest.TempPathFactory,
    options: Sequence[tuple[str, ...]] = ((), ()),
    start: tuple[str, ...] = (sys.executable,),
) -> list[Run]:
    """Without us, and with us; each with options of its own."""
    commands = [(*start, SCRIPT), (*start, *RUN, SCRIPT)]
    with ThreadPoolExecutor(2) as threads:
        runs = [
            threads.submit(train, factory.mktemp("run"), *command, *given)
            for command, given in zip(commands, options, strict=True)
        ]
        return [run.result() for run in runs]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Run]:
    return train_both(tmp_path_factory)


@pytest.fixture(scope="module")
def resumed(runs, tmp_path_factory) -> list[Run]:
    """Each from the checkpoint that the other kind wrote after one epoch."""
    first = Path("out", "checkpoints", "checkpoint_0")
    # To 0.4.0 the epoch that a checkpoint ended is not over: one more is left.
    options = [
        ("--epochs", "1", "--resume", str(run.folder / first))
        for run in reversed(runs)
    ]
    return train_both(tmp_path_factory, options)


def test_parameters_losses_and_norms_are_equal(runs):
    plain, ours = runs
    assert ours.bits == plain.bits
    assert max(plain.result["norms"]) > MAX_NORM > min(plain.result["norms"])
    for name in ("losses", "norms"):
        assert ours.result[name] == plain.result[name]


def test_logs_are_equal_but_for_times(runs):
    plain, ours = (TIMES.sub("#", run.log) for run in runs)
    assert ours == plain
    assert ours.count("\n") == runs[0].log.count("\n")
    assert [run.err for run in runs] == ["", ""]


def test_checkpoints_are_equal_byte_for_byte(runs):
    plain, ours = runs
    assert ours.files == plain.files
    folders = {name.split("/")[2] for name in ours.files if "point_" in name}
    assert folders == {f"checkpoint_{n}" for n in range(3)}
    for name in ("model.safetensors", "optimizer.bin", "random_states_0.pkl"):
        assert f"out/checkpoints/checkpoint_0/{name}" in ours.files


def test_a_run_resumed_from_the_other_kind_ends_as_if_uninterrupted(
    runs, resumed
):
    for run in resumed:
        assert f"from epoch 0 and step {STEPS}\n" in run.log
        assert run.bits == runs[0].bits
        assert run.result["losses"] == runs[0].result["losses"][STEPS:]


def test_two_processes_get_the_parameters_that_they_get_without(
    runs, tmp_path_factory
):
    torchrun = (*processes.TORCHRUN, "2")
    plain, ours = train_both(tmp_path_factory, start=torchrun)
    assert plain.result["num_processes"] == 2
    assert ours.result["num_processes"] == 2
    assert ours.bits == plain.bits != runs[0].bits
    assert ours.result["losses"] == plain.result["losses"]
