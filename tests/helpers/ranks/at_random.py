"""Placements, meshes, norms and bounds at random, alike on all ranks."""

import itertools

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import (
    Partial,
    Replicate,
    Shard,
)

from helpers.ranks.cases import case, check, failures
from helpers.ranks.checks import (
    INF,
    mesh_of,
    true_norm,
)
from helpers.ranks.placing import (
    OPERATIONS,
    WAYS,
    check_clips,
    clip,
    clip_values,
    placed,
    reduced,
)


@st.composite
def examples(draw):
    kinds = [(None, None)]
    meshes = draw(st.sampled_from([(0,), (0, 1), (2,), (0, 2)]))
    for index in meshes:
        one = [Shard(0), Shard(1), Replicate(), *map(Partial, OPERATIONS)]
        if index == 2:
            placements = [
                (first, second)
                for first, second in itertools.product(
                    [Shard(0), Replicate(), Partial()], repeat=2
                )
            ]
        else:
            placements = one
        kinds += [(placement, index) for placement in placements]
    return {
        "chosen": draw(
            st.lists(
                st.tuples(
                    st.sampled_from(kinds),
                    st.sampled_from([(4, 6), (1, 3), (3, 1), (5, 2)]),
                    st.booleans() | st.just(True),
                ),
                min_size=1,
                max_size=7,
            )
        ),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
        "norm_type": draw(st.sampled_from([INF, 0.5, 1.0, 2.0, 3.0, -INF])),
        "factor": draw(st.sampled_from([0.0, 0.1, 0.9, 1.1, 1e6])),
        "way": draw(st.sampled_from([*WAYS, "value hook", "value function"])),
        "seed": draw(st.integers(0, 99)),
    }


def make(example, meshes):
    params = []
    for index, ((placement, mesh), shape, given_) in enumerate(
        example["chosen"]
    ):
        param = placed(
            placement,
            None if mesh is None else meshes[mesh],
            shape,
            example["seed"] + index,
            example["dtype"],
        )
        if not given_:
            param.grad = None
        params.append(param)
    return params


def check_example(example, meshes):
    params = make(example, meshes)
    way, norm_type = example["way"], example["norm_type"]
    if not reduced(params):
        return
    if way.startswith("value"):
        limit = example["factor"]
        expected = [grad.clamp(-limit, limit) for grad in reduced(params)]
        clip_values(way.split()[1], params, limit)
        for index, (found, wanted) in enumerate(
            zip(reduced(params), expected, strict=True)
        ):
            check(torch.equal(found, wanted), index, found, "for", wanted)
        return
    norm = true_norm(reduced(params), norm_type).item()
    max_norm = example["factor"] * norm
    check_clips(lambda *args: clip(way, *args), params, max_norm, norm_type)


@case("random")
def at_random():
    meshes = mesh_of(2), mesh_of(2, names="b"), mesh_of(1, 2, names="cd")

    @settings(
        max_examples=400,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(examples())
    def run(example):
        before = len(failures)
        check_example(example, meshes)
        if len(failures) > before:
            failures[before] = f"{example}: {failures[before]}"

    run()
