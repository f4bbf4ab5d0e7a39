"""FSDP2: clipping of what `fully_shard` makes of parameters."""

from copy import deepcopy

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    fully_shard,
)
from torch.distributed.tensor import (
    DTensor,
    distribute_tensor,
)

from helpers.ranks.cases import case, check
from helpers.ranks.checks import (
    CLIPS,
    CLIPS_NOT,
    INF,
    NAN,
    NORM_TYPES,
    SHARD,
    backward,
    check_clipped,
    check_close,
    check_same,
    check_total,
    copies,
    from_all,
    full,
    grads,
    local,
    mesh_of,
    norm_hook,
    norm_of_parts,
    params_of,
    raised,
    randn,
    run_hook,
    same,
    value_hook,
)
from robo_orchard_fasthooks._clipping.local import DEVICES
from robo_orchard_fasthooks.clip import clip_grad_norm_, clip_grad_value_

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
    """Sets the gradients of sharded parameters, from whole gradients."""
    for param, grad in zip(params, gradients, strict=True):
        param.grad = distribute_tensor(
            grad, param.device_mesh, param.placements
        )


def with_grads(layers=UNEVEN, dtype=torch.float32, poison=None, rank=0):
    """Returns sharded parameters and their whole gradients.

    `poison` becomes an element of that rank's part.
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
    """So many of one shape that their norms are reduced as a vector.

    The powers of a vector differ in the last bits from those of scalars.
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
    # The smallest element may be finite.
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
    """One parameter has no gradient; on one rank, no parameter has one."""
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
    """Several parameter groups; some parameters have no gradient."""
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
    """A rank without gradients takes part: otherwise the other one hangs."""
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
    """Three steps of a model that two optimizers share."""
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
    """The optimizer's parameters and gradients change from step to step."""
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
    """Parameters without gradients do not change the last bits of the norm.

    In fp64, because sums of fp32 are accumulated in fp64.
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
    """Devices that are not supported are left to torch.

    The CPU stands in for one.
    """
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
    """A plain parameter beside them has a gradient, or has none either."""
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
    """`to` swaps such parameters, which fails while weak references exist."""
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
