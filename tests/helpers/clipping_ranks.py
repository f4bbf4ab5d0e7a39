"""Each rank's program in test_distributed.py: `ranks.py PROGRAM RANKS`.

A case checks instead of raising: a rank that leaves it between two collectives
makes the others wait. The oracles are torch, accelerate, upstream and one
process on all of the data.
"""

import itertools
import logging
import math
import sys
import traceback
import warnings
from collections import defaultdict
from copy import deepcopy
from datetime import timedelta
from types import SimpleNamespace

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)

import robo_orchard_fasthooks as ours
import upstream
from robo_orchard_fasthooks._clipping.local import DEVICES
from robo_orchard_fasthooks.clip import clip_grad_norm_, clip_grad_value_

NAN, INF = math.nan, math.inf
NORM_TYPES = [INF, -INF, 0.0, 0.5, 1.0, 2.0, 3.0]
# Every norm of these cases lies between the two.
CLIPS, CLIPS_NOT = 1e-3, 1e9

CASES = defaultdict(list)
failures = []


def case(program, **grid):
    """Registers a case once for each combination of the grid's values."""

    def register(function):
        for values in itertools.product(*grid.values()):
            settings = dict(zip(grid, values, strict=True))
            CASES[program].append((function, settings))
        return function

    return register


def check(good, *what):
    if not good:
        failures.append(" ".join(map(str, what)))


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def grads(params):
    return [param.grad for param in params]


def from_all(value):
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def bits(tensor):
    tensor = local(tensor.detach())
    return torch.where(tensor.isnan(), NAN, tensor).flatten().view(torch.uint8)


def same(first, second):
    """Equal in every bit of this rank's part, where any NaN equals any NaN."""
    if first is None or second is None:
        return first is second
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and torch.equal(bits(first), bits(second))
    )


def check_same(what, found, expected):
    check(len(found) == len(expected), what, "too many or too few")
    pairs = enumerate(zip(found, expected, strict=False))
    wrong = [index for index, pair in pairs if not same(*pair)]
    check(not wrong, what, wrong)


def check_close(what, found, expected):
    """Within what the order of a sum may change in float32."""
    found, expected = (
        torch.as_tensor(value).detach().double() for value in (found, expected)
    )
    close = torch.isclose(found, expected, 1e-5, 1e-8, equal_nan=True)
    difference = (found - expected)[~close].tolist()
    check(close.all(), what, "differs by", difference)


def check_total(total, expected):
    """Compares a total with torch's, and with those of the other ranks."""
    total, expected = full(total), full(expected)
    check(type(total) is torch.Tensor, "total:", type(total))
    check(same(total, expected), "total:", total, "for", expected)
    totals = from_all(total)
    check(
        all(same(total, each) for each in totals), "totals of ranks:", totals
    )


def check_clipped(total, params, before, expected):
    """Compares with the norm that is known, and with the other rank."""
    totals = from_all(full(total))
    check(same(*totals) and None not in totals, "totals of ranks:", totals)
    if total is not None:
        check_close("total", full(total), expected)
    coefficient = CLIPS / (expected + 1e-6)
    for index, (param, old) in enumerate(zip(params, before, strict=True)):
        check((param.grad is None) == (old.grad is None), "None or not", index)
        if old.grad is not None:
            scaled = local(old.grad) * coefficient
            check_close(f"gradient {index}", local(param.grad), scaled)


def raised(run):
    """What `run` raises as a RuntimeError; "" if it raises nothing."""
    try:
        run()
    except RuntimeError as error:
        return str(error)
    return ""


def randn(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype)


def copies(params):
    """Parameters of the same gradients, for the oracle or for later."""
    made = [nn.Parameter(param.detach().clone()) for param in params]
    for copy, param in zip(made, params, strict=True):
        if param.grad is not None:
            copy.grad = param.grad.detach().clone()
    return made


def params_of(gradients):
    gradients = list(gradients)
    params = [nn.Parameter(torch.zeros_like(grad)) for grad in gradients]
    for param, grad in zip(params, gradients, strict=True):
        param.grad = grad.clone()
    return params


def true_norm(gradients, norm_type=2.0):
    flat = torch.cat([grad.flatten().double() for grad in gradients])
    return torch.linalg.vector_norm(flat, norm_type)


