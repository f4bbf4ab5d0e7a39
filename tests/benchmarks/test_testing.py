"""Counts are the same each time, and follow the work."""

import sys
from functools import partial
from importlib import import_module

import pytest

from helpers import processes
from helpers.loops import failing, fifty, ten, thirty
from robo_orchard_fasthooks import testing
from robo_orchard_fasthooks.testing import Counting, count


def test_counts_follow_the_work():
    few, more, most, again = count(ten, thirty, fifty, thirty)
    assert again == more
    assert most - more == pytest.approx(more - few, rel=0.01)


def test_what_fails_is_told():
    with pytest.raises(RuntimeError, match="not today"):
        Counting(["-c", "raise ValueError('not today')"]).results()
    with pytest.raises(RuntimeError, match="ZeroDivisionError: not today"):
        count(failing)


def test_without_valgrind_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="apt-get install valgrind"):
        Counting([])


@pytest.mark.parametrize(
    ("makes", "settings", "message"),
    [
        ([ten, processes.run], {}, r"one file, not of .*loops\.py"),
        ([], {}, "one file, not of none"),
        ([lambda: ten()], {}, "at the top level of a file, not "),
        ([partial(ten)], {}, "at the top level of a file, not "),
        ([Counting.results], {}, "at the top level of a file, not "),
        ([ten], {"sizes": (5, 5)}, "two sizes that increase, not "),
        ([ten], {"sizes": (500, 100)}, "two sizes that increase, not "),
        ([ten], {"sizes": (-1, 5)}, "two sizes that increase, not "),
    ],
)
def test_what_cannot_be_counted_is_refused(makes, settings, message):
    with pytest.raises(ValueError, match=message):
        count(*makes, **settings)


PROGRAM = """
import pickle

if __package__:
    from . import sibling
else:
    import sibling


class Held:
    pass


def make():
    pickle.loads(pickle.dumps([Held(), sibling.Held()]))
    return lambda n: None


def main():
    from robo_orchard_fasthooks.testing import count

    count(make)


if __name__ == "__main__":
    main()
"""


@pytest.fixture
def program(tmp_path):
    """A package whose program has relative imports, and pickles."""
    folder = tmp_path / "counted"
    folder.mkdir()
    (folder / "__init__.py").write_text("from . import program")
    (folder / "sibling.py").write_text("class Held: pass")
    (folder / "program.py").write_text(PROGRAM)
    return folder / "program.py"


def test_the_file_has_its_name(program, monkeypatch):
    monkeypatch.syspath_prepend(program.parents[1])
    count(import_module("counted.program").make)


@pytest.mark.parametrize(
    "arguments",
    [["-W", "ignore", "-m", "counted.program"], ["counted/program.py"]],
    ids=["module", "script"],
)
def test_the_program_has_a_name(program, arguments):
    processes.run([sys.executable, *arguments], program.parents[1])


def test_a_file_that_is_not_on_the_path(program, monkeypatch):
    """pytest --import-mode=importlib makes up names of packages."""
    monkeypatch.setitem(sys.modules, "tests.of.sibling", None)
    sibling = program.with_name("without suffix")
    sibling.write_text("class Held: pass")
    module = testing._imported("tests.of.sibling", str(sibling))
    assert sys.modules[module.Held.__module__] is module
