"""Runs the cases of a test file: `python -m distributed MODULE FOLDER`.

FOLDER/cases.json names them. What failed in each of them is written to
FOLDER/RANK.jsonl.
"""

import json
import logging
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import torch.distributed as dist

from distributed.ranks import failures
from helpers import processes

# Short, so that a rank that waits in vain reports the case.
TIMEOUT = timedelta(seconds=20)


def run(cases, folder, rank):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    size = str(cases.ranks)
    os.environ.update(WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=cases.ranks,
        timeout=TIMEOUT,
    )
    names = json.loads(Path(folder, "cases.json").read_text())
    with Path(folder, f"{rank}.jsonl").open("w") as results:
        for name in names:
            failures.clear()
            try:
                cases.functions[name]()
            except Exception:
                failures.append(traceback.format_exc())
            print(json.dumps([name, failures]), file=results, flush=True)
            dist.monitored_barrier(timeout=TIMEOUT)
    processes.end_rank()


def main(module, folder):
    warnings.simplefilter("ignore")  # FSDP warns that NO_SHARD is deprecated.
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    cases = import_module(f"distributed.{module}").CASES
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # Ends the ranks.
    # Forked, so that torch is imported once.
    ranks = [
        multiprocessing.get_context("fork").Process(
            target=run, args=(cases, folder, rank), daemon=True
        )
        for rank in range(cases.ranks)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    sys.exit(any(rank.exitcode for rank in ranks))


if __name__ == "__main__":
    main(*sys.argv[1:])
