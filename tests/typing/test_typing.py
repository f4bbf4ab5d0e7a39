"""What mypy tells a user of this package, and of RoboOrchardLab."""

import ast
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import robo_orchard_fasthooks
import upstream
from robo_orchard_fasthooks import lab, testing

FOLDER = Path(__file__).parent
PACKAGE = Path(robo_orchard_fasthooks.__file__).parent
ERROR = re.compile(
    r"^(?P<file>[^:]+):(?P<line>\d+): error: .*\[(?P<code>[a-z-]+)\]$"
)
MARK = re.compile(r"# error: \[([a-z-]+)\]$")


def errors_of(programs, cache, *options, **environment):
    """The errors that mypy reports, by file and line."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict"),
            "--config-file=",  # Not this repository's.
            f"--cache-dir={cache}",
            # accelerate has no types.
            "--disable-error-code=import-untyped",
            *options,
            *programs,
        ],
        cwd=FOLDER,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not result.stderr, result.stderr
    found = {program: defaultdict(list) for program in programs}
    *lines, summary = result.stdout.splitlines()
    assert re.match("Success: |Found ", summary), result.stdout
    for line in lines:
        if match := ERROR.match(line):
            found[match["file"]][int(match["line"])].append(match["code"])
        else:
            assert ": note: " in line, line
    return {program: dict(errors) for program, errors in found.items()}


def marked_in(program):
    """The errors that the comments of a program announce, by line."""
    lines = (FOLDER / program).read_text().splitlines()
    return {
        number: [match[1]]
        for number, line in enumerate(lines, 1)
        if (match := MARK.search(line))
    }


def test_a_good_program_passes_and_every_mistake_is_found(request):
    # The cache is kept between runs: mypy has to read all of torch. One test
    # for both programs, so that pytest-xdist does not run mypy twice on it.
    cache = request.config.cache.mkdir("mypy")
    found = errors_of(["good.py", "bad.py"], cache)
    marked = marked_in("bad.py")
    assert found["good.py"] == {}
    assert len(marked) > 100
    assert found["bad.py"] == marked


@pytest.mark.parametrize("program", ["good.py", "bad.py"])
def test_programs_use_every_public_name(program):
    tree = ast.parse((FOLDER / program).read_text())
    used = {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name)
    } | {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    public = {
        *robo_orchard_fasthooks.__all__,
        *(f"lab.{name}" for name in lab.__all__),
        *(f"testing.{name}" for name in testing.__all__),
    }
    assert public - used == set()


def test_hooks_of_robo_orchard_lab_are_accepted(request):
    found = errors_of(
        ["with_lab.py"],
        request.config.cache.mkdir("mypy_with_lab"),
        "--follow-imports=silent",
        "--follow-untyped-imports",
        "--disable-error-code=import-not-found",  # Of what the Lab imports.
        MYPYPATH=str(upstream.FOLDER),
    )
    assert found["with_lab.py"] == marked_in("with_lab.py")
