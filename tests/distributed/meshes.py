"""DTensors of several placements and meshes, and plain ones beside them."""

import itertools
import sys
from unittest import mock

import pytest
import torch
from torch import nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import (
    DTensor,
    Replicate,
    Shard,
    distribute_tensor,
)

from distributed.checks import (
    CLIPS,
    CLIPS_NOT,
    INF,
    StandIn,
    assert_same,
    assert_total,
    full,
    grads,
    local,
    make_accelerator,
    mesh_of,
    norm_hook,
    params_of,
    randn,
    run_hook,
)
from robo_orchard_fasthooks.clip import clip_grad_norm_

SHARD, OTHER_SHARD, WHOLE = Shard(0), Shard(1), Replicate()
NORM_TYPES = [INF, -INF, 0.0, 2.0, 3.0]


def three(dtype=torch.float32, seed=0):
    return [randn(shape, dtype, seed) for shape in ((4, 6), (2, 4), (8, 2))]


def three_sharded(mesh, *placements, dtype=torch.float32, seed=0):
    """Three parameters, placed by each of the placements in turn."""
    return params_of(
        distribute_tensor(grad, mesh, placement)
        for grad, placement in zip(
            three(dtype, seed), itertools.cycle(placements), strict=False
        )
    )


def plain_beside_sharded(dtype):
    sharded = three_sharded(mesh_of(2), [SHARD], dtype=dtype)
    return params_of(three(dtype, 1)) + sharded


def two_meshes_of_one_shape(dtype):
    first, second = mesh_of(2, names="a"), mesh_of(2, names="b")
    return [
        *three_sharded(first, [SHARD], dtype=dtype),
        *three_sharded(second, [OTHER_SHARD], dtype=dtype, seed=1),
    ]


def meshes_and_plain_in_turn(dtype):
    wide, tall = mesh_of(1, 2, names="ab"), mesh_of(2, 1, names="cd")
    kinds = (
        three_sharded(wide, [WHOLE, SHARD], dtype=dtype),
        params_of(three(dtype, 1)),
        three_sharded(tall, [WHOLE, SHARD], dtype=dtype, seed=2),
    )
    return [param for each in zip(*kinds, strict=True) for param in each]


@pytest.mark.parametrize(
    "make",
    [plain_beside_sharded, two_meshes_of_one_shape, meshes_and_plain_in_turn],
)
@pytest.mark.parametrize(
    ("norm_type", "max_norm", "dtype"),
    [
        *((each, CLIPS, torch.float32) for each in NORM_TYPES),
        (2.0, CLIPS_NOT, torch.bfloat16),
    ],
)
def test_as_accelerate(make, norm_type, max_norm, dtype):
    accelerator = make_accelerator(StandIn)
    params, hooked, oracle = (make(dtype) for _ in range(3))
    expected = accelerator._clip_grad_norm_dtensor_aware(
        oracle, max_norm, norm_type
    )
    total = clip_grad_norm_(params, max_norm, norm_type)
    assert type(total) is torch.Tensor
    hook = norm_hook(max_norm, norm_type=norm_type)
    run_hook(hook, hooked, accelerator)
    for found, clipped in ((total, params), (hook.total_norm, hooked)):
        assert_total(found, expected)
        assert_same(grads(clipped), grads(oracle))


@pytest.mark.parametrize("name", ["get_total_norm", "clip_grads_with_norm_"])
def test_replaced(name):
    """A function that accelerate calls by name, and a program has replaced."""
    original = getattr(nn.utils, name)

    def scaled(tensors, *settings):
        for tensor in tensors:
            tensor.detach().mul_(2)
            if tensor.grad is not None:
                tensor.grad.mul_(2)
        return original(tensors, *settings)

    params, oracle = (plain_beside_sharded(torch.float32) for _ in range(2))
    accelerator = make_accelerator(StandIn)
    with mock.patch.object(nn.utils, name, scaled):
        expected = accelerator.clip_grad_norm_(oracle, CLIPS)
        hook = norm_hook()
        run_hook(hook, params, accelerator)
    assert_total(hook.total_norm, expected)
    assert_same(grads(params), grads(oracle))


def assert_as_torch(make, norm_type, max_norm=CLIPS):
    params, oracle = make(), make()
    expected = nn.utils.clip_grad_norm_(oracle, max_norm, norm_type)
    total = clip_grad_norm_(params, max_norm, norm_type)
    assert isinstance(total, DTensor)
    assert_total(total, expected)
    assert_same(grads(params), grads(oracle))


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize(
    "layout",
    [
        ((2,), [OTHER_SHARD]),
        ((2,), [WHOLE]),
        ((1, 2), [WHOLE, SHARD]),
        ((2, 1), [WHOLE, SHARD]),
        ((2, 1), [WHOLE, WHOLE]),
        ((1, 2), [OTHER_SHARD, SHARD]),
        # On one mesh, torch divides replicated norms and sums them again.
        ((2,), [SHARD], [WHOLE], [OTHER_SHARD]),
        ((1, 2), [WHOLE, OTHER_SHARD], [WHOLE, WHOLE], [SHARD, WHOLE]),
        ((2, 1), [WHOLE, OTHER_SHARD], [WHOLE, WHOLE], [SHARD, WHOLE]),
    ],
)
def test_one_mesh(layout, norm_type):
    shape, *placements = layout
    assert_as_torch(
        lambda: three_sharded(mesh_of(*shape), *placements), norm_type
    )


@pytest.mark.parametrize("norm_type", [2.0, INF])
@pytest.mark.parametrize("max_norm", [CLIPS, CLIPS_NOT])
def test_two_dtypes(norm_type, max_norm):
    """That alternate; torch norms and scales dtype by dtype."""

    def make():
        kinds = (
            three_sharded(mesh_of(2), [SHARD], dtype=dtype)
            for dtype in (torch.float32, torch.bfloat16)
        )
        return [param for each in zip(*kinds, strict=True) for param in each]

    assert_as_torch(make, norm_type, max_norm)


@pytest.mark.parametrize("norm_type", [2, INF])
def test_gradients_on_their_way(norm_type):
    """Gradients whose last collective has not been waited for."""
    mesh = mesh_of(2)
    params, oracle = (three_sharded(mesh, [SHARD]) for _ in range(2))
    for param in (*params, *oracle):
        param.grad = param.grad.redistribute(mesh, [WHOLE], async_op=True)
        assert isinstance(local(param.grad), AsyncCollectiveTensor)
    expected = nn.utils.clip_grad_norm_(oracle, CLIPS, norm_type)
    assert_total(clip_grad_norm_(params, CLIPS, norm_type), expected)
    found, wanted = (map(full, grads(each)) for each in (params, oracle))
    assert_same([*found], [*wanted])


def test_calls_after_the_first():
    """What is planned for a list is kept, and found in fewer calls."""
    params = three_sharded(mesh_of(2), [SHARD], [WHOLE]) * 5
    counts = []
    for _ in range(3):
        calls = []
        sys.setprofile(lambda _, event, __, calls=calls: calls.append(event))
        clip_grad_norm_(params, CLIPS)
        sys.setprofile(None)
        counts.append(len(calls))
    assert counts[0] > 1.5 * counts[1] and counts[1] == counts[2]
