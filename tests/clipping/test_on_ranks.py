"""The cases of `helpers.ranks`, each as a test of its own.

A program runs once for all of its cases that were selected, in whichever
process of pytest needs it first.
"""

import json
import os

import pytest
from filelock import FileLock

from helpers import processes
from helpers.ranks import CASES, RANKS

TESTS = [(program, name) for program in CASES for name in CASES[program]]


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that all processes of pytest-xdist share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture
def folder(program, shared, request):
    """Where the ranks have left their results."""
    folder = shared / "ranks" / program
    # One program at a time: each keeps at least two cores busy.
    with FileLock(shared / "ranks.lock"):
        if not folder.exists():
            folder.mkdir(parents=True)
            params = [
                item.callspec.params
                for item in request.session.items
                if item.originalname == request.node.originalname
            ]
            run(
                program,
                [
                    each["name"]
                    for each in params
                    if each["program"] == program
                ],
                folder,
            )
    return folder


def run(program, names, folder):
    """Runs the cases; writes down what was said if that did not end well."""
    (folder / "cases.json").write_text(json.dumps(names))
    ranks = [*processes.TORCHRUN, str(RANKS[program])]
    try:
        processes.run([*ranks, "-m", "helpers.ranks", program, str(folder)])
    except AssertionError as error:
        (folder / "error").write_text(str(error))


def failures(name, rank, folder):
    """What failed in a case on that rank."""
    file = folder / f"{rank}.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    ended = dict(map(json.loads, lines))
    names = json.loads((folder / "cases.json").read_text())
    (first, *_) = (*(each for each in names if each not in ended), None)
    if name == first:
        return [(folder / "error").read_text()]
    return ended.get(name, [f"not run, because {first} did not end"])


@pytest.mark.parametrize(
    ("program", "name"), TESTS, ids=[f"{p}-{name}" for p, name in TESTS]
)
def test_on_ranks(program, name, folder):
    failed = [
        f"rank {rank}: {failure}"
        for rank in range(RANKS[program])
        for failure in failures(name, rank, folder)
    ]
    if failed:
        pytest.fail("\n".join(failed), pytrace=False)
