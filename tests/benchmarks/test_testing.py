"""Counts are the same each time, and follow the work."""

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
