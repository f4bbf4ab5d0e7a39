"""What is compared does the same work; the report has all of it.

Nothing here looks at a time.
"""

import json
import re
import struct
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

import peers
import workloads
from robo_orchard_fasthooks import lab

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

REPEATS = 3
KEYWORDS = (
    *("accelerator", "max_step", "max_epoch", "epoch_id", "step_id"),
    *("global_step_id", "dataloader", "model", "optimizer", "lr_scheduler"),
    *("start_epoch", "start_step"),
)


@pytest.fixture
def callbacks(log, monkeypatch):
    """Has all callbacks log their number, and what they are given."""
    numbers = count()

    def make(count, signature="args"):
        source = f"lambda {signature}: log.append((number, args))"
        return [
            eval(source, {"log": log, "number": next(numbers)})
            for _ in range(count)
        ]

    def start():
        nonlocal numbers
        numbers = count()

    monkeypatch.setattr(peers, "_callbacks", make)
    monkeypatch.setattr(workloads, "_callbacks", make)
    monkeypatch.setattr(workloads, "_method", lambda: make(1, "self, args")[0])
    return start


# Their imports warn.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", peers.PEERS)
@pytest.mark.parametrize("hooks", [1, 4, 16])
def test_peers_call_each_callback_once_in_order(name, hooks, callbacks, log):
    make = peers.installed().get(name)
    if make is None:
        pytest.skip(f"{peers.PEERS[name][0]} is not installed")
    run = make(hooks)
    log.clear()
    run(REPEATS)
    called, given = zip(*log, strict=True)
    assert list(called) == [*range(2 * hooks)] * REPEATS
    assert len(set(map(id, given))) == 1


def test_a_peer_that_is_not_installed_is_left_out(monkeypatch):
    missing = {"Missing": ("no-such-distribution", peers.with_pluggy)}
    monkeypatch.setattr(peers, "PEERS", peers.PEERS | missing)
    assert peers.versions()["no-such-distribution"] == ""
    assert "Missing" not in peers.installed()
    assert "pluggy" in peers.installed()  # pytest needs it.


def logging_args(cls, log):
    """Arguments that log how they are built and copied."""

    class Args(cls):
        def copy_with_updates(self, **updates):
            log.append(("copied", sorted(updates)))
            return super().copy_with_updates(**updates)

    def build(*args, **fields):
        log.append(("built", len(args), sorted(fields)))
        return Args(*args, **fields)

    return build


@pytest.fixture(scope="module")
def libraries():
    made = workloads.ours(), workloads.upstream(), workloads.installed()
    yield made
    lab.uninstall()


WORKLOADS = {each.name: each for each in workloads.dispatch(object)}


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_do_the_same_with_all_libraries_and_without_hooks(
    name, libraries, callbacks, log
):
    logs = []

    def record(make, *args):
        callbacks()
        run = make(*args)
        log.clear()
        run(REPEATS)
        logs.append(
            [entry[0] if isinstance(entry[0], int) else entry for entry in log]
        )

    for library in libraries:
        args = logging_args(library.args, log)
        record(
            WORKLOADS[name].make,
            workloads.Library(library.name, library.hooks, args),
        )
        (floor,) = [
            each.floor
            for each in workloads.dispatch(args)
            if each.name == name
        ]
        if floor:
            record(floor)
    assert all(each == logs[0] for each in logs)
    # Each time the same, with each callback once.
    once = logs[0][: len(logs[0]) // REPEATS]
    assert logs[0] == once * REPEATS
    numbers = [entry for entry in once if isinstance(entry, int)]
    assert sorted(numbers) == [*range(len(numbers))]
    if match := re.match(r"begin, (\d+) hook", name):
        assert len(numbers) == len(once) == 2 * int(match[1])


def test_0_5_s_step_is_the_same_with_install(callbacks, log):
    logs = []
    for make in (workloads.upstream_05, workloads.installed_05):
        library = make()
        library.args = logging_args(library.args, log)
        callbacks()
        run = workloads.step_05(library)
        log.clear()
        run(REPEATS)
        logs.append(
            [entry[0] if isinstance(entry[0], int) else entry for entry in log]
        )
    lab.uninstall()
    assert logs[0] == logs[1]
    once = logs[0][: len(logs[0]) // REPEATS]
    assert logs[0] == once * REPEATS
    copied = "copied"
    assert [entry for entry in once if not isinstance(entry, int)] == [
        ("built", 0, sorted(KEYWORDS)),
        (copied, ["batch"]),
        (copied, ["batch"]),
        (copied, ["batch", "model_outputs"]),
    ]
    numbers = [entry for entry in once if isinstance(entry, int)]
    assert sorted(numbers) == [*range(10)]


def test_report_has_all_rows_and_a_picture(tmp_path):
    command = [BENCHMARKS / "report.py", "--rounds", "1"]
    result = subprocess.run(
        [sys.executable, *command, "--only-hooks", tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    rows = re.findall(
        r"^\| (.+) \| (.+) \| [\d.,]+ (?:ns|µs|ms) \| [\d.]+x \|$",
        result.stdout,
        re.M,
    )
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert rows == [(row["work"], row["who"]) for row in results["hooks"]]
    ours = ["this package", "RoboOrchardLab"]
    begin = [*ours, "floor", *peers.installed()]
    clip = [*ours, "torch, foreach", "torch, single"]
    expected = {
        "begin, 1 hook": begin,
        "begin, 4 hooks": begin,
        "begin, 16 hooks": begin,
        "arguments built": ours,
        "arguments copied, 3 updates": ours,
        "training step": [*ours, "floor"],
        "RoboOrchardLab's step, install()": [*ours, "floor"],
        "clip policy of 2,000 tensors, below threshold": clip,
        "clip policy of 2,000 tensors, above threshold": clip,
        "clip ResNet-50, below threshold": clip,
        "clip ResNet-50, above threshold": clip,
    }
    assert rows == [(work, who) for work in expected for who in expected[work]]
    for distribution in peers.versions():
        assert distribution in results["machine"]
    header = (tmp_path / "benchmarks.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:]) == (1600, 1520)
