"""What mypy tells a user of this package, and of RoboOrchardLab."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType
from typing import get_origin, get_type_hints

import pytest
from pydantic import validate_call
from typing_extensions import is_typeddict

import robo_orchard_fasthooks
import upstream
from robo_orchard_fasthooks import (
    clip,
    grad_clip,
    lab,
    mixin,
    optimizer,
    profiler,
    testing,
)

FOLDER = Path(__file__).parent
PROGRAMS = ["good.py", "bad.py", "with_lab.py"]
ERROR = re.compile(r"([^:]+):(\d+): error: .*\[([a-z-]+)\]")
MARK = re.compile(r"# error: \[([a-z-]+)\]$")


def test_good_programs_pass_and_every_mistake_is_found(request, monkeypatch):
    sources = Path(robo_orchard_fasthooks.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", str(sources))
    monkeypatch.setenv("MYPYPATH", str(upstream.FOLDER))
    result = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file=mypy.ini"),
            # It is kept between runs: mypy has to read all of torch.
            f"--cache-dir={request.config.cache.mkdir('mypy')}",
            *PROGRAMS,
        ],
        cwd=FOLDER,
        capture_output=True,
        text=True,
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
    assert len(marked) > 90
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


MODULES = [
    robo_orchard_fasthooks,
    *(clip, grad_clip, lab, mixin, optimizer, profiler, testing),
]


def public(module):
    """The classes and functions of a module, and their methods."""
    for name in module.__all__:
        found = getattr(module, name)
        if isinstance(found, FunctionType):
            yield found
        elif isinstance(found, type) and get_origin(found) is None:
            yield found
            for base in found.__mro__:
                if base.__module__.startswith("robo_orchard_fasthooks"):
                    for member in vars(base).values():
                        member = getattr(member, "__func__", member)
                        member = getattr(member, "fget", member)
                        if isinstance(member, FunctionType):
                            yield member


@pytest.mark.parametrize("module", MODULES, ids=lambda each: each.__name__)
def test_annotations_of_public_names_resolve(module):
    checked = list(public(module))
    assert checked
    for each in checked:
        get_type_hints(each)
        if not is_typeddict(each):
            inspect.signature(each, eval_str=True)
        if isinstance(each, FunctionType):
            call = each
        else:

            def call(given):
                return given

            call.__annotations__ = {"given": each}
        validate_call(call, config={"arbitrary_types_allowed": True})


def test_pydantic_checks_calls_of_from_hooks():
    from_hooks = validate_call(
        mixin.PipelineHooks.from_hooks,
        config={"arbitrary_types_allowed": True},
    )
    hooks = optimizer.OptimizerHook()
    both = [hooks, optimizer.OptimizerHookConfig()]
    for given, count in ((hooks, 1), (both, 2), (None, 0)):
        assert len(from_hooks(given).hooks["on_step"]) == count
    with pytest.raises(ValueError, match="PipelineHooks|_HooksLike"):
        from_hooks(1)
