"""The commands of this project: `nox -s NAME`, in the environment at hand.

    nox -s build   compile the extension modules after a change of Cython
    nox -s quick   the tests that take less than five minutes
    nox -s tests   all tests
    nox -s lint    ruff, cython-lint, mypy, pyright, stubs against modules
    nox -s gate    instruction counts against their limits
    nox -s docs    the documentation, into build/docs

Everything that continuous integration does is in `.ci/run`, which calls these.
"""

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "quick"]

STUBS = ("_args", "_core", "_dispatch", "_fast_dataclass", "_record")


@nox.session
def build(session: nox.Session) -> None:
    """Compiles the extension modules in place."""
    session.run("python", "setup.py", "-q", "build_ext", "--inplace")


@nox.session
def quick(session: nox.Session) -> None:
    """Runs the tests that are not marked slow, on all cores."""
    session.run(
        *("pytest", "-q", "-n", "auto", "-m", "not slow"), *session.posargs
    )


@nox.session
def tests(session: nox.Session) -> None:
    """Runs all tests, on all cores."""
    session.run("pytest", "-q", "-n", "auto", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Checks style and types."""
    session.run("pre-commit", "run", "--all-files")
    session.run("basedpyright")
    session.run(
        *("python", "-m", "mypy.stubtest"),
        *("--mypy-config-file", "pyproject.toml"),
        *("--allowlist", "tests/typing/stubtest_allowlist.txt"),
        *(f"robo_orchard_fasthooks.{name}" for name in STUBS),
    )


@nox.session
def gate(session: nox.Session) -> None:
    """Counts instructions and compares them with thresholds.toml."""
    session.run("python", "benchmarks/gate.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Builds the documentation; a warning is an error."""
    session.run("sphinx-build", "-q", "-W", "docs", "build/docs")
