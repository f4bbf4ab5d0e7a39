"""Times clipping of gradients that fully_shard has sharded, on two ranks.

    torchrun --standalone --nproc-per-node 2 benchmarks/clipping_fsdp2.py

GradientClippingHook against RoboOrchardLab 0.4.0's and clip_grad_norm_ against
torch's, on the same gradients: 400 parameters of 64 elements over gloo, one
thread per rank. The sides run in turn. Timed is the thread of rank 0, which
does not count its waiting for the other one. Prints the middle one of three
ratios of medians, and exits with 1 if one is below its limit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import thread_time_ns

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from clipping import LIBRARIES, hook_of_config
from robo_orchard_fasthooks import clip_grad_norm_

ROUNDS = 25

Clips = list[Callable[[], object]]
"""Upstream's or torch's way to clip, and that of this package."""


class Model(torch.nn.Module):
    """Parameters of equal size."""

    def __init__(self, count: int, size: int):
        super().__init__()
        self.weights = torch.nn.ParameterList(
            torch.nn.Parameter(torch.randn(size)) for _ in range(count)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """A sum that gives each of them a gradient."""
        return sum((inputs * weight).sum() for weight in self.weights)


def main() -> int:
    """Prints the table on rank 0; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args()
    dist.init_process_group("gloo")
    if dist.get_world_size() != 2:
        sys.exit("run this with torchrun --nproc-per-node 2")
    torch.set_num_threads(1)
    model = Model(400, 64)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    model(torch.randn(64)).backward()
    params = list(model.parameters())
    grads = [param.grad.to_local() for param in params]
    saved = [grad.clone() for grad in grads]
    optimizer = torch.optim.SGD(params, lr=0.1)
    accelerator = Accelerator(cpu=True)
    short = False
    rows = []
    for side, max_norm in (("below", 1e12), ("above", 1e-3)):
        hooks: Clips = [
            hook_of_config(library, accelerator, optimizer, max_norm=max_norm)
            for library in LIBRARIES.values()
        ]
        functions: Clips = [
            partial(function, params, max_norm)
            for function in (torch.nn.utils.clip_grad_norm_, clip_grad_norm_)
        ]
        for name, least, clips in (
            ("hook", 2, hooks),
            ("clip_grad_norm_", 3, functions),
        ):
            runs = []
            for _ in range(3):
                times: list[list[int]] = [[], []]
                for _ in range(ROUNDS):
                    for clip, samples in zip(clips, times, strict=True):
                        torch._foreach_copy_(grads, saved)
                        dist.barrier()
                        start = thread_time_ns()
                        clip()
                        samples.append(thread_time_ns() - start)
                runs.append([median(samples) / 1e3 for samples in times])
            runs.sort(key=lambda run: run[0] / run[1])
            theirs, mine = runs[1]
            baseline = "RoboOrchardLab" if name == "hook" else "torch"
            rows.append(
                {
                    "clips": f"{name}, {side} (baseline: {baseline})",
                    "baseline_us": theirs,
                    "ours_us": mine,
                    "ratio": theirs / mine,
                }
            )
            short |= theirs / mine < least
            if dist.get_rank() == 0:
                print(
                    f"400 x 64 elements, FSDP2, {name}, {side}: "
                    f"{baseline} {theirs:.0f} us, this package {mine:.0f} us, "
                    f"ratio {theirs / mine:.1f} (at least {least})"
                )
    if options.json and dist.get_rank() == 0:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    dist.barrier()
    dist.destroy_process_group()
    return int(short)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # torch's threads have been seen to abort a rank at interpreter exit.
    os._exit(status)