def norm_of_parts(params, norm_type):
    """The norm of what the ranks hold, which are parts of one gradient."""
    mine = [local(grad) for grad in grads(params) if grad is not None]
    return true_norm(sum(from_all(mine), []), norm_type)


def batch():
    return 10 * randn((8, 4)), randn((8, 1))


def my_half():
    """This rank's part of the batch."""
    return [part.chunk(2)[dist.get_rank()] for part in batch()]


def backward(model, part=None):
    inputs, targets = part or my_half()
    dtype = next(model.parameters()).dtype
    inputs, targets = inputs.to(dtype), targets.to(dtype)
    nn.functional.mse_loss(model(inputs), targets).backward()
    return model


class StandIn(Accelerator):
    """Says it runs FSDP, which `Accelerator(cpu=True)` never does.

    Everything that it does is accelerate's own.
    """

    distributed_type = DistributedType.FSDP


def make_accelerator(cls=Accelerator, **settings):
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator = cls(cpu=True, **settings)
    check(accelerator.num_processes == 2, "not two processes")
    return accelerator


def norm_hook(max_norm=CLIPS, lib=ours, **settings):
    return lib.GradientClippingHookConfig(
        clip_mode="norm", max_norm=max_norm, **settings
    )()


def value_hook(clip_value=0.5, lib=ours):
    return lib.GradientClippingHookConfig(
        clip_mode="value", clip_value=clip_value
    )()


