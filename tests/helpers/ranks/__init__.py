"""Cases that several processes run together, over gloo.

The oracles are torch, accelerate, upstream and one process on all of the data.
"""

from helpers.ranks import (
    at_random,
    ddp,
    fsdp1,
    fsdp2,
    kept,
    mixed,
    placed_fsdp1,
    placements,
    refused,
)
from helpers.ranks.cases import CASES, RANKS

__all__ = [
    "CASES",
    "RANKS",
    "at_random",
    "ddp",
    "fsdp1",
    "fsdp2",
    "kept",
    "mixed",
    "placed_fsdp1",
    "placements",
    "refused",
]
