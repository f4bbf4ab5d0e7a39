"""Placements and meshes of every kind, beside plain parameters."""

import itertools

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import (
    DTensor,
    Partial,
    distribute_tensor,
)

from helpers.ranks.cases import case, check
from helpers.ranks.checks import (
    CLIPS,
    CLIPS_NOT,
    INF,
    NORM_TYPES,
    OTHER_SHARD,
    SHARD,
    WHOLE,
    StandIn,
    check_same,
    check_total,
    full,
    grads,
    local,
    make_accelerator,
    mesh_of,
    norm_hook,
    params_of,
    randn,
    run_hook,
    value_hook,
)
from helpers.ranks.placing import scale_parts_
from robo_orchard_fasthooks.clip import clip_grad_norm_


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


@case(
    "mixed",
    make=[
        plain_beside_sharded,
        two_meshes_of_one_shape,
        meshes_and_plain_in_turn,
    ],
    norm_type=NORM_TYPES,
    max_norm=[CLIPS, CLIPS_NOT],
    dtype=[torch.float32, torch.bfloat16],
)
def mixed_norm(make, norm_type, max_norm, dtype):
    accelerator = make_accelerator(StandIn)
    params, hooked, oracle = (make(dtype) for _ in range(3))
    expected = accelerator._clip_grad_norm_dtensor_aware(
        oracle, max_norm, norm_type
    )
    total = clip_grad_norm_(params, max_norm, norm_type)
    check(type(total) is torch.Tensor, "total:", type(total))
    hook = norm_hook(max_norm, norm_type=norm_type)
    run_hook(hook, hooked, accelerator)
    for found, clipped in ((total, params), (hook.total_norm, hooked)):
        check_total(found, expected)
        check_same("gradient", grads(clipped), grads(oracle))


@case("mixed", norm_type=NORM_TYPES, max_norm=[CLIPS, CLIPS_NOT])
def mixed_dtypes(norm_type, max_norm):
    """Two dtypes that alternate; torch norms and scales dtype by dtype."""
    params, oracle = (
        [
            param
            for each in zip(
                three_sharded(mesh_of(2), [SHARD]),
                three_sharded(mesh_of(2), [SHARD], dtype=torch.bfloat16),
                strict=True,
            )
            for param in each
        ]
        for _ in range(2)
    )
    expected = nn.utils.clip_grad_norm_(oracle, max_norm, norm_type)
    check_total(clip_grad_norm_(params, max_norm, norm_type), expected)
    check_same("gradient", grads(params), grads(oracle))


@case("mixed", make=[plain_beside_sharded, meshes_and_plain_in_turn])
def mixed_value(make):
    params = make(torch.float32)
    expected = [full(grad).clamp(-0.5, 0.5) for grad in grads(params)]
    run_hook(value_hook(), params)
    check_same("gradient", [full(grad) for grad in grads(params)], expected)


@case(
    "mixed",
    shape=[(2,)],
    placement=[[OTHER_SHARD], [WHOLE]],
    norm_type=NORM_TYPES,
)
@case(
    "mixed",
    shape=[(1, 2), (2, 1)],
    placement=[
        [WHOLE, SHARD],
        [SHARD, WHOLE],
        [WHOLE, WHOLE],
        [OTHER_SHARD, SHARD],
    ],
    norm_type=NORM_TYPES,
)
def one_mesh(shape, placement, norm_type):
    params, oracle = (
        three_sharded(mesh_of(*shape), placement) for _ in range(2)
    )
    expected = nn.utils.clip_grad_norm_(oracle, CLIPS, norm_type)
    total = clip_grad_norm_(params, CLIPS, norm_type)
    check(isinstance(total, DTensor), "total:", type(total))
    check_total(total, expected)
    check_same("gradient", grads(params), grads(oracle))