def run_hook(hook, optimizer, accelerator=None, **settings):
    """One step of the hook, with an optimizer or what one is made of."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = torch.optim.SGD(optimizer)
    args = ours.PipelineHookArgs(
        accelerator or make_accelerator(StandIn),
        optimizer=optimizer,
        **settings,
    )
    with hook.begin("on_step", args):
        pass


SHARD, OTHER_SHARD, WHOLE = Shard(0), Shard(1), Replicate()


def mesh_of(*shape, names="ab"):
    return init_device_mesh("cpu", shape, mesh_dim_names=names[: len(shape)])


# DDP: the hook, against upstream's and against one process.

theirs = SimpleNamespace(
    PipelineHookArgs=upstream.mixin.PipelineHookArgs,
    GradientClippingHookConfig=upstream.grad_clip.GradientClippingHookConfig,
)


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))


def train(lib, hook, accumulate):
    """Three steps of this rank, and the totals that the hook then showed."""
    accelerator = make_accelerator(gradient_accumulation_steps=accumulate)
    check(accelerator.distributed_type == DistributedType.MULTI_CPU, "not DDP")
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model, optimizer = accelerator.prepare(model, optimizer)
    check(type(model) is nn.parallel.DistributedDataParallel, "no DDP model")
    parts = [each.chunk(accumulate) for each in my_half()]
    totals = []
    for inputs, targets in 3 * [*zip(*parts, strict=True)]:
        args = lib.PipelineHookArgs(accelerator, optimizer=optimizer)
        with accelerator.accumulate(model):
            with hook.begin("on_step", args):
                loss = nn.functional.mse_loss(model(inputs), targets)
                accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        totals.append(getattr(hook, "total_norm", None))
    return list(model.parameters()), totals


def train_alone(clip, *settings):
    """Three steps on the whole batch, clipped by torch."""
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    totals = []
    for _ in range(3):
        optimizer.zero_grad()
        backward(model, batch())
        totals.append(clip(model.parameters(), *settings))
        optimizer.step()
    return list(model.parameters()), totals


def check_trained(found, upstreams, alone):
    check_same("parameter as upstream", found, upstreams)
    check_same("parameter on both ranks", *from_all(found))
    for one, other in zip(found, alone, strict=True):
        check_close("parameter as one process", one, other)


@case("ddp", accumulate=[1, 2], max_norm=[0.05, CLIPS_NOT], norm_type=[2, INF])
def ddp_norm(accumulate, max_norm, norm_type):
    upstreams = norm_hook(max_norm, theirs, norm_type=norm_type)
    upstreams, _ = train(theirs, upstreams, accumulate)
    hook = norm_hook(max_norm, norm_type=norm_type)
    found, totals = train(ours, hook, accumulate)
    alone, expected = train_alone(
        nn.utils.clip_grad_norm_, max_norm, norm_type
    )
    check_trained(found, upstreams, alone)
    check_same("total on both ranks", *from_all(totals))
    shown = totals[accumulate - 1 :: accumulate]
    for one, other in zip(shown, expected, strict=True):
        check_close("total as one process", one, other)
    if accumulate == 2:  # Half steps show no new total.
        check(totals[0] is None and totals[2] is totals[1], "clipped too soon")


@case("ddp", accumulate=[1, 2])
def ddp_value(accumulate):
    upstreams, _ = train(theirs, value_hook(0.02, theirs), accumulate)
    found, totals = train(ours, value_hook(0.02), accumulate)
    alone, _ = train_alone(nn.utils.clip_grad_value_, 0.02)
    check_trained(found, upstreams, alone)
    check(set(totals) == {None}, "a norm in mode value")


# FSDP2: what `fully_shard` makes of parameters.

EVEN = nn.Linear(4, 6), nn.Linear(6, 2)
# One row for two ranks: rank 1 has an empty part of the last two parameters.
UNEVEN = nn.Linear(4, 5), nn.Linear(5, 1)


def sharded_model(layers=UNEVEN, dtype=torch.float32):
    model = nn.Sequential(*deepcopy(layers)).to(dtype)
    for param in model.parameters():
        param.data = randn(param.shape, dtype, seed=1)
    mesh = init_device_mesh("cpu", (2,))
    for module in (*model, model):
        fully_shard(module, mesh=mesh)
    empty = [local(param).numel() == 0 for param in model.parameters()]
    check(any(empty) == (layers is UNEVEN and dist.get_rank() == 1), "empty")
    return model


def give(params, gradients):
    """Gives sharded parameters those gradients, the same on all ranks."""
    for param, grad in zip(params, gradients, strict=True):
        param.grad = distribute_tensor(
            grad, param.device_mesh, param.placements
        )


def with_grads(layers=UNEVEN, dtype=torch.float32, poison=None, rank=0):
    """Sharded parameters and their whole gradients.

    `poison` is an element of the part of that rank.
    """
    params = list(sharded_model(layers, dtype).parameters())
    whole = [randn(param.shape, dtype) for param in params]
    if poison is not None:
        whole[0][-rank] = poison
    give(params, whole)
    return params, whole


@case(
    "fsdp2",
    layers=[EVEN, UNEVEN],
    dtype=[torch.float32, torch.bfloat16, torch.float64],
    norm_type=NORM_TYPES,
    max_norm=[CLIPS, CLIPS_NOT],
)
def fsdp2_norm(layers, dtype, norm_type, max_norm):
    params, whole = with_grads(layers, dtype)
    # torch raises for the inf-norm of an empty part, and the other rank hangs.
    if layers is UNEVEN and abs(norm_type) == INF:
        oracle = params_of(whole)
    else:
        oracle = copies(params)
    expected = nn.utils.clip_grad_norm_(oracle, max_norm, norm_type)
    total = clip_grad_norm_(params, max_norm, norm_type)
    check(isinstance(total, DTensor), "total:", type(total))
    check_total(total, expected)
    found = [full(grad) for grad in grads(params)]
    check_same("gradient", found, [full(grad) for grad in grads(oracle)])
    kept = max_norm == CLIPS_NOT
    check(same(found[0], whole[0]) == kept, "clipped or not")


@case("fsdp2", norm_type=[INF, 1.5, 2, 3], seed=[0, 1, 2])
def fsdp2_many(norm_type, seed):
    """Of equal shape, and so many that their norms are reduced as a vector.

    Its powers differ in the last bits from those of its elements alone.
    """
    mesh, whole = mesh_of(2), randn((100, 4, 3), seed=seed)
    params, oracle = (
        params_of(
            DTensor.from_local(part, mesh, [SHARD])
            for part in whole.chunk(2, dim=1)[dist.get_rank()]
        )
        for _ in range(2)
    )
    expected = nn.utils.clip_grad_norm_(oracle, CLIPS, norm_type)
    check_total(clip_grad_norm_(params, CLIPS, norm_type), expected)
    check_same("gradient", grads(params), grads(oracle))


@case("fsdp2", foreach=[None, False, True])
def fsdp2_foreach(foreach):
    params, _ = with_grads()
    oracle = copies(params)
    expected = nn.utils.clip_grad_norm_(oracle, CLIPS, foreach=False)
    check_total(clip_grad_norm_(params, CLIPS, foreach=foreach), expected)
    check_same("gradient", grads(params), grads(oracle))


@case(
    "fsdp2", poison=[NAN, INF, -INF], rank=[0, 1], norm_type=[INF, 1, 2, -INF]
)
def fsdp2_nonfinite(poison, rank, norm_type):
    params, whole = with_grads(poison=poison, rank=rank)
    oracle = params_of(whole)
    expected = nn.utils.clip_grad_norm_(oracle, CLIPS, norm_type)
    total = full(clip_grad_norm_(params, CLIPS, norm_type))
    check_close("total", total, expected)
    totals = from_all(total)
    check(
        all(same(total, each) for each in totals), "totals of ranks:", totals
    )
    found = [full(grad) for grad in grads(params)]
    # Not of the smallest element, when that is finite.
    if not expected.isfinite():
        check_same("gradient", found, grads(oracle))


@case("fsdp2", poison=[NAN, INF, None], rank=[0, 1], by_hook=[False, True])
def fsdp2_error_if_nonfinite(poison, rank, by_hook):
    params, _ = with_grads(poison=poison, rank=rank)
    oracle = copies(params)
    if poison is None:
        nn.utils.clip_grad_norm_(oracle, CLIPS)

    def clip():
        if by_hook:
            run_hook(norm_hook(error_if_nonfinite=True), params)
        else:
            clip_grad_norm_(params, CLIPS, error_if_nonfinite=True)

    said = raised(clip)
    check(("finite" in said) == (poison is not None), "raised:", said)
    check_same("gradient", grads(params), grads(oracle))


@case("fsdp2", layers=[EVEN, UNEVEN], rank=[None, 0, 1], by_hook=[False, True])
def fsdp2_value(layers, rank, by_hook):
    """One parameter has no gradient, and on one rank none has."""
    params, whole = with_grads(layers, poison=NAN)
    clamped = copies(params)
    give(clamped, [grad.clamp(-0.5, 0.5) for grad in whole])
    for index in range(4) if rank == dist.get_rank() else [2]:
        params[index].grad = clamped[index].grad = None
    if by_hook:
        run_hook(value_hook(), params)
    else:
        clip_grad_value_(params, 0.5)
    check_same("gradient", grads(params), grads(clamped))


@case(
    "fsdp2",
    chosen=[(0, 2), (1, 3, 0, 2), (3,)],
    without=[(), (2,), (0, 1, 2, 3)],
    norm_type=[1, 2],
)
def fsdp2_some_parameters(chosen, without, norm_type):
    """In groups with and without decay, and without gradients everywhere."""
    params, _ = with_grads()
    for index in without:
        params[index].grad = None
    oracle = copies(params)
    expected = nn.utils.clip_grad_norm_(
        [oracle[index] for index in chosen], CLIPS, norm_type
    )
    hook = norm_hook(norm_type=norm_type)
    check(hook.total_norm is None, "a total before the first step")
    *groups, last = ({"params": [params[index]]} for index in chosen)
    run_hook(hook, [*groups, {**last, "weight_decay": 0.1}])
    check_total(hook.total_norm, expected)
    check_same("gradient", grads(params), grads(oracle))


@case(
    "fsdp2",
    rank=[0, 1],
    missing=[(0,), (1, 2), (0, 1, 2, 3)],
    norm_type=[INF, 2, 1, -INF],
    by_hook=[False, True],
)
def fsdp2_missing_on_one_rank(rank, missing, norm_type, by_hook):
    """The rank without gradients takes part, or the other one would hang."""
    params, _ = with_grads(EVEN)
    if dist.get_rank() == rank:
        for index in missing:
            params[index].grad = None
    before, expected = copies(params), norm_of_parts(params, norm_type)
    if by_hook:
        hook = norm_hook(norm_type=norm_type)
        run_hook(hook, params)
        total = hook.total_norm
    else:
        total = clip_grad_norm_(params, CLIPS, norm_type)
    check_clipped(total, params, before, expected)


@case("fsdp2", norm_type=[1, 2])
def fsdp2_training(norm_type):
    """Three steps of one model with two optimizers."""
    runs = []
    for by_hook in (True, False):
        model = sharded_model()
        weights, biases = (
            [param for param in model.parameters() if param.ndim == ndim]
            for ndim in (2, 1)
        )
        optimizers = torch.optim.AdamW(weights), torch.optim.SGD(biases)
        hooks = [norm_hook(0.5, norm_type=norm_type) for _ in optimizers]
        runs.append([])
        for _ in range(3):
            backward(model)
            for optimizer, hook in zip(optimizers, hooks, strict=True):
                if by_hook:
                    run_hook(hook, optimizer)
                    total = hook.total_norm
                else:
                    (params,) = (g["params"] for g in optimizer.param_groups)
                    total = nn.utils.clip_grad_norm_(params, 0.5, norm_type)
                runs[-1].append(full(total))
                optimizer.step()
                optimizer.zero_grad()
        runs[-1] += map(full, model.parameters())
    check_same("total or parameter", *runs)
    check_same("total or parameter on both ranks", *from_all(runs[0]))


@case("fsdp2", norm_type=[INF, 2, 1, -INF])
def fsdp2_changing(norm_type):
    """What an optimizer holds, and which gradients there are, step by step."""
    (*held, late), whole = with_grads(EVEN)
    optimizer, hook = torch.optim.SGD(held), norm_hook(norm_type=norm_type)
    for step in ("all", "none of rank 1", "one", "frozen", "added", "all"):
        give(held, whole[: len(held)])
        held[0].requires_grad = step != "frozen"
        if step == "added":
            optimizer.add_param_group({"params": [late]})
            held.append(late)
        without = []
        if step == "one":
            without = held[1:]
        elif step == "none of rank 1" and dist.get_rank() == 1:
            without = held
        for param in without:
            param.grad = None
        clipped = [param for param in held if param.requires_grad]
        before = copies(clipped)
        expected = norm_of_parts(clipped, norm_type)
        run_hook(hook, optimizer)
        check_clipped(hook.total_norm, clipped, before, expected)


@case("fsdp2", norm_type=[1, 2], missing=[1, 5, 33], seed=[0, 1, 2])
def fsdp2_missing_everywhere(norm_type, missing, seed):
    """The last bits are those of torch, which does not see them.

    In fp64, as sums of fp32 are taken in it.
    """
    mesh = mesh_of(2)
    params, oracle = (
        params_of(
            distribute_tensor(
                randn((6,), torch.float64, 97 * seed + at), mesh, [SHARD]
            )
            for at in range(100)
        )
        for _ in range(2)
    )
    for param in params[::3][:missing]:
        param.grad = None
    for param in oracle[::3][:missing]:
        param.grad = None
    expected = nn.utils.clip_grad_norm_(oracle, CLIPS, norm_type)
    check_total(clip_grad_norm_(params, CLIPS, norm_type), expected)
    check_same("gradient", grads(params), grads(oracle))


@case("fsdp2", by_hook=[False, True])
def fsdp2_on_another_device(by_hook):
    """Of a type that is not ours, it is left to torch; a CPU stands for it."""
    (params, _), (oracle, _) = (with_grads(EVEN) for _ in range(2))
    expected = nn.utils.clip_grad_norm_(oracle, CLIPS)
    before = DEVICES.copy()
    DEVICES.clear()
    try:
        if by_hook:
            hook = norm_hook()
            run_hook(hook, params)
            total = hook.total_norm
        else:
            total = clip_grad_norm_(params, CLIPS)
    finally:
        DEVICES.update(before)
    check_total(total, expected)
    check_same("gradient", grads(params), grads(oracle))


@case("fsdp2", late=[False, True])
def fsdp2_without_gradients(late):
    """Beside a plain parameter that has one, or that has none either."""
    params, _ = with_grads()
    plain = nn.Parameter(torch.zeros(2))
    if late:
        plain.grad = torch.tensor([3.0, 4.0])
    for param in params:
        param.grad = None
    total = clip_grad_norm_([*params, plain], 1.0)
    check(type(total) is torch.Tensor, "total:", type(total))
    check_close("total", total, 5.0 if late else 0.0)


@case("fsdp2", by_hook=[False, True])
def fsdp2_model_to(by_hook):
    """torch swaps such parameters, which it refuses if they are watched."""
    model = sharded_model()
    params = list(model.parameters())
    give(params, [randn(param.shape) for param in params])
    if by_hook:
        run_hook(norm_hook(), params)
    else:
        clip_grad_norm_(params, CLIPS)
    for param in params:
        param.grad = None
    model.to(torch.bfloat16)
    check(all(p.dtype == torch.bfloat16 for p in model.parameters()), "dtype")


# Mixed: placements and meshes of every kind, beside plain parameters.


def three(dtype=torch.float32, seed=0):
    return [randn(shape, dtype, seed) for shape in ((4, 6), (2, 4), (8, 2))]


def three_sharded(mesh, *placements, dtype=torch.float32, seed=0):
    """Placed by the first placements, the second, and so on."""
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
    """On one mesh; in turn, as torch norms and scales dtype by dtype."""
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
    """On one mesh, torch divides replicated norms to sum them up again."""
    shape, *placements = layout
    params, oracle = (
        three_sharded(mesh_of(*shape), *placements) for _ in range(2)
    )
    expected = nn.utils.clip_grad_norm_(oracle, CLIPS, norm_type)
    check_total(clip_grad_norm_(params, CLIPS, norm_type), expected)
    check_same("gradient", grads(params), grads(oracle))


@case("mixed", norm_type=[2, INF, 3])
def changing_placements(norm_type):
    """Of the same parameters, from step to step."""
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
    """Whose last collective has not been waited for."""
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
    """Not summed yet, so a rank's part says nothing about the norm."""
    mesh = mesh_of(2)
    params, oracle = (three_sharded(mesh, beside) for _ in range(2))
    for param in (params[0], oracle[0]):
        mine = randn((4, 6), seed=1 + dist.get_rank())
        param.grad = DTensor.from_local(mine, mesh, [Partial()])
    expected = nn.utils.clip_grad_norm_(oracle, CLIPS, norm_type)
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


