"""Times clipping of gradients that fully_shard has sharded, on two ranks.

    torchrun --standalone --nproc-per-node 2 benchmarks/fsdp2.py

GradientClippingHook, RoboOrchardLab 0.4.0's and torch.nn.utils.clip_grad_norm_
clip the same 400 gradients of 64 elements over gloo in turn. Rows of JSON have
the time of rank 0's thread, which does not count its waiting for the other.
"""

from __future__ import annotations

import os
import sys
from time import thread_time_ns

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import clipping
import compare
from clipping import Clip

CASE = clipping.Case("400 sharded gradients", clipping.equal(400, 64))


def main() -> None:
    """Prints the rows on rank 0."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    # Of the shapes of CASE.
    model = torch.nn.Sequential(*(torch.nn.RMSNorm(64) for _ in range(400)))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    model(torch.randn(64)).sum().backward()
    params = list(model.parameters())
    restore = clipping.restoring(params)

    def thread_time(clip: Clip) -> int:
        restore()
        dist.barrier()
        start = thread_time_ns()
        clip()
        return thread_time_ns() - start

    for side, limit in clipping.LIMITS.items():
        ways = clipping.ways(params, limit, CASE)
        samples = compare.in_turn(ways, thread_time, rounds=51)
        if dist.get_rank() == 0:
            work = f"clip {CASE.title}, {side} threshold"
            compare.print_rows(compare.rows(work, samples))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    # torch's threads have been seen to abort a rank at interpreter exit.
    os._exit(0)
