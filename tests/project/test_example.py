"""`examples/train_digits.py`, run as its readers run it."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from helpers import processes

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "train_digits.py")
ONE_PROCESS = (sys.executable, EXAMPLE, "--cpu")
TWO_PROCESSES = (*processes.TWO_RANKS, EXAMPLE, "--cpu")


def number(name, out):
    """The one number that the report gives under that name."""
    (found,) = re.findall(rf"\b{name} (\d+(?:\.\d+)?)\b", out)
    return float(found)


def test_a_profiled_run(tmp_path):
    out, err = processes.run(
        [*ONE_PROCESS, "--epochs", "2", "--profile", "--out", "named.PNG"],
        cwd=tmp_path,
    )
    # Seeds 0 to 9 gave 0.96 to 0.97; guessing gives 0.1.
    assert number("test accuracy", out) >= 0.9
    assert number("steps per second", out) >= 1
    assert number("steps", out) == 42
    assert 0 < number("clipped", out) < 42  # Norms before clipping.
    blank, *bars = err.splitlines()  # Each starts with "\r".
    assert blank == ""
    assert all(re.match(r" *\d+%\|", bar) for bar in bars)  # No warnings.
    # tqdm writes blanks over the rest of a longer line.
    last = r" 42/42 .*accuracy=0\.\d{4}, grad_norm=\d+\.\d{3}]$"
    assert re.search(last, bars[-1].rstrip())

    hooks, channels = out.split("\n\n")[-2:]
    order = ["GradientClippingHook", "TrackingHook", "OptimizerHook"]
    described = out.split("\non_step\n")[1]
    assert re.findall(r"^  \d (\w+)$", described, re.M) == order
    for hook in order:
        assert re.search(rf"^{hook} +on_step.after .* 42 ", hooks, re.M)
    assert re.search(r"^on_step +42 ", channels, re.M)

    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"named.PNG", "named_hooks.PNG"}
    imread(tmp_path / "named.PNG", format="png")


@pytest.mark.slow
def test_twelve_epochs_are_enough(tmp_path):
    out, _ = processes.run([*ONE_PROCESS], cwd=tmp_path)
    assert number("test accuracy", out) >= 0.97


@pytest.mark.slow
def test_two_processes_take_the_same_course_as_one(tmp_path):
    one, two = (
        processes.run([*command, "--epochs", "2"], cwd=tmp_path)[0]
        for command in (ONE_PROCESS, TWO_PROCESSES)
    )
    assert (number("processes", one), number("processes", two)) == (1, 2)
    assert number("steps", two) == number("steps", one)
    for name, tolerance in (("training loss", 2e-3), ("test accuracy", 5e-3)):
        expected = pytest.approx(number(name, one), rel=0, abs=tolerance)
        assert number(name, two) == expected
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