# FSDP1: torch's FullyShardedDataParallel, which flattens parameters.

FULL, GRAD_OP, NO = (
    ShardingStrategy.FULL_SHARD,
    ShardingStrategy.SHARD_GRAD_OP,
    ShardingStrategy.NO_SHARD,
)
# Of the outer and of the inner module.
STRATEGIES = [(FULL, FULL), (GRAD_OP, GRAD_OP), (NO, NO), (FULL, NO)]


def nested_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 5),
        nn.Sequential(nn.Linear(5, 3), nn.Tanh()),
        nn.Linear(3, 1),
    )


def fsdp1_model(flat, strategies=(FULL, FULL), dtype=torch.float32):
    model = nested_model().to(dtype)
    outer, inner = (
        {
            "device_id": torch.device("cpu"),
            "use_orig_params": not flat,
            "sharding_strategy": strategy,
        }
        for strategy in strategies
    )
    model[1] = FullyShardedDataParallel(model[1], **inner)
    return FullyShardedDataParallel(model, **outer)


def named(model):
    """Parameters by the names that they have in the unwrapped model."""
    return {
        name.replace("_fsdp_wrapped_module.", ""): param
        for name, param in model.named_parameters()
    }


def whole_grads():
    """Those of one process on the whole batch, by name."""
    model = backward(nested_model(), batch())
    return {name: param.grad for name, param in model.named_parameters()}


