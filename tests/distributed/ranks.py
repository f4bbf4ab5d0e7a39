"""Runs the cases of a test file on several ranks, over gloo.

A case is a function that every rank calls. The cases of a file run in one
program, `python -m distributed.ranks MODULE FOLDER`, in whichever process of
pytest needs it first; each is a test. FOLDER/cases.json names them, and what
failed in each of them is written to FOLDER/RANK.jsonl.
"""

import itertools
import json
import logging
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch.distributed as dist

from helpers import processes

# Short, so that a rank that waits in vain reports the case.
TIMEOUT = timedelta(seconds=20)
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
                labels = itertools.starmap(label, chosen)
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
            items = request.session.items
            selected = [
                item.callspec.params["name"]
                for item in items
                if item.function is request.function
            ]
            folder = processes.once(
                shared / self.module, partial(self.run_all, selected)
            )
            for rank in range(self.ranks):
                lines = (folder / f"{rank}.jsonl").read_text().splitlines()
                failed = dict(map(json.loads, lines)).get(name, "not run")
                error = (folder / "error").read_text() if failed else ""
                assert not failed, (rank, failed, error)

        return test_on_ranks

    def run_all(self, selected, folder):
        (folder / "cases.json").write_text(json.dumps(selected))
        for name in ("error", *(f"{n}.jsonl" for n in range(self.ranks))):
            (folder / name).touch()
        program = (sys.executable, "-m", "distributed.ranks", self.module)
        try:
            processes.run([*program, str(folder)], timeout=300)
        except AssertionError as error:
            (folder / "error").write_text(str(error))


def label(index, value):
    """A short text that is the same in all processes."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return str(value)
    return getattr(value, "__name__", str(index))


def run(cases, folder, rank):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    size = str(cases.ranks)
    os.environ.update(WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=cases.ranks,
        timeout=TIMEOUT,
    )
    names = json.loads(Path(folder, "cases.json").read_text())
    with Path(folder, f"{rank}.jsonl").open("w") as results:
        for name in names:
            failures.clear()
            try:
                cases.functions[name]()
            except Exception:
                failures.append(traceback.format_exc())
            print(json.dumps([name, failures]), file=results, flush=True)
            dist.monitored_barrier(timeout=TIMEOUT)
    processes.end_rank()


def main(module, folder):
    warnings.simplefilter("ignore")  # FSDP warns that NO_SHARD is deprecated.
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    cases = import_module(f"distributed.{module}").CASES
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # Ends the ranks.
    # Forked, so that torch is imported once.
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=run, args=(cases, folder, rank), daemon=True)
        for rank in range(cases.ranks)
    ]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    sys.exit(any(each.exitcode for each in ranks))


if __name__ == "__main__":
    # Not this module's own `failures`, but those that the cases append to.
    import_module("distributed.ranks").main(*sys.argv[1:])
