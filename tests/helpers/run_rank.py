"""Runs a program on a rank: `torchrun -m helpers.run_rank PROGRAM [ARG...]`.

It ends as `processes.end_rank` says, which no program of a user has to do.
"""

import runpy
import sys

from helpers import processes

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
    processes.end_rank()