@case(
    "fsdp1",
    flat=[False, True],
    strategies=STRATEGIES,
    norm_type=[2, INF, 1],
    max_norm=[CLIPS, CLIPS_NOT],
)
def fsdp1_norm(flat, strategies, norm_type, max_norm):
    model, oracle = (backward(fsdp1_model(flat, strategies)) for _ in range(2))
    expected = oracle.clip_grad_norm_(max_norm, norm_type)
    hook = norm_hook(max_norm, norm_type=norm_type)
    run_hook(hook, model.parameters(), model=model)
    check_total(hook.total_norm, expected)
    check_same(
        "gradient", grads(model.parameters()), grads(oracle.parameters())
    )
    check_close(
        "total as one process",
        hook.total_norm,
        true_norm(whole_grads().values(), norm_type),
    )


@case("fsdp1", flat=[False, True], norm_type=[2, INF], default=[None, "half"])
def fsdp1_half(flat, norm_type, default):
    """Norms in fp32, coefficients in the gradients' dtype, as FSDP has it."""
    model, oracle = (
        backward(fsdp1_model(flat, dtype=torch.bfloat16)) for _ in range(2)
    )
    expected = oracle.clip_grad_norm_(0.1, norm_type)
    hook = norm_hook(0.1, norm_type=norm_type, foreach=False)
    if default:
        torch.set_default_dtype(torch.half)
    try:
        run_hook(hook, model.parameters(), model=model)
    finally:
        torch.set_default_dtype(torch.float32)
    check_total(hook.total_norm.to(torch.bfloat16), expected)
    check(hook.total_norm.dtype == torch.float32, hook.total_norm.dtype)
    check_same(
        "gradient", grads(model.parameters()), grads(oracle.parameters())
    )


