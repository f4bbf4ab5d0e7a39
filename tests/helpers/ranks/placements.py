"""Gradients of every placement, side by side."""

from contextlib import contextmanager
from operator import is_

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import (
    SequenceParallel,
    parallelize_module,
)

from helpers.ranks.cases import case, check
from helpers.ranks.checks import (
    CLIPS,
    CLIPS_NOT,
    INF,
    check_close,
    check_same,
    check_total,
    from_all,
    full,
    grads,
    local,
    make_accelerator,
    mesh_of,
    norm_hook,
    params_of,
    run_hook,
    true_norm,
)
from helpers.ranks.placing import (
    IN_PLACE_ON_PARTS,
    OPERATIONS,
    WAYS,
    OfItsOwn,
    check_clips,
    clip,
    clip_values,
    placed,
    reduced,
    refusal,
    scale_parts_,
    twins,
    unchanged,
)
from robo_orchard_fasthooks._clipping.local import DEVICES
from robo_orchard_fasthooks.clip import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)

# Gradients that are still to be reduced.


@case("placements", way=[None, *WAYS], max_norm=[1.0, CLIPS_NOT])
def sequence_parallel(way, max_norm):
    """A norm's Partial gradients beside the plain ones of a linear layer."""
    torch.manual_seed(0)
    mesh, rank = mesh_of(2), dist.get_rank()
    norm = parallelize_module(nn.LayerNorm(8), mesh, SequenceParallel())
    head = nn.Linear(8, 2)
    inputs = torch.randn(2, 4, 8).chunk(2, 1)[rank].contiguous()
    hidden = norm(DTensor.from_local(inputs, mesh, [Shard(1)]))
    head(hidden.full_tensor()).square().sum().backward()
    params = [*norm.parameters(), *head.parameters()]
    check(any(p.is_partial() for p in params[0].grad.placements), "Partial")
    oracle = twins(params)
    accelerator = make_accelerator()
    expected = accelerator.clip_grad_norm_(oracle, max_norm)
    scale_parts_(oracle, expected, max_norm)
    check(round(expected.item(), 4) == 15.8782, "accelerate's", expected)
    if way is None:
        hook = norm_hook(max_norm)
        run_hook(hook, params, accelerator)
        total = hook.total_norm
    else:
        total = clip(way, params, max_norm)
    check_total(total, expected)
    check_same("gradient", grads(params), grads(oracle))


@case(
    "placements",
    operation=OPERATIONS,
    beside=[(), (None,), (Shard(0),), (Replicate(), None, Shard(1))],
    norm_type=[INF, 1.0, 2.0, 3.0, -INF],
    max_norm=[CLIPS, CLIPS_NOT],
    way=WAYS,
)
def parts(operation, beside, norm_type, max_norm, way):
    """torch cannot scale parts of a maximum, and norms the largest part."""
    mesh = mesh_of(2)
    params = [
        placed(placement, mesh, seed=seed)
        for seed, placement in enumerate((Partial(operation), *beside))
    ]
    check_clips(lambda *args: clip(way, *args), params, max_norm, norm_type)


@case(
    "placements",
    placements=[
        (Shard(0), Partial()),
        (Partial(), Shard(1)),
        (Partial(), Partial()),
        (Replicate(), Partial("max")),
    ],
    shape=[(1, 2), (2, 1)],
    way=WAYS,
)
def parts_on_two_dimensions(placements, shape, way):
    params = [placed(placements, mesh_of(*shape)), placed(None, None, seed=1)]
    check_clips(lambda *args: clip(way, *args), params, CLIPS)


