"""Each rank's program in test_report.py: `profiling_ranks.py FOLDER`.

It writes what each case found, as JSON; the test says what is right.
"""

import json
import sys
import time
from pathlib import Path

import torch.distributed as dist
from accelerate import Accelerator

from helpers import processes
from helpers.profiling import Clock
from robo_orchard_fasthooks import HookContext, PipelineHooks
from robo_orchard_fasthooks.profiler import HookProfiler

TIMES = {"rising": (10, 20), "falling": (400, 300)}


def profiled(rank, factor):
    """A profiler, and what runs hooks that take TIMES, times a factor."""
    clock, hooks = Clock(), PipelineHooks()
    factors = []
    for name, times in TIMES.items():
        hook = HookContext.from_callable(
            name,
            after=lambda _, took=times[rank]: clock.spend(took * factors[-1]),
        )
        hooks.register_hook("on_step", hook)
    if rank == 1:
        hooks.register_hook(
            "on_loop", HookContext.from_callable("only 1", before=id)
        )
    profiler = HookProfiler(hooks, clock=clock)

    def run(factor):
        factors.append(factor)
        with profiler:
            with hooks.begin("on_loop", None):
                with hooks.begin("on_step", None):
                    pass

    run(factor)
    return profiler, run


def rows(table):
    """The cells of a table of ranks, by hook."""
    lines = [line.split("  ") for line in table.splitlines()[1:]]
    cells = [[cell.strip() for cell in line if cell] for line in lines]
    return {hook: rest for hook, *rest in cells}


def outcome(call):
    began = time.monotonic()
    try:
        return rows(call())
    except RuntimeError as error:
        return {"error": str(error), "after": time.monotonic() - began}


def main(folder):
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    found = {}

    def meet(case, profiler):
        dist.barrier()
        if rank == 1:
            time.sleep(0.3)  # Rank 0 has to wait for it.
        found[case] = outcome(lambda: profiler.table(reduce=accelerator))

    first, run_first = profiled(rank, 1)
    meet("first", first)
    run_first(7)
    first.reset()
    run_first(5)
    run_first(15)
    meet("again", first)
    second, _ = profiled(rank, 1000)
    meet("another profiler", second)
    dist.barrier()
    third, _ = profiled(rank, 1)
    if rank == 0:
        found["alone"] = outcome(lambda: third.table(accelerator, 0.5))
    dist.barrier()
    found["after alone"] = outcome(lambda: third.table(accelerator, 2))
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    processes.end_rank()


if __name__ == "__main__":
    main(*sys.argv[1:])
