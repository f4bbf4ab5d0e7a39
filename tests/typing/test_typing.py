"""What mypy tells a user of this package, and of RoboOrchardLab."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import robo_orchard_fasthooks
import upstream
from robo_orchard_fasthooks import lab, testing

FOLDER = Path(__file__).parent
PROGRAMS = ["good.py", "bad.py", "with_lab.py"]
ERROR = re.compile(r"([^:]+):(\d+): error: .*\[([a-z-]+)\]")
MARK = re.compile(r"# error: \[([a-z-]+)\]$")


def test_good_programs_pass_and_every_mistake_is_found(request):
    result = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file=mypy.ini"),
            # It is kept between runs: mypy has to read all of torch.
            f"--cache-dir={request.config.cache.mkdir('mypy')}",
            *PROGRAMS,
        ],
        cwd=FOLDER,
        env={
            **os.environ,
            "PYTHONPATH": str(
                Path(robo_orchard_fasthooks.__file__).parents[1]
            ),
            "MYPYPATH": str(upstream.FOLDER),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert not result.stderr and "Found " in result.stdout
    found = [
        (match[1], int(match[2]), match[3])
        for line in result.stdout.splitlines()
        if (match := ERROR.fullmatch(line))
    ]
    marked = [
        (program, number, match[1])
        for program in PROGRAMS
        for number, line in enumerate(
            (FOLDER / program).read_text().splitlines(), 1
        )
        if (match := MARK.search(line))
    ]
    assert len(marked) > 100
    assert sorted(found) == sorted(marked)


@pytest.mark.parametrize("program", ["good.py", "bad.py"])
def test_programs_use_every_public_name(program):
    used = {
        ast.unparse(node)
        for node in ast.walk(ast.parse((FOLDER / program).read_text()))
        if isinstance(node, (ast.Name, ast.Attribute))
    }
    public = {
        *robo_orchard_fasthooks.__all__,
        *(f"lab.{name}" for name in lab.__all__),
        *(f"testing.{name}" for name in testing.__all__),
    }
    assert public - used == set()