@case(
    "placements",
    operation=OPERATIONS,
    beside=[(), (None, Shard(0))],
    way=["hook", "function"],
    poison=[None, torch.nan],
)
def parts_by_value(operation, beside, way, poison):
    """torch clamps parts of a maximum, but refuses those of a sum."""
    mesh = mesh_of(2)
    params = [
        placed(placement, mesh, seed=seed)
        for seed, placement in enumerate((Partial(operation), *beside))
    ]
    # gloo's maximum and minimum may drop NaN.
    if poison is not None and operation in {"sum", "avg"}:
        local(params[0].grad)[0, 0] = poison
    expected = [grad.clamp(-0.5, 0.5) for grad in reduced(params)]
    objects = grads(params)
    clip_values(way, params, 0.5)
    for index, (found, wanted) in enumerate(
        zip(reduced(params), expected, strict=True)
    ):
        equal = torch.allclose(found, wanted, rtol=0, atol=0, equal_nan=True)
        check(equal, index, found, "for", wanted)
    check(all(map(is_, objects, grads(params))), "other objects")


@case(
    "placements",
    placements=[(Shard(0), Partial()), (Partial(), Shard(1))],
    shape=[(1, 2), (2, 1)],
)
def parts_by_value_on_two_dimensions(placements, shape):
    params = [placed(placements, mesh_of(*shape))]
    expected = [grad.clamp(-0.5, 0.5) for grad in reduced(params)]
    clip_grad_value_(params, 0.5)
    check(torch.equal(*reduced(params), *expected), grads(params))


@case("placements", mode=["norm", "value", "halves"], way=["hook", "function"])
def parts_of_a_product(mode, way):
    """Scaling them would multiply the coefficient: refused by name."""
    mesh = mesh_of(2)
    params = [placed(None, mesh), placed(Shard(0), mesh)]
    params.append(placed(Partial("product"), mesh))
    if mode == "norm":
        run = lambda: clip(way, params, CLIPS)  # noqa: E731
    elif mode == "value":
        run = lambda: clip_values(way, params, 0.1)  # noqa: E731
    else:
        one = torch.tensor(1.0)
        run = lambda: clip_grads_with_norm_(params, CLIPS, one)  # noqa: E731
    with unchanged(params):
        said = refusal(run)
    check("parameter 2" in said and "product" in said, "said:", said)
    params[2].grad = None
    check(refusal(run) == "", "refused without it")


# What this package does not know is left to torch, group by group.


@case("placements", way=WAYS, norm_type=[2.0, INF])
def a_gradient_that_is_a_parameter(way, norm_type):
    """Of a class that torch's own functions know, after a DTensor."""
    mesh = mesh_of(2)
    params = [placed(Shard(0), mesh), placed(None, mesh, seed=1)]
    params[1].grad = nn.Parameter(params[1].grad)
    check_clips(lambda *args: clip(way, *args), params, CLIPS, norm_type)


@case("placements", way=WAYS, placement=[Shard(0), Partial()])
def of_plain_parameters(way, placement):
    """DTensors that plain parameters have for gradients."""
    mesh = mesh_of(2)
    params = [placed(None, mesh, seed=seed) for seed in range(3)]
    params[1].grad = placed(placement, mesh, seed=3).grad
    check_clips(lambda *args: clip(way, *args), params, CLIPS)


@case("placements", way=["hook", "function"], placement=[Shard(0), Partial()])
def of_plain_parameters_by_value(way, placement):
    mesh = mesh_of(2)
    params = [placed(None, mesh, seed=seed) for seed in range(3)]
    params[1].grad = placed(placement, mesh, seed=3).grad
    expected = [grad.clamp(-0.5, 0.5) for grad in reduced(params)]
    clip_values(way, params, 0.5)
    check(all(map(torch.equal, reduced(params), expected)), grads(params))


@contextmanager
def no_known_device():
    """Everything is left to torch, as on a device of an unknown type."""
    before = DEVICES.copy()
    DEVICES.clear()
    try:
        yield
    finally:
        DEVICES.update(before)


