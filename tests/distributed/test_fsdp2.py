"""FSDP2: clipping of what `fully_shard` makes of parameters."""

from copy import deepcopy

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from distributed.checks import (
    CLIPS,
    CLIPS_NOT,
    INF,
    NAN,
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
from distributed.ranks import Cases, check
from robo_orchard_fasthooks.clip import clip_grad_norm_, clip_grad_value_

CASES = Cases(__file__)
EVEN = nn.Linear(4, 6), nn.Linear(6, 2)
# None: any dtype, so that of the parameter is expected.
GRAD_DTYPES = (
    [torch.float32, None] if hasattr(torch.Tensor, "grad_dtype") else []
)
# One row for two ranks: rank 1 has an empty part of the last two parameters.
UNEVEN = nn.Linear(4, 5), nn.Linear(5, 1)


def sharded_model(layers=UNEVEN, dtype=torch.float32):
    model = nn.Sequential(*deepcopy(layers)).to(dtype)
    for param in model.parameters():
        param.data = randn(param.shape, dtype, seed=1)
    mesh = mesh_of(2)
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


def clip_by(by_hook, params, norm_type=2.0, **settings):
    """Clips by the hook or by the function; returns the norm."""
    if not by_hook:
        return clip_grad_norm_(params, CLIPS, norm_type, **settings)
    hook = norm_hook(norm_type=norm_type, **settings)
    run_hook(hook, params)
    return hook.total_norm


@CASES(layers=[EVEN, UNEVEN], norm_type=[INF, -INF, 0.0, 0.5, 1.0, 2.0, 3.0])
@CASES(dtype=[torch.bfloat16, torch.float64], max_norm=[CLIPS, CLIPS_NOT])
def norm(layers=UNEVEN, norm_type=2.0, dtype=torch.float32, max_norm=CLIPS):
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


@CASES(norm_type=[INF, 1.5, 2, 3])
def many(norm_type):
    """So many of one shape that their norms are reduced as a vector.

    The powers of a vector differ in the last bits from those of scalars.
    """
    mesh, whole = mesh_of(2), randn((100, 4, 3))
    params, oracle = (
        params_of(
            DTensor.from_local(part, mesh, [Shard(0)])
            for part in whole.chunk(2, dim=1)[dist.get_rank()]
        )
        for _ in range(2)
    )
    expected = nn.utils.clip_grad_norm_(oracle, CLIPS, norm_type)
    check_total(clip_grad_norm_(params, CLIPS, norm_type), expected)
    check_same("gradient", grads(params), grads(oracle))


@CASES(foreach=[False, True])
def by_keyword(foreach):
    params, _ = with_grads()
    oracle = copies(params)
    expected = nn.utils.clip_grad_norm_(oracle, CLIPS, foreach=False)
    check_total(clip_grad_norm_(params, CLIPS, foreach=foreach), expected)
    check_same("gradient", grads(params), grads(oracle))


@CASES(poison=[NAN, INF], rank=[0, 1], norm_type=[INF, 2, -INF])
def nonfinite(poison, rank, norm_type):
    params, whole = with_grads(poison=poison, rank=rank)
    oracle = params_of(whole)
    expected = nn.utils.clip_grad_norm_(oracle, CLIPS, norm_type)
    total = full(clip_grad_norm_(params, CLIPS, norm_type))
    check_close("total", total, expected)
    check_same("total on both ranks", from_all(total), [total] * 2)
    # The smallest element may be finite.
    if not expected.isfinite():
        found = [full(grad) for grad in grads(params)]
        check_same("gradient", found, grads(oracle))


@CASES(poison=[NAN, None], by_hook=[False, True])
def error_if_nonfinite(poison, by_hook):
    params, _ = with_grads(poison=poison, rank=1)
    oracle = copies(params)
    if poison is None:
        nn.utils.clip_grad_norm_(oracle, CLIPS)
    said = raised(lambda: clip_by(by_hook, params, error_if_nonfinite=True))
    check(("finite" in said) == (poison is not None), "raised:", said)
    check_same("gradient", grads(params), grads(oracle))


@CASES(rank=[None, 0, 1], by_hook=[False, True])
def value(rank, by_hook):
    """One parameter has no gradient; on one rank, no parameter has one."""
    params, whole = with_grads(poison=NAN)
    clamped = copies(params)
    give(clamped, [grad.clamp(-0.5, 0.5) for grad in whole])
    for index in range(4) if rank == dist.get_rank() else [2]:
        params[index].grad = clamped[index].grad = None
    if by_hook:
        run_hook(value_hook(), params)
    else:
        clip_grad_value_(params, 0.5)
    check_same("gradient", grads(params), grads(clamped))


@CASES(
    rank=[0, 1],
    missing=[(0,), (1, 2), (0, 1, 2, 3)],
    norm_type=[INF, 2, -INF],
)
def missing_on_one_rank(rank, missing, norm_type):
    """A rank without gradients takes part: otherwise the other one hangs."""
    params, _ = with_grads(EVEN)
    if dist.get_rank() == rank:
        for index in missing:
            params[index].grad = None
    before, expected = copies(params), norm_of_parts(params, norm_type)
    total = clip_grad_norm_(params, CLIPS, norm_type)
    check_clipped(total, params, before, expected)


@CASES(
    grad_dtype=GRAD_DTYPES, missing=[(1,), (0, 1, 2, 3)], norm_type=[INF, 2.0]
)
def missing_of_another_dtype(grad_dtype, missing, norm_type):
    """A rank knows of the dtypes of gradients that it lacks."""
    params = list(sharded_model(EVEN, torch.bfloat16).parameters())
    for param in params:
        param.grad_dtype = grad_dtype
    dtype = grad_dtype or torch.bfloat16
    give(params, [randn(param.shape, dtype) for param in params])
    for index in missing if dist.get_rank() == 1 else ():
        params[index].grad = None
    before = [None if g is None else local(g).clone() for g in grads(params)]
    expected = norm_of_parts(params, norm_type)
    total = full(clip_grad_norm_(params, CLIPS, norm_type))
    check(all(same(total, each) for each in from_all(total)), "total", total)
    check(total.dtype == dtype, "dtype of the total:", total.dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    check(abs(total / expected - 1) < tolerance, total, "for", expected)
    for param, old in zip(params, before, strict=True):
        if old is not None:
            scaled = old * (CLIPS / expected.to(dtype))
            good = local(param.grad).allclose(scaled, tolerance)
            check(good, "gradient", param.grad, scaled)


@CASES(norm_type=[INF, 2, -INF])
def changing(norm_type):
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


@CASES(norm_type=[1, 2], missing=[1, 33])
def missing_everywhere(norm_type, missing):
    """Parameters without gradients do not change the last bits of the norm.

    In fp64, because sums of fp32 are accumulated in fp64.
    """
    mesh = mesh_of(2)
    params, oracle = (
        params_of(
            distribute_tensor(randn((6,), torch.float64, at), mesh, [Shard(0)])
            for at in range(100)
        )
        for _ in range(2)
    )
    for param in (*params[::3][:missing], *oracle[::3][:missing]):
        param.grad = None
    expected = nn.utils.clip_grad_norm_(oracle, CLIPS, norm_type)
    check_total(clip_grad_norm_(params, CLIPS, norm_type), expected)
    check_same("gradient", grads(params), grads(oracle))


@CASES(late=[False, True])
def without_gradients(late):
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


@CASES(by_hook=[False, True])
def model_to(by_hook):
    """`to` swaps such parameters, which fails while weak references exist."""
    model = sharded_model()
    params = list(model.parameters())
    give(params, [randn(param.shape) for param in params])
    clip_by(by_hook, params)
    for param in params:
        param.grad = None
    model.to(torch.bfloat16)
    check(all(p.dtype == torch.bfloat16 for p in model.parameters()), "dtype")


test_on_ranks = CASES.as_test()
