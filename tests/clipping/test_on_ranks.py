"""The cases of `helpers.ranks`, each as a test of its own.

A program runs once for all of its cases that were selected, in whichever
process of pytest needs it first.
"""

import json

import pytest

from helpers import processes
from helpers.ranks import CASES, RANKS

TESTS = [(program, name) for program in CASES for name in CASES[program]]


@pytest.fixture
def folder(program, shared, request):
    """Where the ranks have left their results."""

    def run(folder):
        params = [
            item.callspec.params
            for item in request.session.items
            if item.originalname == request.node.originalname
        ]
        names = [each["name"] for each in params if each["program"] == program]
        (folder / "cases.json").write_text(json.dumps(names))
        torchrun = [*processes.TORCHRUN, str(RANKS[program])]
        command = [*torchrun, "-m", "helpers.ranks", program, str(folder)]
        try:
            processes.run(command, timeout=300)
        except AssertionError as error:
            (folder / "error").write_text(str(error))

    return processes.once(shared / "ranks" / program, run)


def failures(name, rank, folder):
    """What failed in a case on that rank."""
    file, error = folder / f"{rank}.jsonl", folder / "error"
    lines = file.read_text().splitlines() if file.exists() else []
    ended = dict(map(json.loads, lines))
    if not error.exists():
        return ended[name]
    names = json.loads((folder / "cases.json").read_text())
    missing = [each for each in names if each not in ended] or names[-1:]
    if name == missing[0]:
        return [*ended.get(name, []), error.read_text()]
    return ended.get(name, [f"not run, because {missing[0]} did not end"])


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
