"""Instruction counts: a measure of speed that a busy machine does not change.

valgrind's cachegrind counts them, in processes of their own. Counts of the
same work are the same each time, to the last digit or nearly so.
"""

from __future__ import annotations

import gc
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["Counting", "count", "run_counted"]

Run = Callable[[int], None]
_COUNTED = "robo_orchard_fasthooks counted"  # Begins a line of output.


def count(
    *makes: Callable[[], Run], sizes: tuple[int, int] = (100, 500)
) -> list[float]:
    """Counts the instructions of pieces of work.

    Args:
        makes (Callable[[], Callable[[int], None]]): Functions at the top level
            of one file. In a process that runs the file anew, each makes a
            `run(n)`, which does its work n times.
        sizes (tuple[int, int]): The n of two runs. What counts is their
            difference, which has nothing of how a process starts and ends.

    Returns:
        list[float]: The instructions of each work when it is done once.

    Raises:
        FileNotFoundError: valgrind is not installed.
        RuntimeError: The process failed.
    """
    (file,) = {make.__code__.co_filename for make in makes}
    names = [make.__name__ for make in makes]
    # Not with -m, which imports the package, and torch: the file may not.
    program = f"import runpy; runpy.run_path({__file__!r}, None, '__main__')"
    counts = Counting(
        ["-c", program, *map(str, sizes), file, *names]
    ).results()
    return [counts[name] for name in names]


class Counting:
    """A Python program under cachegrind.

    Args:
        arguments (list[str]): The program and its arguments, as `python` takes
            them. What it runs with `run_counted` is counted.

    Raises:
        FileNotFoundError: valgrind is not installed.
    """

    def __init__(self, arguments: list[str]):
        if shutil.which("valgrind") is None:
            raise FileNotFoundError(
                "valgrind, which counts instructions, is not installed: "
                "apt-get install valgrind"
            )
        self._folder = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [
                *("valgrind", "-q", "--tool=cachegrind", "--cache-sim=no"),
                f"--cachegrind-out-file={self._folder.name}/%p",
                *(sys.executable, *arguments),
            ],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONHASHSEED": "0",
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def results(self) -> dict[str, float]:
        """Waits for the program to end.

        Returns:
            dict[str, float]: The instructions of each work when it is done
                once, by its name; the least of them, if it was run again.

        Raises:
            RuntimeError: The program failed.
        """
        out, err = self._process.communicate()
        with self._folder:
            if self._process.returncode:
                raise RuntimeError(f"what is to be counted failed:\n{err}")
            counts: dict[str, float] = {}
            for line in out.splitlines():
                if not line.startswith(_COUNTED):
                    continue
                _, name, times, small, large = line.split("\t")
                more = self._instructions(large) - self._instructions(small)
                once = more / int(times)
                counts[name] = min(once, counts.get(name, once))
            return counts

    def _instructions(self, process: str) -> int:
        lines = Path(self._folder.name, process).read_text().splitlines()
        (summary,) = (line for line in lines if line.startswith("summary:"))
        return int(summary.removeprefix("summary:"))


def run_counted(name: str, run: Run, sizes: tuple[int, int]) -> None:
    """Runs some work twice, in processes forked from a program of `Counting`.

    A process that starts anew takes cachegrind seconds, with torch 40.

    Args:
        name (str): What the result is called.
        run (Callable[[int], None]): Does the work n times.
        sizes (tuple[int, int]): The n of both.
    """
    processes = [_run_forked(run, size) for size in sizes]
    times = sizes[1] - sizes[0]
    print(_COUNTED, name, times, *processes, sep="\t", flush=True)


def _run_forked(run: Run, size: int) -> int:
    process = os.fork()
    if process == 0:
        status = 1
        try:
            gc.disable()
            run(size)
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(process, 0)[1]:
        sys.exit("a forked process failed")
    return process


if __name__ == "__main__":
    _small, _large, _file, *_names = sys.argv[1:]
    _namespace = runpy.run_path(_file)
    for _name in _names:
        run_counted(_name, _namespace[_name](), (int(_small), int(_large)))
