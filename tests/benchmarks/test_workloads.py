"""What the benchmarks compare does the same work."""

from itertools import count

import pytest

import peers
import workloads
from robo_orchard_fasthooks import lab

REPEATS = 3


@pytest.fixture
def record(log, monkeypatch):
    """Makes a run whose callbacks log their numbers; returns what it logs."""

    def run(make, *arguments):
        numbers = count()

        def callbacks(count, signature="args"):
            source = f"lambda {signature}: log.append({{}})"
            sources = [source.format(next(numbers)) for _ in range(count)]
            return [eval(each, {"log": log}) for each in sources]

        monkeypatch.setattr(peers, "_callbacks", callbacks)
        monkeypatch.setattr(workloads, "_callbacks", callbacks)
        repeat = make(*arguments)
        log.clear()
        repeat(REPEATS)
        once = log[: len(log) // REPEATS]
        assert log == once * REPEATS
        called = [entry for entry in once if isinstance(entry, int)]
        assert sorted(called) == [*range(len(called))]  # Each of them once.
        return once

    return run


# Their imports warn.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make",
    [*peers.PEERS.values(), workloads.begin_in_loops],
    ids=[*peers.PEERS, "floor"],
)
def test_others_call_each_callback_once_in_order(make, record):
    if make is not workloads.begin_in_loops:
        pytest.importorskip(make.__name__.removeprefix("with_"))
    assert record(make, 4) == [*range(8)]


def logging_args(library, log):
    """Has the arguments of a library log how they are built and copied."""

    class Args(library.args):
        def copy_with_updates(self, **updates):
            log.append(("copied", sorted(updates)))
            return super().copy_with_updates(**updates)

    def build(*args, **fields):
        log.append(("built", len(args), sorted(fields)))
        return Args(*args, **fields)

    return workloads.Library(library.name, library.hooks, build)


@pytest.mark.parametrize(
    "makes",
    [
        (workloads.upstream, workloads.ours, workloads.installed),
        (workloads.upstream_05, workloads.installed_05),
    ],
    ids=["0.4", "0.5"],
)
def test_libraries_do_the_same(makes, record, log):
    libraries = [logging_args(make(), log) for make in makes]
    works = workloads.DISPATCH if len(makes) == 3 else [workloads.LAB_05_STEP]
    for work in works:
        logs = [record(work.make, library) for library in libraries]
        assert all(each == logs[0] for each in logs), work.name
    lab.uninstall()
