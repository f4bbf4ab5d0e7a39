"""Instruction counts, a measure of speed for tests on busy machines.

Two counts of the same work by valgrind's cachegrind are nearly equal.
"""

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

__all__ = ["count"]

Run = Callable[[int], None]
_COUNTED = "robo_orchard_fasthooks counted"  # Starts a line with a result.


def count(
    *makes: Callable[[], Run], sizes: tuple[int, int] = (100, 500)
) -> list[float]:
    """Counts the instructions that each of several pieces of work takes.

    Args:
        *makes (Callable[[], Callable[[int], None]]): Functions at the top
            level of one file. In a new process, which imports the file by its
            module's name (that of a script is `__mp_main__`), each returns a
            `run(n)` that does its work n times.
        sizes (tuple[int, int]): The n of two runs: by the difference of their
            counts, starting and ending a process does not count.

    Returns:
        list[float]: The number of instructions for doing each work once.

    Raises:
        ValueError: The functions are not at the top level of one file, or
            the sizes do not increase.
        FileNotFoundError: valgrind is not installed.
        RuntimeError: The process failed.
    """
    for make in makes:
        name = getattr(make, "__qualname__", "")
        if not hasattr(make, "__code__") or not name.isidentifier():
            raise ValueError(
                f"count needs functions at the top level of a file, not {make}"
            )
    files = {make.__code__.co_filename for make in makes}
    if len(files) != 1:
        raise ValueError(
            "count needs functions of one file, not of "
            + (", ".join(sorted(files)) or "none")
        )
    if not 0 <= sizes[0] < sizes[1]:
        raise ValueError(f"count needs two sizes that increase, not {sizes}")
    (file,) = files
    module = makes[0].__globals__["__name__"]
    if module == "__main__":  # What `python -m` runs has a name of its own.
        spec = sys.modules[module].__spec__
        module = spec.name if spec else "__mp_main__"
    names = [make.__name__ for make in makes]
    # Not with -m, which would import torch; the file may not need it.
    program = f"import runpy; runpy.run_path({__file__!r}, None, '__main__')"
    arguments = ["-c", program, *map(str, sizes), module, file, *names]
    counts = Counting(arguments).results()
    return [counts[name] for name in names]


class Counting:
    """Runs `python` under cachegrind, whose program calls `run_counted`."""

    def __init__(self, arguments: list[str]):
        if shutil.which("valgrind") is None:
            raise FileNotFoundError(
                "valgrind, which counts instructions, is not installed: "
                "install it, for example with apt-get install valgrind"
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
        """Returns the instructions by name, the least of several counts."""
        out, err = self._process.communicate()
        with self._folder:
            if self._process.returncode:
                raise RuntimeError(f"the counted program failed:\n{err}")
            counts: dict[str, float] = {}
            for line in out.splitlines():
                if line.startswith(_COUNTED):
                    _, name, times, *runs = line.split("\t")
                    small, large = map(self._instructions, runs)
                    once = (large - small) / int(times)
                    counts[name] = min(once, counts.get(name, once))
            return counts

    def _instructions(self, process: str) -> int:
        lines = Path(self._folder.name, process).read_text().splitlines()
        (summary,) = (line for line in lines if line.startswith("summary:"))
        return int(summary.removeprefix("summary:"))


def run_counted(name: str, run: Run, sizes: tuple[int, int]) -> None:
    """Counts work, in two forks of the program that a `Counting` runs.

    Starting a new process takes seconds under cachegrind, and 40 seconds if it
    imports torch.
    """
    processes = [_run_forked(run, size) for size in sizes]
    times = sizes[1] - sizes[0]
    # On a line of its own: the file may have begun one.
    print(f"\n{_COUNTED}", name, times, *processes, sep="\t", flush=True)


def _run_forked(run: Run, size: int) -> int:
    process = os.fork()
    if process == 0:
        try:
            gc.disable()
            run(size)
            os._exit(0)
        except BaseException:
            traceback.print_exc()  # os._exit would discard it.
        finally:
            os._exit(1)
    if os.waitpid(process, 0)[1]:
        sys.exit("a forked process failed")
    return process


def _imported(name: str, file: str) -> ModuleType:
    """Imports a file by the name of its module, wherever the file is."""
    try:
        module = import_module(name)
        found = getattr(module, "__file__", None)
        if found and os.path.samefile(found, file):
            return module
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise
    # A script, or what pytest has imported without changing sys.path.
    loader = SourceFileLoader(name, file)  # Whatever the file's suffix.
    spec = spec_from_loader(name, loader)
    assert spec is not None
    module = sys.modules[name] = module_from_spec(spec)
    loader.exec_module(module)
    return module


if __name__ == "__main__":
    _small, _large, _module, _file, *_names = sys.argv[1:]
    _makes = vars(_imported(_module, _file))
    for _name in _names:
        run_counted(_name, _makes[_name](), (int(_small), int(_large)))
