"""Each rank's program in test_ranks.py: `profiling_ranks.py FOLDER`.

It writes the tables that it got, as JSON; the test says what is right.
"""

import json
import sys
import time
from pathlib import Path

import torch.distributed as dist
from accelerate import Accelerator

from helpers import processes
from helpers.profiling import Clock, cells, step
from robo_orchard_fasthooks import HookContext, HookProfiler, PipelineHooks


def profiled(rank):
    """A profiler, and what runs hooks that take known times, in order."""
    clock, hooks, times = Clock(), PipelineHooks(), []
    spend = HookContext.from_callable("both", lambda _: clock.spend(times[-1]))
    hooks.register_hook("on_step", spend)
    if rank == 1:
        hook = HookContext.from_callable("only 1", before=id)
        hooks.register_hook("on_loop", hook)
    profiler = HookProfiler(hooks, clock=clock)

    def run(*taken):
        for each in taken:
            times.append(each)
            with profiler:
                step(hooks, lambda: step(hooks), "on_loop")

    return profiler, run


def main(folder):
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    found = {}

    def meet(case, profiler, timeout=60):
        try:
            found[case] = cells(profiler.table(accelerator, timeout))[1:]
        except RuntimeError as error:
            found[case] = str(error)
        dist.barrier()

    first, run = profiled(rank)
    run((500, 200)[rank], (300, 100)[rank])
    if rank == 1:
        time.sleep(0.3)  # Rank 0 has to wait for it.
    meet("first", first)
    second, run = profiled(rank)
    run((3000, 1000)[rank])
    began = time.monotonic()
    if rank == 0:
        meet("alone", second, 0.5)
        found["seconds"] = time.monotonic() - began
    else:
        dist.barrier()
    meet("after alone", second)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    processes.end_rank()


if __name__ == "__main__":
    main(*sys.argv[1:])
