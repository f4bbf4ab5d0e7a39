"""The registry of the cases, and the failures of the one that is running."""

import itertools
from functools import partial

import torch

# The number of processes of each program.
RANKS = {
    **{"ddp": 2, "fsdp2": 2, "mixed": 2, "fsdp1": 2, "square": 4},
    # The last one makes its process group anew, which others need.
    **{"placements": 2, "random": 2, "renewed": 2},
}
CASES = {program: {} for program in RANKS}
"""By program and name: the function that each rank calls."""
failures = []


def case(program, **grid):
    """Registers a case once for each combination of the grid's values."""

    def register(function):
        for chosen in itertools.product(*map(enumerate, grid.values())):
            labels = [
                f"{key}:{label(index, value)}"
                for key, (index, value) in zip(grid, chosen, strict=True)
            ]
            name = "-".join([function.__name__, *labels])
            while name in CASES[program]:  # Registered with two grids.
                name += "'"
            settings = {
                key: value
                for key, (_, value) in zip(grid, chosen, strict=True)
            }
            CASES[program][name] = partial(function, **settings)
        return function

    return register


def label(index, value):
    """A short text for a value, or its index in the grid."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if callable(value):
        return value.__name__
    if value is None or isinstance(value, (bool, int, float, str)):
        return str(value)
    return str(index)


def check(good, *what):
    """Notes a failure instead of raising.

    A rank that left a case between two collectives would make the others
    wait.
    """
    if not good:
        failures.append(" ".join(map(str, what)))
