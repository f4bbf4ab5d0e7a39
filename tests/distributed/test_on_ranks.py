"""The tests of the other files here, each file on several ranks."""

import sys
from pathlib import Path

import pytest

from helpers import processes


@pytest.mark.parametrize(
    ("file", "ranks"),
    [
        *(("at_random", 2), ("ddp", 2), ("fsdp1", 2), ("fsdp2", 2)),
        *(("kept", 2), ("meshes", 2), ("partial", 2), ("square", 4)),
    ],
)
def test_on_ranks(file, ranks):
    path = Path(__file__).with_name(f"{file}.py")
    program = sys.executable, "-m", "distributed.ranks"
    processes.run([*program, str(ranks), str(path)], timeout=300)