@case("fsdp1", flat=[False, True], strategies=STRATEGIES)
def fsdp1_value(flat, strategies):
    """Clamping is by element, so parts may be clamped one by one."""
    model = backward(fsdp1_model(flat, strategies))
    expected = [
        None if grad is None else grad.clamp(-0.5, 0.5)
        for grad in grads(model.parameters())
    ]
    run_hook(value_hook(), model.parameters(), model=model)
    check_same("gradient", grads(model.parameters()), expected)


@case("fsdp1", flat=[False, True], mode=["norm", "value"])
def fsdp1_training(flat, mode):
    if mode == "norm":
        hook, clip = norm_hook(0.5), nn.utils.clip_grad_norm_
    else:
        hook, clip = value_hook(0.5), nn.utils.clip_grad_value_
    model, alone = fsdp1_model(flat), nested_model()
    optimizers = [
        torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, alone)
    ]
    for _ in range(3):
        backward(model)
        run_hook(hook, optimizers[0], model=model)
        clip(backward(alone, batch()).parameters(), 0.5)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    with FullyShardedDataParallel.summon_full_params(model):
        for name, param in named(model).items():
            check_close(name, param, alone.get_parameter(name))


def check_subset(root, params, names, norm_type=2.0, **settings):
    """The hook clips these, which have those names in the unwrapped model."""
    chosen = set(params)
    others = [param for param in root.parameters() if param not in chosen]
    before, kept = copies(params), copies(others)
    whole = whole_grads()
    expected = true_norm([whole[name] for name in names], norm_type)
    hook = norm_hook(norm_type=norm_type)
    run_hook(hook, params, **settings)
    check_clipped(hook.total_norm, params, before, expected)
    check_same("gradient of another", grads(others), grads(kept))


