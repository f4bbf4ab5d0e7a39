"""The command line: `run` does what python does, with RoboOrchardLab's own."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from robo_orchard_fasthooks import lab

FORKS = Path(__file__).with_name("forks.py")

PROBE = """
import atexit, json, os, pickle, signal, sys
class Local:
    pass
def at_exit():
    print(__name__, sys.argv, type(pickle.loads(pickle.dumps(Local()))))
def fail():
    raise ValueError("of the script")
atexit.register(at_exit)
facts = {
    "argv": sys.argv,
    "path": sys.path,
    "is main": vars(sys.modules["__main__"]) is globals(),
    "builtins": __builtins__.__name__,
    "spec": __spec__ and (__spec__.name, __spec__.origin, __spec__.parent),
    "input": sys.stdin.read(),
    **{n: globals().get(n) for n in ("__name__", "__file__", "__package__")},
}
print(json.dumps(facts))
do = sys.argv[2] if sys.argv[1:2] == ["do"] else ""
exec(do)
"""

POOLS = """
import multiprocessing, sys
class Local:
    pass
def look(value):
    ours = sys.modules.get("robo_orchard_fasthooks.lab")
    right = type(value) is Local
    return right, __name__, ours is not None and ours.status().installed
if __name__ == "__main__":
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(method, *pool.apply(look, [Local()]))
"""

FILES = {
    "probe.py": PROBE,
    "deep/probe.py": PROBE,
    "pkg/__init__.py": "",
    "pkg/__main__.py": "from .mod import Local\n",
    "pkg/mod.py": "from . import other\n" + PROBE,
    "pkg/other.py": "print('other', __name__)",
    "broken/__init__.py": "import no_such_dependency",
    "cookie.py": b"# coding: latin-1\nprint(ascii('\xe9'))\n",
    "alias.py": "import multiprocessing, sys\n"
    "print(sys.modules['__mp_main__'] is sys.modules['__main__'])",
    "init/__init__.py": "import sys; print(sys.argv)",
    "init/__main__.py": "",
    "pools.py": POOLS,
    "pkg/pools.py": POOLS,
    "syntax.py": "def f(:\n",
}

SAME = {
    "options": ["probe.py", "--help", "-m", "run", "--", "-x", "--", "a b"],
    "dashes first": ["probe.py", "--", "a"],
    "link": ["deep/link.py", "a"],
    "package": ["-m", "pkg", "-m", "--help"],
    "module": ["-m", "pkg.mod", "--", "a"],
    "cookie": ["cookie.py"],
    # Where the results of spawned workers find their classes.
    "multiprocessing's alias": ["alias.py"],
    "package that looks at argv": ["-m", "init", "a"],
    "syntax error": ["syntax.py"],
    "unknown module": ["-m", "no_such_module", "a"],
    "module of unknown package": ["-m", "no_such_package.mod"],
    "broken package": ["-m", "broken.mod"],
    **{
        f"do {code}": ["probe.py", "do", code]
        for code in (
            "sys.exit(3)",
            "sys.exit('text')",
            "fail()",
            "raise KeyboardInterrupt",
            "os.kill(os.getpid(), signal.SIGINT)",
            "sys.stdout.write('no end of line'); sys.exit(True)",
        )
    },
    "failure of a module": ["-m", "pkg.mod", "do", "fail()"],
}


@dataclass
class Ended:
    """How a program ended, and what it wrote."""

    status: int
    out: str
    err: str

    def about(self, folder: Path) -> Ended:
        """Of a traceback, what is the script's, and how it ends."""
        lines = self.err.splitlines()
        if any(line.startswith("  File ") for line in lines):
            ours = [line for line in lines if str(folder) in line]
            return replace(self, err="\n".join([*ours, lines[-1]]))
        return self


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("programs").resolve()
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "deep" / "link.py").symlink_to(folder / "probe.py")
    return folder


def by_python(folder: Path, *command: str) -> Ended:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        input="piped",
        capture_output=True,
        text=True,
        timeout=180,
    )
    return Ended(done.returncode, done.stdout, done.stderr).about(folder)


class Forks:
    """Runs commands of robo_orchard_fasthooks, in forks of one process."""

    def __init__(self, folder: Path, streams: Path) -> None:
        self.folder = folder
        self.streams = [streams / name for name in ("in", "out", "err")]
        self.process = subprocess.Popen(
            [sys.executable, FORKS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *args: str) -> Ended:
        for path, text in zip(self.streams, ("piped", "", ""), strict=True):
            path.write_text(text)
        case = {
            "args": args,
            "cwd": str(self.folder),
            "streams": list(map(str, self.streams)),
        }
        print(json.dumps(case), file=self.process.stdin, flush=True)
        status = int(self.process.stdout.readline())
        out, err = (path.read_text() for path in self.streams[1:])
        return Ended(status, out, err).about(self.folder)


@pytest.fixture(scope="module")
def forks(folder, tmp_path_factory) -> Iterator[Forks]:
    forks = Forks(folder, tmp_path_factory.mktemp("streams"))
    with forks.process:  # Closes its input first.
        yield forks


@pytest.mark.parametrize("args", SAME.values(), ids=SAME)
def test_run_does_as_python_does(args, folder, forks):
    assert forks("run", *args) == by_python(folder, *args)


@pytest.mark.parametrize("args", [["probe.py", "a"], ["-m", "pkg"]])
def test_run_keeps_a_safe_path_as_python_does(args, folder):
    run = "-P", "-m", "robo_orchard_fasthooks", "run"
    assert by_python(folder, *run, *args) == by_python(folder, "-P", *args)


@pytest.mark.parametrize("args", [["pools.py"], ["-m", "pkg.pools"]])
def test_forked_workers_are_installed_and_spawned_ones_are_not(
    args, folder, forks
):
    plain, ours = by_python(folder, *args), forks("run", *args)
    assert plain.out == (
        "spawn True __mp_main__ False\nfork True __main__ False\n"
    )
    out = plain.out.replace("__main__ False", "__main__ True")
    assert ours == replace(plain, out=out)


def test_a_script_that_is_not_there_is_an_error_that_names_it(forks):
    ended = forks("run", "missing.py", "a")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == (
        "python -m robo_orchard_fasthooks run: error: cannot open "
        "'missing.py': No such file or directory\n"
    )


def test_info_says_what_a_bug_report_should(forks):
    ended = forks("info")
    assert (ended.status, ended.err) == (0, "")
    with lab.install():
        status = f"{lab.status()}\n"
    assert ended.out.startswith(status)
    gpus = range(torch.cuda.device_count())
    cuda = ", ".join(map(torch.cuda.get_device_name, gpus)) or "no GPU"
    assert ended.out.removeprefix(status).splitlines() == [
        *(
            f"{package} {version(package)}"
            for package in ("robo_orchard_core", "accelerate", "torch")
        ),
        f"CUDA {torch.version.cuda or 'not built in'}: {cuda}",
        f"CPython {sys.version}",
        platform.platform(),
    ]
