"""`examples/train_digits.py`, run as its readers run it."""

from __future__ import annotations

import re
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from helpers import processes

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "train_digits.py")
ONE_PROCESS = (sys.executable, EXAMPLE, "--cpu")
TWO_PROCESSES = (*processes.TORCHRUN, "2", EXAMPLE, "--cpu")
SHORT = ("--epochs", "2")


@dataclass
class Run:
    """What a run of the example left behind."""

    out: str
    err: str
    folder: Path

    def number(self, name: str) -> float:
        """The one number that the report gives under that name."""
        (found,) = re.findall(rf"\b{name} (\d+(?:\.\d+)?)\b", self.out)
        return float(found)


def train(folder: Path, command: tuple[str, ...], *options: str) -> Run:
    out, err = processes.run([*command, *options], cwd=folder)
    return Run(out, err, folder)


# Runs on one process, most of which differ in one option.
OPTIONS = {
    "short": SHORT,
    "again": (*SHORT, "--seed", "0", "--out", "named.PNG"),
    "other seed": (*SHORT, "--seed", "1"),
    "unclipped": (*SHORT, "--max-norm", "1e6"),
    "profiled": (*SHORT, "--profile"),
}


class Runs:
    """Each of them, run when it is first needed."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __getitem__(self, name: str) -> Run:
        def fill(folder: Path) -> None:
            (folder / "files").mkdir()
            ran = train(folder / "files", ONE_PROCESS, *OPTIONS[name])
            (folder / "out").write_text(ran.out)
            (folder / "err").write_text(ran.err)

        folder = processes.once(self.folder / name, fill)
        out, err = ((folder / each).read_text() for each in ("out", "err"))
        return Run(out, err, folder / "files")


@pytest.fixture
def runs(shared: Path) -> Runs:
    return Runs(shared / "example")


@pytest.mark.slow
def test_twelve_epochs_are_enough(tmp_path):
    full = train(tmp_path, ONE_PROCESS, "--epochs", "12")
    assert full.number("test accuracy") >= 0.97


def test_report_ends_with_speed_and_accuracy(runs):
    *_, speed, accuracy = runs["short"].out.splitlines()
    assert re.fullmatch(r"steps per second [1-9]\d*", speed)
    assert re.fullmatch(r"test accuracy 0\.\d{4}", accuracy)
    # Seeds 0 to 9 gave 0.96 to 0.97; guessing gives 0.1.
    assert runs["short"].number("test accuracy") >= 0.9


def test_progress_bar_reaches_the_last_step(runs):
    assert runs["short"].number("steps") == 42
    blank, *bars = runs["short"].err.splitlines()  # Each starts with "\r".
    assert blank == ""
    assert all(re.match(r" *\d+%\|", bar) for bar in bars)  # No warnings.
    assert " 42/42 " in bars[-1]
    # tqdm writes blanks over the rest of a longer line.
    last = bars[-1].rstrip()
    assert re.search(r"accuracy=0\.\d{4}, grad_norm=\d+\.\d{3}]$", last)


def test_hooks_are_listed_in_the_order_they_run(runs):
    _, on_step = runs["short"].out.split("\non_step\n")
    assert re.findall(r"^  \d (\w+)$", on_step, re.MULTILINE) == [
        "GradientClippingHook",
        "TrackingHook",
        "OptimizerHook",
    ]


def test_norms_are_those_before_clipping(runs):
    clipped = runs["short"].number("clipped")
    assert 0 < clipped < runs["short"].number("steps")


def test_picture_shows_curves_and_threshold(runs):
    picture = runs["short"].folder / "train_digits.png"
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = imread(picture)
    assert image.shape == (900, 1200, 4)

    def pixels(*color: int) -> np.ndarray:
        return abs(image[..., :3] * 255 - color).max(axis=-1) < 8

    upper, lower = slice(None, 450), slice(450, None)
    loss, grad_norm = pixels(31, 119, 180), pixels(44, 160, 44)
    for curve, panel, other in (
        (loss, upper, lower),
        (grad_norm, lower, upper),
    ):
        assert curve[panel].any(axis=0).sum() > 400  # Columns of 1,200.
        assert not curve[other].any()
    assert pixels(214, 39, 40)[lower].sum(axis=1).max() > 400  # In one row.


def test_picture_goes_where_out_says(runs):
    assert [path.name for path in runs["again"].folder.iterdir()] == [
        "named.PNG"
    ]


def test_same_seed_gives_the_same_result(runs):
    for name in ("clipped", "training loss", "test accuracy"):
        assert runs["again"].number(name) == runs["short"].number(name)


def test_profile_ends_with_table_and_picture(runs):
    profiled, plain = runs["profiled"], runs["short"]
    for name in ("clipped", "training loss", "test accuracy"):
        assert profiled.number(name) == plain.number(name)
    *_, hooks, channels = profiled.out.split("\n\n")
    header, *rows = hooks.splitlines()[-7:]
    assert header.split()[:3] == ["hook", "at", "share"]
    names = {tuple(row.split()[:2]): row for row in rows}
    assert len(names) == 6
    for hook in ("GradientClippingHook", "TrackingHook", "OptimizerHook"):
        assert " 42 " in names[hook, "on_step.after"]
    assert re.search(r"^on_step +42 ", channels, re.MULTILINE)
    files = {path.name for path in profiled.folder.iterdir()}
    assert files == {"train_digits.png", "train_digits_hooks.png"}


@pytest.mark.parametrize("name", ["other seed", "unclipped"])
def test_seed_and_threshold_change_the_result(name, runs):
    loss = runs["short"].number("training loss")
    assert runs[name].number("training loss") != loss


def test_nothing_is_clipped_below_the_threshold(runs):
    assert runs["unclipped"].number("clipped") == 0


def test_two_processes_take_the_same_course_as_one(runs, tmp_path):
    one, two = runs["short"], train(tmp_path, TWO_PROCESSES, *SHORT)
    assert (one.number("processes"), two.number("processes")) == (1, 2)
    assert two.number("steps") == one.number("steps")
    for name, tolerance in (("training loss", 2e-3), ("test accuracy", 5e-3)):
        expected = pytest.approx(one.number(name), rel=0, abs=tolerance)
        assert two.number(name) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["train_digits.png"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--epochs", "0"),
        ("--epochs", "x"),
        ("--max-norm", "-1"),
        ("--max-norm", "nan"),
        ("--out", "missing/digits.png"),
        ("--out", "digits.pdf"),
        ("--seed", "-1"),
    ],
)
def test_bad_value_is_a_one_line_error(
    option, value, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [EXAMPLE, option, value])
    # In this process: in one of its own each would import for 3 seconds.
    with pytest.raises(SystemExit) as exited:
        runpy.run_path(EXAMPLE, run_name="__main__")
    assert exited.value.code == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("train_digits.py: error: ")
    assert option in line
    assert out == ""