@case(
    "placements",
    way=WAYS,
    chosen=[
        (Shard(0),),
        *([(Partial(), None)] if IN_PLACE_ON_PARTS else []),
        (Shard(0), None, Replicate()),
    ],
    norm_type=[2.0, INF],
)
def left_to_torch(way, chosen, norm_type):
    with no_known_device():
        params = [
            placed(placement, mesh_of(2), seed=seed)
            for seed, placement in enumerate(chosen)
        ]
        check_clips(lambda *args: clip(way, *args), params, CLIPS, norm_type)


@case("placements", way=WAYS if IN_PLACE_ON_PARTS else [])
def torch_refuses(way):
    """Before anything of the others has changed."""
    mesh = mesh_of(2)
    params = [placed(None, mesh), placed(Shard(0), mesh)]
    other = mesh_of(2, names="b")
    params.append(placed(OfItsOwn("max"), other))
    raised = False
    with unchanged(params):
        try:
            clip(way, params, CLIPS)
        except RuntimeError as error:
            raised = "in-place operations" in str(error)
    check(raised, "not refused")


# The norm that a hook shows, and that a function returns.


@case("placements", norm_type=[INF, 2.0])
def total_norm_of_the_hook(norm_type):
    """torch's own is 3.0 on one rank and 7.0 on the other, for inf."""
    mesh = mesh_of(2)
    params = params_of([distribute_tensor(torch.tensor([3.0, 7]), mesh)])
    params[0].grad = distribute_tensor(
        torch.tensor([3.0, 7.0]), mesh, [Shard(0)]
    )
    params.append(placed(Replicate(), mesh, (2,)))
    parts = torch.tensor([0.5, -0.25])
    params[1].grad = DTensor.from_local(parts, mesh, [Partial()])
    expected = true_norm(reduced(params), norm_type)
    total = clip("hook", params, CLIPS, norm_type)
    check_close("total", total, expected)
    check_same("total on all ranks", from_all(total), 2 * [total])


@case(
    "placements",
    chosen=[(Shard(0),), (Partial(), Shard(0)), (Partial("max"), Replicate())],
    norm_type=[2.0, INF],
    known=[True, False],
)
def what_functions_return(chosen, norm_type, known):
    """A DTensor for one mesh, as torch's functions; a hook's is plain."""
    mesh = mesh_of(2)
    params = [
        placed(placement, mesh, seed=seed)
        for seed, placement in enumerate(chosen)
    ]
    expected = true_norm(reduced(params), norm_type)
    if known:
        totals = {
            "function": clip_grad_norm_(params, CLIPS_NOT, norm_type),
            "half": get_total_norm(grads(params), norm_type),
        }
    elif any(
        type(each) is Partial and each.reduce_op == "max" for each in chosen
    ):
        return  # torch cannot scale it.
    else:
        with no_known_device():
            totals = {
                "function": clip_grad_norm_(params, CLIPS_NOT, norm_type)
            }
    for name, total in totals.items():
        check(isinstance(total, DTensor), name, type(total))
        check_close(name, full(total), expected)
    total = clip("hook", params, CLIPS_NOT, norm_type)
    check_close("hook", total, expected)


@case(
    "placements",
    of=["plain", "replicated", "sharded over ranks"],
    beside=[(Shard(0),), (Shard(0), None), (None,)],
)
def norms_that_are_given(of, beside):
    mesh = mesh_of(2)
    params = [
        placed(placement, mesh, seed=seed)
        for seed, placement in enumerate(beside)
    ]
    expected = [grad * (0.5 / (2.0 + 1e-6)) for grad in reduced(params)]
    total = torch.tensor(2.0)
    if of == "replicated":
        total = DTensor.from_local(total, mesh, [Replicate()])
    elif of == "sharded over ranks":  # As torch returns inf-norms.
        mine = torch.tensor(2.0 - dist.get_rank())
        total = DTensor.from_local(mine, mesh, [Partial("max")])
    clip_grads_with_norm_(params, 0.5, total)
    for found, wanted in zip(reduced(params), expected, strict=True):
        check_close("gradient", found, wanted)
