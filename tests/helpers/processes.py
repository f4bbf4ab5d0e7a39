"""Programs that tests run in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

TESTS = str(Path(__file__).parents[1])
TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
    "--nproc-per-node",
)
TWO_RANKS = (*TORCHRUN, "2", "-m", "helpers.run_rank")


def run(
    command: list[str], cwd: Path | None = None, timeout: float = 120
) -> tuple[str, str]:
    """Runs a program that has to end well; returns its stdout and stderr."""
    with subprocess.Popen(
        command,
        cwd=cwd,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([TESTS, *sys.path]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            # Not kill: torchrun has to end its children, which hold the pipes.
            process.terminate()
            raise AssertionError("".join(process.communicate())) from None
    assert process.returncode == 0, out + err
    return out, err


def end_rank() -> NoReturn:
    """Ends the process of a rank, without finalizing its interpreter.

    A thread of gloo that releases a tensor in an interpreter being finalized
    aborts the process (https://github.com/pytorch/pytorch/pull/179291), and
    torch 2.13 keeps these threads after destroy_process_group, once a device
    mesh has been made.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