@case(
    "mixed",
    layout=[
        ((2,), [SHARD], [WHOLE], [OTHER_SHARD]),
        ((1, 2), [WHOLE, OTHER_SHARD], [WHOLE, WHOLE], [SHARD, WHOLE]),
        ((2, 1), [WHOLE, OTHER_SHARD], [WHOLE, WHOLE], [SHARD, WHOLE]),
    ],
    norm_type=NORM_TYPES,
)
def sharded_beside_replicated(layout, norm_type):
    """On one mesh, torch divides replicated norms and sums them again."""
    shape, *placements = layout
    params, oracle = (
        three_sharded(mesh_of(*shape), *placements) for _ in range(2)
    )
    expected = nn.utils.clip_grad_norm_(oracle, CLIPS, norm_type)
    check_total(clip_grad_norm_(params, CLIPS, norm_type), expected)
    check_same("gradient", grads(params), grads(oracle))


@case("mixed", norm_type=[2, INF, 3])
def changing_placements(norm_type):
    """The placements of the same gradients change from step to step."""
    mesh = mesh_of(2)
    params, oracle = (three_sharded(mesh, [SHARD]) for _ in range(2))
    optimizer, hook = torch.optim.SGD(params), norm_hook(norm_type=norm_type)
    for step, (placement, dtype) in enumerate(
        [
            (SHARD, torch.float32),
            (WHOLE, torch.float32),
            (OTHER_SHARD, torch.float32),
            (OTHER_SHARD, torch.bfloat16),
            (SHARD, torch.float32),
        ]
    ):
        for param in (*params, *oracle):
            grad = randn(param.shape, dtype, seed=step)
            param.grad, param.grad_dtype = None, None
            param.grad = distribute_tensor(grad, mesh, [placement])
        expected = nn.utils.clip_grad_norm_(oracle, CLIPS, norm_type)
        run_hook(hook, optimizer)
        check_total(hook.total_norm, expected)
        check_same("gradient", grads(params), grads(oracle))


@case("mixed", norm_type=[2, INF])
def gradients_on_their_way(norm_type):
    """Gradients whose last collective has not been waited for."""
    mesh = mesh_of(2)
    params, oracle = (three_sharded(mesh, [SHARD]) for _ in range(2))
    for param in (*params, *oracle):
        param.grad = param.grad.redistribute(mesh, [WHOLE], async_op=True)
        local_type = type(local(param.grad)).__name__
        check(local_type == "AsyncCollectiveTensor", local_type)
    expected = nn.utils.clip_grad_norm_(oracle, CLIPS, norm_type)
    check_total(clip_grad_norm_(params, CLIPS, norm_type), expected)
    check_same(
        "gradient",
        [full(grad) for grad in grads(params)],
        [full(grad) for grad in grads(oracle)],
    )


@case("mixed", norm_type=[2, INF], beside=[[SHARD], [WHOLE]])
def partial_gradient(norm_type, beside):
    """A gradient that is not summed yet: a rank's part has no norm of use."""
    mesh = mesh_of(2)
    params, oracle = (three_sharded(mesh, beside) for _ in range(2))
    for param in (params[0], oracle[0]):
        mine = randn((4, 6), seed=1 + dist.get_rank())
        param.grad = DTensor.from_local(mine, mesh, [Partial()])
    expected = nn.utils.clip_grad_norm_(oracle, CLIPS, norm_type)
    scale_parts_(oracle, expected, CLIPS)
    check_total(clip_grad_norm_(params, CLIPS, norm_type), expected)
    check_same("gradient", grads(params), grads(oracle))


# Four ranks in a square: reductions along two dimensions of a mesh.

PLACEMENTS = [
    [SHARD, SHARD],
    [WHOLE, SHARD],
    [SHARD, WHOLE],
    [OTHER_SHARD, OTHER_SHARD],
    [WHOLE, WHOLE],
    [SHARD, OTHER_SHARD],
]


@case(
    "square",
    chosen=[[0], [5], [0, 4], [1, 2], [1, 2, 3, 4], range(6)],
    norm_type=[INF, 2, 3],
    seed=[0, 1],
)
def square(chosen, norm_type, seed):
    mesh = mesh_of(2, 2)
    params, oracle = (
        params_of(
            distribute_tensor(
                randn((8, 6), seed=100 * seed + index),
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
