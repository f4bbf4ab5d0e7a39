"""Cases that several processes run together, over gloo.

The oracles are torch, accelerate, upstream and one process on all of the data.
"""

from helpers.ranks import ddp, fsdp1, fsdp2, mixed
from helpers.ranks.cases import CASES, RANKS

__all__ = ["CASES", "RANKS", "ddp", "fsdp1", "fsdp2", "mixed"]
