"""Each rank's program: `torchrun -m helpers.ranks PROGRAM FOLDER`.

It runs the cases that FOLDER/cases.json names, and writes what failed in each
of them to FOLDER/RANK.jsonl.
"""

import json
import logging
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from helpers import processes
from helpers.ranks import CASES, RANKS
from helpers.ranks.cases import failures


def meet():
    """Waits for the other ranks; raises if one of them does not arrive."""
    dist.monitored_barrier(timeout=timedelta(seconds=20))


def main(program, folder):
    warnings.simplefilter("ignore")  # FSDP warns that NO_SHARD is deprecated.
    # Short, so that a rank that waits in vain reports the case.
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    assert dist.get_world_size() == RANKS[program]
    names = json.loads(Path(folder, "cases.json").read_text())
    with Path(folder, f"{dist.get_rank()}.jsonl").open("w") as results:
        for name in names:
            failures.clear()
            try:
                CASES[program][name]()
            except Exception:
                failures.append(traceback.format_exc())
            print(json.dumps([name, failures]), file=results, flush=True)
            meet()
    processes.end_rank()


if __name__ == "__main__":
    main(*sys.argv[1:])
