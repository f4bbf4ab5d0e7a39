"""Random programs of hooks do what they do upstream."""

import pytest

from helpers.implementations import PROFILED, UPSTREAM
from helpers.programs import Program

SEEDS = range(150)


@pytest.fixture(scope="module")
def expected():
    return [Program(UPSTREAM, seed).run() for seed in SEEDS]


@pytest.mark.also_on("installed", "twins", *PROFILED)
def test_programs_do_what_they_do_upstream(expected, ours):
    for seed in SEEDS:
        assert Program(ours, seed).run() == expected[seed], f"seed {seed}"


@pytest.mark.slow
def test_many_programs_do_what_they_do_upstream(ours, theirs):
    for seed in range(len(SEEDS), 5_000):
        events = Program(ours, seed).run()
        assert events == Program(theirs, seed).run(), f"seed {seed}"
