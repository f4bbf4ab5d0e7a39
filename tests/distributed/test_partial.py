"""Gradients that have yet to be reduced, and gradients that are refused."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
)
from torch.distributed.tensor.parallel import (
    SequenceParallel,
    parallelize_module,
)

from distributed.checks import (
    CLIPS,
    INF,
    check_close,
    check_same,
    grads,
    local,
    make_accelerator,
    mesh_of,
    norm_hook,
    params_of,
    raised,
    run_hook,
    value_hook,
)
from distributed.placed import (
    IN_PLACE_ON_PARTS,
    OPERATIONS,
    WAYS,
    check_clips,
    clip,
    clip_values,
    placed,
    reduced,
    refusal,
    unchanged,
)
from distributed.ranks import Cases, check
from helpers.fp16 import FP16
from robo_orchard_fasthooks._clipping.local import DEVICES
from robo_orchard_fasthooks.clip import clip_grads_with_norm_

CASES = Cases(__file__)


def several(*placements):
    """A parameter for each placement, on one mesh."""
    mesh = mesh_of(2)
    return [placed(p, mesh, seed=seed) for seed, p in enumerate(placements)]


@CASES(way=WAYS)
def sequence_parallel(way):
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
    check_clips(way, params, 1.0)


@CASES(operation=OPERATIONS, norm_type=[INF, 1.0, 2.0, -INF], way=["function"])
@CASES(operation=["sum", "max"], norm_type=[INF, 2], way=["hook", "halves"])
def by_norm(operation, norm_type, way):
    """torch cannot scale parts of a maximum, and norms the largest part."""
    beside = Replicate(), None, Shard(1)
    params = several(Partial(operation), *beside)
    check_clips(way, params, CLIPS, norm_type)


@CASES(operation=["max", "min"], way=["hook", "function"])
def extrema_by_value(operation, way):
    params = several(Partial(operation), None, Shard(0))
    expected = [grad.clamp(-0.5, 0.5) for grad in reduced(params)]
    clip_values(way, params, 0.5)
    check_same("gradient", reduced(params), expected)


REFUSED = [
    *(("sum", "value"), ("avg", "value"), ("product", "norm")),
    *(("product", "value"), ("product", "halves")),
    *(("expanded", "norm"), ("expanded", "value")),
]


@CASES(what=REFUSED, way=["hook", "function"])
def refused(what, way):
    """By name; clamped parts, for one, are not parts of the clamped.

    The DTensor of an expanded tensor may claim to be contiguous.
    """
    kind, mode = what
    placement = Shard(0) if kind == "expanded" else Partial(kind)
    params = several(None, Shard(0), placement)
    if kind == "expanded":
        params[2].grad = DTensor.from_local(
            torch.tensor(5.0).expand(2, 6),
            params[2].device_mesh,
            [placement],
            shape=params[2].shape,
            stride=params[2].stride(),
        )

    def run():
        if mode == "norm":
            clip(way, params, CLIPS)
        elif mode == "value":
            clip_values(way, params, 0.1)
        else:
            clip_grads_with_norm_(params, CLIPS, torch.ones(()))

    with unchanged(params):
        said = refusal(run)
    why = "share memory" if kind == "expanded" else f"Partial({kind!r})"
    check("parameter 2" in said and why in said, "said:", said)
    params[2].grad = None
    check(refusal(run) == "", "refused without it")


# Under a GradScaler.


def check_next_step(hook, params, accelerator):
    """Of gradients that are shards, which are 8 times theirs."""
    optimizer = torch.optim.SGD(params)
    shards = several(*[Shard(0)] * len(params))
    for param, fresh in zip(params, shards, strict=True):
        param.grad = fresh.grad
    oracle = params_of([grad / 8.0 for grad in reduced(params)])
    run_hook(hook, optimizer, accelerator)
    if hook.clip_mode == "norm":
        nn.utils.clip_grad_norm_(oracle, hook.max_norm)
    else:
        nn.utils.clip_grad_value_(oracle, hook.clip_value)
    for found, wanted in zip(reduced(params), grads(oracle), strict=True):
        check_close("gradient", found, wanted)


def with_a_scaler():
    accelerator = make_accelerator(FP16)
    accelerator.scaler.scale(torch.zeros(1))  # Its first use makes the scale.
    return accelerator


@CASES(hook=[norm_hook, value_hook])
def products_under_a_scaler(hook):
    """Which unscales them without an error, and so each of their factors."""
    hook, accelerator = hook(), with_a_scaler()
    params = several(Shard(0), Partial("product"))
    optimizer = torch.optim.SGD(params)
    for _ in range(2):
        with unchanged(params):
            said = refusal(lambda: run_hook(hook, optimizer, accelerator))
        check("parameter 1" in said and "product" in said, "said:", said)
    check_next_step(hook, params, accelerator)


@CASES(operation=["sum", "max"])
def parts_are_scaled_again(operation):
    """torch unscales parts of a maximum in place, but cannot scale them."""
    hook = norm_hook(1.0, error_if_nonfinite=True)
    accelerator = with_a_scaler()
    params = several(Shard(0), Partial(operation))
    local(params[0].grad)[0, 0] = torch.inf
    optimizer = torch.optim.SGD(params)
    for _ in range(2):
        with unchanged(params):
            said = raised(lambda: run_hook(hook, optimizer, accelerator))
        check("is not finite" in said, "said:", said)
    accelerator.scaler.update()
    accelerator.scaler.update(8.0)
    check_next_step(hook, params, accelerator)


# What this package does not know is left to torch, group by group.


@CASES(way=WAYS)
def a_gradient_that_is_a_parameter(way):
    """Of a class that torch's own functions know, after a DTensor."""
    params = several(Shard(0), None)
    params[1].grad = nn.Parameter(params[1].grad)
    check_clips(way, params, CLIPS)


