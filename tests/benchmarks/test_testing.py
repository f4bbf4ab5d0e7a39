"""Counts are the same each time, and follow the work."""

from functools import partial

import pytest

from helpers.loops import failing, fifty, ten, thirty
from robo_orchard_fasthooks.testing import Counting, count


def test_counts_follow_the_work():
    few, more, most, again = count(ten, thirty, fifty, thirty)
    assert again == more
    assert most - more == pytest.approx(more - few, rel=0.01)


def test_what_fails_is_told():
    with pytest.raises(RuntimeError, match="not today"):
        Counting(["-c", "raise ValueError('not today')"]).results()


def test_what_fails_in_the_counted_work_is_told():
    with pytest.raises(RuntimeError, match="ZeroDivisionError: not today"):
        count(failing)


def test_without_valgrind_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="apt-get install valgrind"):
        Counting([])


def test_functions_of_several_files_or_none_are_refused():
    with pytest.raises(ValueError, match=r"one file, not of .*loops\.py"):
        count(ten, test_counts_follow_the_work)
    with pytest.raises(ValueError, match="one file, not of none"):
        count()


@pytest.mark.parametrize(
    "make",
    [lambda: ten(), partial(ten), Counting.results],
    ids=["lambda", "partial", "method"],
)
def test_what_the_file_does_not_have_by_name_is_refused(make):
    with pytest.raises(ValueError, match="at the top level of a file, not "):
        count(make)


@pytest.mark.parametrize("sizes", [(5, 5), (500, 100), (-1, 5)])
def test_sizes_that_do_not_increase_are_refused(sizes):
    with pytest.raises(ValueError, match="two sizes that increase, not "):
        count(ten, sizes=sizes)