WEIGHTS = "0.weight", "1.0.weight", "2.weight"
# Sharded, the first rank has no part of these.
BIASES = "0.bias", "1.0.bias", "2.bias"


@case(
    "fsdp1",
    names=[
        WEIGHTS,
        BIASES,
        BIASES[2:],
        BIASES + WEIGHTS,
        (BIASES + WEIGHTS)[::-1],
    ],
    strategies=STRATEGIES,
    norm_type=[2, INF, 1],
)
def fsdp1_some_parameters(names, strategies, norm_type):
    model = backward(fsdp1_model(False, strategies))
    params = [named(model)[name] for name in names]
    if names == BIASES and strategies == (FULL, FULL):
        alone = all(grad is None for grad in grads(params))
        check(alone == (dist.get_rank() == 0), "who has no gradients")
    check_subset(model, params, names, norm_type, model=model)


OUTER = "_flat_param", ("0.weight", "0.bias", "2.weight", "2.bias")
INNER = "1._flat_param", ("1.0.weight", "1.0.bias")


@case(
    "fsdp1",
    chosen=[(OUTER,), (INNER,), (OUTER, INNER), (INNER, OUTER)],
    strategies=STRATEGIES,
)
def fsdp1_some_flat_parameters(chosen, strategies):
    model = backward(fsdp1_model(True, strategies))
    params = [named(model)[flat] for flat, _ in chosen]
    names = [name for _, names in chosen for name in names]
    check_subset(model, params, names, model=model)


@case("fsdp1", strategies=STRATEGIES)
def fsdp1_two_optimizers(strategies):
    """Each of half of the parameters; the accelerator knows the model."""
    model = backward(fsdp1_model(False, strategies))
    accelerator = make_accelerator(StandIn)
    accelerator._models.append(model)
    for names in (WEIGHTS, BIASES):
        params = [named(model)[name] for name in names]
        check_subset(model, params, names, accelerator=accelerator)


