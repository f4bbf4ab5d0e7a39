"""Runs pytest on several ranks, over gloo.

    cd tests
    python -m distributed.ranks 2 distributed/fsdp1.py -k value

The number of ranks, and what pytest is given on each of them.
"""

import logging
import os
import signal
import sys
import tempfile
from datetime import timedelta

import pytest
import torch.distributed as dist
from torch import multiprocessing
from torch.distributed import fsdp  # noqa: F401  Once, before the forks.

import robo_orchard_fasthooks  # noqa: F401
from helpers import processes

pytest.register_assert_rewrite("distributed.checks", "distributed.placed")
# Short, so that a rank that waits in vain reports the test.
TIMEOUT = timedelta(seconds=20)
OPTIONS = [
    *("-q", "-x", "--disable-plugin-autoload", "-p", "distributed.ranks"),
    *("-p", "no:cacheprovider"),
    *("-W", "ignore"),  # FSDP warns that NO_SHARD is deprecated.
]


@pytest.fixture(autouse=True)
def barrier():
    """No rank begins a test before all have ended the last one."""
    yield
    dist.monitored_barrier(timeout=TIMEOUT)


def run(rank, ranks, store, arguments):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.update(WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=ranks,
        timeout=TIMEOUT,
    )
    if status := pytest.main([*OPTIONS, *arguments]):
        sys.exit(status)
    processes.end_rank()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # Ends the ranks.
    ranks, *arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        given = int(ranks), f"{folder}/store", arguments
        multiprocessing.start_processes(
            run, given, int(ranks), daemon=True, start_method="fork"
        )
