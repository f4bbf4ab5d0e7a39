"""Runs the cases of a test file on several ranks, over gloo.

A case is a function that every rank calls. The cases of a file run in one
program, in whichever process of pytest needs it first; each is a test.
"""

import itertools
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from helpers import processes

failures = []
"""What failed in the case that is running."""


def check(good, *what):
    """Notes a failure; a rank that raised would make the others wait."""
    if not good:
        failures.append(" ".join(map(str, what)))


class Cases:
    """The cases of one test file, by name."""

    def __init__(self, file, ranks=2):
        self.module = Path(file).stem
        self.ranks = ranks
        self.functions = {}

    def __call__(self, **grid):
        """Registers a case once for each combination of the grid's values."""

        def register(function):
            for chosen in itertools.product(*map(enumerate, grid.values())):
                labels = [label(*pair) for pair in chosen]
                name = "-".join([function.__name__, *labels])
                while name in self.functions:  # Registered with two grids.
                    name += "'"
                values = [value for _, value in chosen]
                settings = dict(zip(grid, values, strict=True))
                self.functions[name] = partial(function, **settings)
            return function

        return register

    def as_test(self):
        """The test function of the file, with a parameter for each case."""

        @pytest.mark.parametrize("name", self.functions)
        def test_on_ranks(name, shared, request):
            selected = [
                item.callspec.params["name"]
                for item in request.session.items
                if item.function is request.function
            ]
            folder = processes.once(
                shared / self.module, partial(self._run, selected)
            )
            failed = [
                f"rank {rank}: {failure}"
                for rank in range(self.ranks)
                for failure in _failures(name, rank, folder)
            ]
            if failed:
                pytest.fail("\n".join(failed), pytrace=False)

        return test_on_ranks

    def _run(self, selected, folder):
        (folder / "cases.json").write_text(json.dumps(selected))
        program = (sys.executable, "-m", "distributed")
        try:
            processes.run([*program, self.module, str(folder)], timeout=300)
        except AssertionError as error:
            (folder / "error").write_text(str(error))


def label(index, value):
    """A short text for a value, or its index in the grid."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if callable(value):
        return value.__name__
    if value is None or isinstance(value, (bool, int, float, str)):
        return str(value)
    return str(index)


def _failures(name, rank, folder):
    file, error = folder / f"{rank}.jsonl", folder / "error"
    lines = file.read_text().splitlines() if file.exists() else []
    ended = dict(map(json.loads, lines))
    if name in ended:
        return ended[name]
    return [error.read_text() if error.exists() else "not run"]
