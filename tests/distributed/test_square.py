"""Four ranks in a square: reductions along two dimensions of a mesh."""

from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from distributed.checks import (
    CLIPS,
    INF,
    check_same,
    check_total,
    grads,
    mesh_of,
    params_of,
    randn,
)
from distributed.ranks import Cases
from robo_orchard_fasthooks.clip import clip_grad_norm_

CASES = Cases(__file__, ranks=4)
PLACEMENTS = [
    [Shard(0), Shard(0)],
    [Replicate(), Shard(0)],
    [Shard(0), Replicate()],
    [Shard(1), Shard(1)],
    [Replicate(), Replicate()],
    [Shard(0), Shard(1)],
]


@CASES(chosen=[[0], [5], [0, 4], [1, 2], range(6)], norm_type=[INF, 2, 3])
def as_torch(chosen, norm_type):
    mesh = mesh_of(2, 2)
    params, oracle = (
        params_of(
            distribute_tensor(
                randn((8, 6), seed=index),
                mesh,
                PLACEMENTS[chosen[index % len(chosen)]],
            )
            for index in range(37)
        )
        for _ in range(2)
    )
    expected = nn.utils.clip_grad_norm_(oracle, CLIPS, norm_type)
    check_total(clip_grad_norm_(params, CLIPS, norm_type), expected)
    check_same("gradient", grads(params), grads(oracle))


test_on_ranks = CASES.as_test()