@case("fsdp1", strategies=STRATEGIES, norm_type=[2, INF])
def fsdp1_changing(strategies, norm_type):
    """One optimizer is given other parameters, as many or the same twice."""
    model = backward(fsdp1_model(False, strategies))
    optimizer, whole = torch.optim.SGD(model.parameters()), whole_grads()
    hook = norm_hook(CLIPS_NOT, norm_type=norm_type)
    for names in (
        WEIGHTS,
        BIASES,
        BIASES + WEIGHTS,
        WEIGHTS[::-1],
        WEIGHTS[1:] + WEIGHTS[:1],
        WEIGHTS[:2],
        WEIGHTS[1:2],
    ):
        params = [named(model)[name] for name in names]
        repeated = (params * 3)[:3] if len(params) < 3 else params
        optimizer.param_groups[0]["params"] = repeated
        run_hook(hook, optimizer, model=model)
        expected = true_norm([whole[name] for name in names], norm_type)
        check_close("total", hook.total_norm, expected)


@case(
    "fsdp1",
    flat=[False, True],
    known_to=["arguments", "accelerator"],
    norm_type=[2, INF],
)
def fsdp1_inside_a_plain_module(flat, known_to, norm_type):
    """Beside a plain parameter, the same on both ranks, counted once."""
    outer = nn.Module()
    outer.sharded = backward(fsdp1_model(flat))
    (outer.plain,) = params_of([10 * randn((3,))])
    accelerator = make_accelerator(StandIn)
    if known_to == "accelerator":
        accelerator._models.append(outer)
    params = list(outer.parameters())
    before = copies(params)
    whole = [*whole_grads().values(), outer.plain.grad]
    expected = true_norm(whole, norm_type)
    hook = norm_hook(norm_type=norm_type)
    model = outer if known_to == "arguments" else None
    run_hook(hook, params, accelerator, model=model)
    check_clipped(hook.total_norm, params, before, expected)


@case("fsdp1", flat=[False, True], rank=[0, 1], norm_type=[2, INF])
def fsdp1_missing_on_one_rank(flat, rank, norm_type):
    model = backward(fsdp1_model(flat))
    params = list(model.parameters())
    if dist.get_rank() == rank:
        for param in params:
            param.grad = None
    before, expected = copies(params), norm_of_parts(params, norm_type)
    hook = norm_hook(norm_type=norm_type)
    run_hook(hook, params, model=model)
    check_clipped(hook.total_norm, params, before, expected)


@case("fsdp1", poison=[NAN, INF], rank=[0, 1], norm_type=[2, INF])
def fsdp1_error_if_nonfinite(poison, rank, norm_type):
    model = backward(fsdp1_model(True))
    params = list(model.parameters())
    if dist.get_rank() == rank:
        params[0].grad[0] = poison
    before = copies(params)
    hook = norm_hook(norm_type=norm_type, error_if_nonfinite=True)
    said = raised(lambda: run_hook(hook, params, model=model))
    check("finite" in said, "raised:", said)
    check_same("gradient", grads(params), grads(before))


@case("fsdp1", flat=[True], start=[0])
@case("fsdp1", flat=[False], start=[0, 5])
def fsdp1_of_an_unknown_module(flat, start):
    """Refused on rank 0 too, which has no part of the last parameter."""
    params = list(backward(fsdp1_model(flat)).parameters())[start:]
    before = copies(params)
    said = raised(lambda: run_hook(norm_hook(), params))
    check("parameter" in said, "raised:", said)
    check_same("gradient", grads(params), grads(before))


def meet():
    """Waits for the other ranks, and raises if they do not come."""
    dist.monitored_barrier(timeout=timedelta(seconds=20))


def main(program, ranks):
    warnings.simplefilter("ignore")  # FSDP's, that NO_SHARD is deprecated.
    # Short, so that a rank which waits in vain tells in which case.
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    assert dist.get_world_size() == int(ranks)
    for function, settings in CASES[program]:
        before = len(failures)
        try:
            function(**settings)
        except Exception:
            failures.append(traceback.format_exc())
        for failure in failures[before:]:
            name = f"rank {dist.get_rank()}: {function.__name__} {settings}"
            print(f"{name}: {failure}", file=sys.stderr, flush=True)
        meet()
    # One write, so that those of several ranks do not mix.
    done = f"rank {dist.get_rank()} of {ranks}: {len(CASES[program])} cases\n"
    print(done, end="", flush=True)
    meet()
    dist.destroy_process_group()
    sys.exit(bool(failures))


if __name__ == "__main__":
    main(*sys.argv[1:])
