"""Placements, meshes, norms and bounds at random, alike on all ranks."""

import random

import pytest
import torch
from torch.distributed.tensor import Partial, Replicate, Shard

from distributed.checks import INF, mesh_of, true_norm
from distributed.placed import (
    WAYS,
    assert_clips,
    clip_values,
    placed,
    reduced,
)

SHAPES = [(4, 6), (1, 3), (3, 1), (5, 2)]
OPERATIONS = "sum", "avg", "max", "min"
ONE_DIMENSION = [Shard(0), Shard(1), Replicate(), *map(Partial, OPERATIONS)]
TWO_DIMENSIONS = [
    (first, second)
    for first in (Shard(0), Replicate(), Partial())
    for second in (Shard(1), Replicate(), Partial())
] + [(Replicate(), Partial("max"))]


@pytest.mark.parametrize("seed", range(12))
def test_clipped_as_whole_tensors(seed):
    choose = random.Random(seed)
    for shape in 5 * [(1, 2), (2, 1)]:
        meshes = [
            *((mesh_of(2, names=name), ONE_DIMENSION) for name in "ab"),
            (mesh_of(*shape, names="cd"), TWO_DIMENSIONS),
        ]
        meshes = choose.choice([meshes[:1], meshes[:2], meshes[2:], meshes])
        kinds = [(None, None)]
        kinds += [(mesh, each) for mesh, some in meshes for each in some]
        way = choose.choice([*WAYS, "value hook", "value function"])
        if way.startswith("value"):
            kinds = [kind for kind in kinds if not is_sum(kind[1])]
        dtype = choose.choice([torch.float32, torch.float64])
        params = [
            placed(each, mesh, choose.choice(SHAPES), 9 * seed + index, dtype)
            for index, (mesh, each) in enumerate(
                choose.choices(kinds, k=choose.randint(1, 7))
            )
        ]
        for param in params[1:]:
            if choose.random() < 0.2:
                param.grad = None
        factor = choose.choice([0.0, 0.1, 0.9, 1.1, 1e6])
        if way.startswith("value"):
            expected = [g.clamp(-factor, factor) for g in reduced(params)]
            clip_values(way.split()[1], params, factor)
            assert all(map(torch.equal, reduced(params), expected))
            continue
        norm_type = choose.choice([INF, 0.5, 1.0, 2.0, 3.0, -INF])
        max_norm = factor * true_norm(reduced(params), norm_type).item()
        assert_clips(way, params, max_norm, norm_type)


def is_sum(placements):
    """Whether the gradient is the sum of parts, which cannot be clamped."""
    placements = placements if isinstance(placements, tuple) else [placements]
    return any(
        getattr(each, "reduce_op", None) in ("sum", "avg")
        for each in placements
    )
