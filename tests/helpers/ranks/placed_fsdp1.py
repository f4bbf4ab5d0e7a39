"""Parameters of FullyShardedDataParallel and DTensors in one optimizer."""

import torch
from torch.distributed.tensor import (
    Partial,
    Replicate,
    Shard,
)

from helpers.ranks.cases import case, check
from helpers.ranks.checks import (
    CLIPS,
    CLIPS_NOT,
    INF,
    backward,
    check_close,
    from_all,
    full,
    grads,
    mesh_of,
    norm_hook,
    run_hook,
    true_norm,
    value_hook,
)
from helpers.ranks.fsdp1 import FULL, NO, fsdp1_model, whole_grads
from helpers.ranks.placing import (
    placed,
    reduced,
)


@case(
    "placements",
    flat=[False, True],
    strategies=[(FULL, FULL), (NO, NO)],
    norm_type=[INF, 1.0, 2.0],
    chosen=[(Shard(0),), (Partial(), Replicate(), None)],
    max_norm=[CLIPS, CLIPS_NOT],
)
def fsdp1_beside_dtensors(flat, strategies, norm_type, chosen, max_norm):
    model = backward(fsdp1_model(flat, strategies))
    sharded = list(model.parameters())
    others = [
        placed(placement, mesh_of(2), seed=seed)
        for seed, placement in enumerate(chosen)
    ]
    before = [
        None if grad is None else grad.clone() for grad in grads(sharded)
    ]
    whole = reduced(others)
    expected = true_norm([*whole_grads().values(), *whole], norm_type)
    hook = norm_hook(max_norm, norm_type=norm_type)
    run_hook(hook, [*sharded, *others], model=model)
    check(type(hook.total_norm) is torch.Tensor, hook.total_norm)
    check_close("total", hook.total_norm, expected)
    coefficient = (max_norm / (expected + 1e-6)).clamp(max=1)
    for found, old in zip(grads(sharded), before, strict=True):
        if old is not None:
            check_close("gradient of FSDP", found, old * coefficient)
    for found, old in zip(reduced(others), whole, strict=True):
        check_close("gradient", found, old * coefficient)


@case("placements", flat=[False, True], without=[False, True])
def fsdp1_beside_dtensors_by_value(flat, without):
    model = backward(fsdp1_model(flat))
    sharded = list(model.parameters())
    others = [placed(each, mesh_of(2)) for each in (Shard(0), Partial())]
    if without:
        for param in others:
            param.grad = None
    expected = [
        None if grad is None else full(grad).clamp(-0.5, 0.5)
        for grad in grads([*sharded, *others])
    ]
    run_hook(value_hook(0.5), [*sharded, *others], model=model)
    for param, wanted in zip([*sharded, *others], expected, strict=True):
        check((param.grad is None) == (wanted is None), "None or not")
        if wanted is not None:
            check(torch.equal(full(param.grad), wanted), param.grad, wanted)


@case("placements", norm_type=[-INF, -1.0])
def fsdp1_beside_dtensors_without_gradients(norm_type):
    """Which have no part in a norm of which the smallest count."""
    model = backward(fsdp1_model(False))
    params = list(model.parameters())
    mine = [grad for grad in grads(params) if grad is not None]
    other = placed(Shard(0), mesh_of(2))
    other.grad = None
    hook = norm_hook(CLIPS_NOT, norm_type=norm_type)
    run_hook(hook, [*params, other], model=model)
    expected = true_norm(sum(from_all(mine), []), norm_type)
    check(expected > 0, "a gradient is zero")
    check_close("total", hook.total_norm, expected)