@CASES(way=WAYS, placement=[Shard(0), Partial()])
def of_plain_parameters(way, placement):
    """DTensors that plain parameters have for gradients."""
    params = several(None, None, None)
    params[1].grad = placed(placement, mesh_of(2), seed=3).grad
    check_clips(way, params, CLIPS)


@CASES(way=WAYS, chosen=[(Shard(0),), (Shard(0), None, Replicate())])
def on_another_device(way, chosen):
    """Everything is left to torch; the CPU stands in for such a device."""
    known = DEVICES.copy()
    DEVICES.clear()
    try:
        check_clips(way, several(*chosen), CLIPS)
    finally:
        DEVICES.update(known)


class OfItsOwn(Partial):
    """A placement that this package leaves to torch.

    torch scales none of "max" in place, and clamps none of "sum".
    """


@CASES(way=WAYS if IN_PLACE_ON_PARTS else [])
def torch_refuses(way):
    """Before anything of the others has changed."""
    other = placed(OfItsOwn("max"), mesh_of(2, names="b"))
    params = [*several(None, Shard(0)), other]
    with unchanged(params):
        said = raised(lambda: clip(way, params, CLIPS))
    check("in-place operations" in said, "said:", said)


@CASES(
    of=["plain", "replicated", "sharded over ranks"],
    beside=[(Shard(0),), (Shard(0), None), (None,)],
)
def norms_that_are_given(of, beside):
    params = several(*beside)
    expected = [grad * (0.5 / (2.0 + 1e-6)) for grad in reduced(params)]
    total = torch.tensor(2.0)
    if of == "replicated":
        total = DTensor.from_local(total, mesh_of(2), [Replicate()])
    elif of == "sharded over ranks":  # As torch returns inf-norms.
        mine = torch.tensor(2.0 - dist.get_rank())
        total = DTensor.from_local(mine, mesh_of(2), [Partial("max")])
    clip_grads_with_norm_(params, 0.5, total)
    for found, wanted in zip(reduced(params), expected, strict=True):
        check_close("gradient", found, wanted)


test_on_ranks = CASES.as_test()
