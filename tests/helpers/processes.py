"""Runs programs in processes of their own, until a deadline."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = str(Path(__file__).parents[1])
TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
    "--nproc-per-node",
)


def run(command: list[str], cwd: Path | None = None) -> tuple[str, str]:
    """What a program writes; it has to end well, within two minutes."""
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
            out, err = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            # Not kill: torchrun has to end its children, which hold the pipes.
            process.terminate()
            raise AssertionError("".join(process.communicate())) from None
    assert process.returncode == 0, out + err
    return out, err
