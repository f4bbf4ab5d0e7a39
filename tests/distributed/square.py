"""Four ranks in a square: reductions along two dimensions of a mesh."""

import pytest
from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from distributed.checks import (
    CLIPS,
    INF,
    assert_same,
    assert_total,
    grads,
    mesh_of,
    params_of,
    randn,
)
from robo_orchard_fasthooks.clip import clip_grad_norm_

PLACEMENTS = [
    [Shard(0), Shard(0)],
    [Replicate(), Shard(0)],
    [Shard(0), Replicate()],
    [Shard(1), Shard(1)],
    [Replicate(), Replicate()],
    [Shard(0), Shard(1)],
]


@pytest.mark.parametrize("chosen", [[0], [5], [0, 4], [1, 2], range(6)])
@pytest.mark.parametrize("norm_type", [INF, 2, 3])
def test_as_torch(chosen, norm_type):
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
    assert_total(clip_grad_norm_(params, CLIPS, norm_type), expected)
    assert_same(grads(params), grads(oracle))
