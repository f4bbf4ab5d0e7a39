"""DTensor gradients that are refused before anything has changed."""

import torch
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Shard

from helpers.fp16 import FP16
from helpers.ranks.cases import case, check
from helpers.ranks.checks import (
    CLIPS,
    check_close,
    grads,
    local,
    mesh_of,
    norm_hook,
    params_of,
    raised,
    run_hook,
    value_hook,
)
from helpers.ranks.placing import (
    IN_PLACE_ON_PARTS,
    OPERATIONS,
    OfItsOwn,
    clip,
    clip_values,
    placed,
    reduced,
    refusal,
    unchanged,
)
from robo_orchard_fasthooks.clip import clip_grad_value_


def with_a_scaler():
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator = FP16()
    accelerator.scaler.scale(torch.zeros(1))  # Its first use makes the scale.
    return accelerator


def check_next_step(hook, params, accelerator):
    """Of gradients that are shards, which are 8 times theirs."""
    optimizer = torch.optim.SGD(params)
    for _ in range(2):
        for index, param in enumerate(params):
            param.grad = placed(Shard(0), mesh_of(2), seed=index).grad
        oracle = params_of([grad / 8.0 for grad in reduced(params)])
        run_hook(hook, optimizer, accelerator)
        if hook.clip_mode == "norm":
            nn.utils.clip_grad_norm_(oracle, hook.max_norm)
        else:
            nn.utils.clip_grad_value_(oracle, hook.clip_value)
        for found, wanted in zip(reduced(params), grads(oracle), strict=True):
            check_close("gradient", found, wanted)
        accelerator.scaler.step(optimizer)
        accelerator.scaler.update()


@case("placements", hook=[norm_hook, value_hook])
def parts_of_a_product_under_a_scaler(hook):
    """Which unscales them without an error, and so each of their factors."""
    hook, accelerator = hook(), with_a_scaler()
    mesh = mesh_of(2)
    params = [placed(Shard(0), mesh), placed(Partial("product"), mesh)]
    optimizer = torch.optim.SGD(params)
    for _ in range(2):
        with unchanged(params):
            said = refusal(lambda: run_hook(hook, optimizer, accelerator))
        check("parameter 1" in said and "product" in said, "said:", said)
    check_next_step(hook, params, accelerator)


@case("placements", operation=OPERATIONS)
def parts_are_scaled_again(operation):
    """torch unscales parts of a maximum in place, but cannot scale them."""
    hook = norm_hook(1.0, error_if_nonfinite=True)
    accelerator = with_a_scaler()
    mesh = mesh_of(2)
    params = [placed(Shard(0), mesh), placed(Partial(operation), mesh)]
    local(params[0].grad)[0, 0] = torch.inf
    optimizer = torch.optim.SGD(params)
    for _ in range(2):
        with unchanged(params):
            said = raised(lambda: run_hook(hook, optimizer, accelerator))
        check("is not finite" in said, "said:", said)
    accelerator.scaler.update()
    accelerator.scaler.update(8.0)
    check_next_step(hook, params, accelerator)


@case("placements", operation=OPERATIONS, way=["function", "halves"])
def a_negative_norm(operation, way):
    """torch turns gradients around; of parts, max would become min."""
    mesh = mesh_of(2)
    params = [placed(None, mesh), placed(Partial(operation), mesh, seed=1)]
    oracle = params_of(reduced(params))
    if operation in {"max", "min"}:
        with unchanged(params):
            said = refusal(lambda: clip(way, params, -1.0))
        check("parameter 1" in said and operation in said, "said:", said)
        return
    nn.utils.clip_grad_norm_(oracle, -1.0)
    clip(way, params, -1.0)
    for found, wanted in zip(reduced(params), grads(oracle), strict=True):
        check_close("gradient", found, wanted)


@case("placements", operation=OPERATIONS)
def a_negative_value(operation):
    """torch makes each element clip_value."""
    mesh = mesh_of(2)
    params = [placed(None, mesh), placed(Partial(operation), mesh, seed=1)]
    oracle = params_of(reduced(params))
    nn.utils.clip_grad_value_(oracle, -0.5)
    clip_grad_value_(params, -0.5)
    for found, wanted in zip(reduced(params), grads(oracle), strict=True):
        check_close("gradient", found, wanted)


@case("placements", mode=["norm", "value"], way=["hook", "function"])
def a_local_tensor_that_is_expanded(mode, way):
    """The DTensor may claim to be contiguous."""
    mesh = mesh_of(2)
    params = [placed(Shard(0), mesh), placed(Shard(0), mesh)]
    params[1].grad = DTensor.from_local(
        torch.tensor(5.0).expand(2, 6),
        mesh,
        [Shard(0)],
        shape=params[1].shape,
        stride=params[1].stride(),
    )
    run = clip if mode == "norm" else clip_values
    with unchanged(params):
        said = refusal(lambda: run(way, params, CLIPS))
    check("parameter 1" in said and "share memory" in said, "said:", said)


@case("placements", way=["hook", "function"] if IN_PLACE_ON_PARTS else [])
def torch_refuses_by_value(way):
    """Before it has clamped what comes first in the list."""
    mesh = mesh_of(2)
    params = [placed(Shard(0), mesh), placed(OfItsOwn("sum"), mesh)]
    with unchanged(params):
        said = raised(lambda: clip_values(way, params, CLIPS))
    check("in-place operations" in said, "said:", said)
