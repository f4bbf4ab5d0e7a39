"""The commands of this project, which CONTRIBUTING.md lists: `nox -s NAME`.

Unless it says otherwise, a session runs in the environment at hand.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "quick"]

STUBS = (
    *("_args", "_core", "_dispatch", "_fast_dataclass", "_record"),
    "_snapshot",
)
PYTEST = ("pytest", "-q", "-n", "auto")


@nox.session
def build(session: nox.Session) -> None:
    """Compiles the extension modules in place."""
    session.run("python", "setup.py", "-q", "build_ext", "--inplace")


@nox.session
def quick(session: nox.Session) -> None:
    """Runs the tests that are not marked slow."""
    session.run(*PYTEST, "-m", "not slow", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Runs the tests that are marked slow."""
    session.run(*PYTEST, "-m", "slow", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Runs all tests that need nothing else."""
    session.run(*PYTEST, *session.posargs)


@nox.session
def kernel(session: nox.Session) -> None:
    """Runs the tests of the Triton kernel, interpreted and compiled."""
    # Not an extra: torch's CUDA builds bring Triton, and it takes 286 MB.
    folder = Path("build/triton").absolute()
    install = ("python", "-m", "pip", "install", "-q", "--no-deps")
    session.run(*install, "--target", str(folder), "triton==3.9.0")
    session.run(*PYTEST, "tests/kernel", env={"PYTHONPATH": str(folder)})


@nox.session
def lint(session: nox.Session) -> None:
    """Checks style and types, and that nothing generated is tracked."""
    generated = re.compile(r"\.(c|so|o|pyd)$|^build/|egg-info")
    tracked = session.run("git", "ls-files", silent=True, log=False).split()
    if found := [file for file in tracked if generated.search(file)]:
        session.error(f"generated, and tracked: {', '.join(found)}")
    session.run("pre-commit", "run", "--all-files")
    session.run("basedpyright")
    session.run(
        *("python", "-m", "mypy.stubtest"),
        *("--mypy-config-file", "pyproject.toml"),
        *("--allowlist", "tests/typing/stubtest_allowlist.txt"),
        *(f"robo_orchard_fasthooks.{name}" for name in STUBS),
    )


@nox.session
def docs(session: nox.Session) -> None:
    """Builds the documentation; a warning is an error."""
    session.run("sphinx-build", "-q", "-W", "docs", "build/docs")


@nox.session
def gate(session: nox.Session) -> None:
    """Counts instructions and compares them with thresholds.toml."""
    session.run("python", "benchmarks/gate.py", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Runs the benchmarks once: what they measure is for a quiet machine."""
    page = "tests/project/test_pages.py::test_trainers"
    session.run("pytest", "-q", "tests/benchmarks/test_workloads.py", page)
    session.run("pytest", "-q", "benchmarks", "--benchmark-disable")
    session.run("python", "benchmarks/report.py", "--rounds=1", "--dry-run")


@nox.session
def readme(session: nox.Session) -> None:
    """Runs the Nth block of shell commands in the README: `-- N`."""
    text = Path("README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    block = blocks[int(session.posargs[0]) - 1]
    session.run("bash", "-euo", "pipefail", "-c", block)


def interpreters() -> dict[str, str]:
    """The supported CPythons there are, on the path or of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = [
        *(shutil.which(f"python3.{minor}") for minor in range(10, 14)),
        *sorted(pyenv.glob("versions/3.1[0-3].*/bin/python")),
    ]
    # What is on the path may be a script that finds the program, or fails to.
    ask = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
    found: dict[str, str] = {}
    for candidate in filter(None, candidates):
        told = subprocess.run(
            [candidate, "-c", ask], capture_output=True, text=True
        )
        if told.returncode == 0:
            version, program = told.stdout.strip().split(" ", 1)
            found.setdefault(version, program)
    return found


@nox.session(venv_backend="virtualenv")
def wheels(session: nox.Session) -> None:
    """Builds an sdist and wheels of it, and runs each wheel.

    In an environment of its own, for each CPython there is. Leaves dist, and
    build/packages-VERSION with what the compiled modules need.
    """
    session.install("-q", "build")
    session.run(
        *("python", "-m", "build", "--sdist", "--outdir", "dist"), silent=True
    )
    (sdist,) = Path("dist").glob("*.tar.gz")
    for version, python in interpreters().items():
        packages = f"build/packages-{version}"
        pip = (python, "-m", "pip")
        install = (*pip, "install", "-q", "--no-deps", "--target", packages)
        needed = ("robo_orchard_core==0.4.0", "ordered-set")
        for command in (
            (*pip, "wheel", "-q", "--no-deps", "-w", "dist", str(sdist)),
            (*install, *needed, "typing_extensions"),
        ):
            session.run(*command, external=True)
        (wheel,) = Path("dist").glob(f"*-cp{version.replace('.', '')}-*.whl")
        session.run(
            *(*install, "--no-index", str(wheel)),
            # A wheel needs no compiler, which is not on this path.
            env={"PATH": "/nonexistent"},
            external=True,
        )
        session.run(
            *(python, ".ci/smoke.py"),
            env={"PYTHONPATH": packages},
            external=True,
        )


@nox.session(venv_backend="virtualenv")
def downstream(session: nox.Session) -> None:
    """Accelerates an installed RoboOrchardLab with a wheel from `wheels`.

    In an environment of its own, with the versions that RoboOrchardLab needs.
    """
    session.install(
        *("-q", "--no-deps", "-r", "tests/downstream/requirements.txt"),
        env={"PIP_CONSTRAINT": ""},
    )
    (wheel,) = Path("dist").glob("*-cp311-*.whl")
    session.install("-q", "--no-deps", str(wheel))
    session.run("python", "-m", "robo_orchard_fasthooks", "info")
    session.run("python", "-m", "pytest", "-q", "tests/downstream")


@nox.session
def packages(session: nox.Session) -> None:
    """Checks wheels and workflows as their services do: `-- DIST`."""
    dist = Path(session.posargs[0])
    wheels = [str(wheel) for wheel in dist.glob("*.whl")]
    for wheel in wheels:
        shown = session.run("auditwheel", "show", wheel, silent=True)
        if "manylinux_2_17" not in shown:
            session.error(shown)
    session.run("twine", "check", "--strict", *map(str, dist.iterdir()))
    session.run("check-wheel-contents", *wheels)
    session.run(
        *("check-jsonschema", "--builtin-schema", "vendor.github-workflows"),
        *map(str, Path(".github/workflows").iterdir()),
    )


@nox.session
def gate_of_wheel(session: nox.Session) -> None:
    """Compares a wheel's counts with those that `gate` left: `-- PACKAGES`."""
    session.run(
        *("python", "benchmarks/gate.py", "dispatch"),
        *("--json", "build/gate-of-wheel.json"),
        env={"PYTHONPATH": session.posargs[0]},
    )
    ours, wheels = (
        next(
            row["ours"]
            for row in json.loads(Path("build", name).read_text())
            if row["name"] == "begin, 0 hooks (from_callable)"
        )
        for name in ("gate.json", "gate-of-wheel.json")
    )
    session.log(f"an empty scope: {ours:.0f} instructions, {wheels:.0f}")
    if not 0 < wheels <= 1.005 * ours:
        session.error("an installed wheel takes more instructions")
