"""FSDP1: torch's FullyShardedDataParallel, which flattens parameters."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.tensor import Partial, Replicate, Shard

import robo_orchard_fasthooks as ours
from distributed.checks import (
    CLIPS,
    CLIPS_NOT,
    INF,
    StandIn,
    backward,
    batch,
    check_clipped,
    check_close,
    check_same,
    check_total,
    copies,
    from_all,
    grads,
    make_accelerator,
    mesh_of,
    norm_hook,
    norm_of_parts,
    params_of,
    raised,
    randn,
    run_hook,
    true_norm,
    value_hook,
)
from distributed.placed import placed, reduced
from distributed.ranks import Cases, check
from helpers.fp16 import FP16

CASES = Cases(__file__)
FULL, GRAD_OP, NO = (
    ShardingStrategy.FULL_SHARD,
    ShardingStrategy.SHARD_GRAD_OP,
    ShardingStrategy.NO_SHARD,
)
# The strategies of the outer and the inner module.
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
    """The gradients of one process on the whole batch, by name."""
    model = backward(nested_model(), batch())
    return {name: param.grad for name, param in model.named_parameters()}


@CASES(flat=[False, True], strategies=STRATEGIES, norm_type=[2, INF])
@CASES(flat=[False, True], norm_type=[1], max_norm=[CLIPS_NOT])
def norm(flat, norm_type, strategies=(FULL, FULL), max_norm=CLIPS):
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


@CASES(flat=[False, True])
def half(flat):
    """Norms are in fp32, coefficients in the gradients' dtype, as in FSDP.

    torch's default dtype does not count.
    """
    model, oracle = (
        backward(fsdp1_model(flat, dtype=torch.bfloat16)) for _ in range(2)
    )
    expected = oracle.clip_grad_norm_(0.1)
    hook = norm_hook(0.1)
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


@CASES(flat=[False, True], strategies=[(FULL, FULL), (FULL, NO)])
def value(flat, strategies):
    """Clamping is elementwise, so each rank can clamp its own part."""
    model = backward(fsdp1_model(flat, strategies))
    expected = [
        None if grad is None else grad.clamp(-0.5, 0.5)
        for grad in grads(model.parameters())
    ]
    run_hook(value_hook(), model.parameters(), model=model)
    check_same("gradient", grads(model.parameters()), expected)


def check_subset(root, params, names, norm_type=2.0, **settings):
    """Checks that the hook clips these parameters and no others."""
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
# When they are sharded, rank 0 has no part of these.
BIASES = "0.bias", "1.0.bias", "2.bias"


@CASES(
    names=[WEIGHTS, BIASES, BIASES[2:], (BIASES + WEIGHTS)[::-1]],
    norm_type=[2, INF],
)
@CASES(names=[WEIGHTS, BIASES], norm_type=[2], strategies=STRATEGIES[1:])
def some_parameters(names, norm_type, strategies=(FULL, FULL)):
    model = backward(fsdp1_model(False, strategies))
    params = [named(model)[name] for name in names]
    if names == BIASES and strategies == (FULL, FULL):
        alone = all(grad is None for grad in grads(params))
        check(alone == (dist.get_rank() == 0), "who has no gradients")
    check_subset(model, params, names, norm_type, model=model)


OUTER = "_flat_param", ("0.weight", "0.bias", "2.weight", "2.bias")
INNER = "1._flat_param", ("1.0.weight", "1.0.bias")


@CASES(chosen=[(OUTER,), (INNER, OUTER)])
def some_flat_parameters(chosen):
    model = backward(fsdp1_model(True))
    params = [named(model)[flat] for flat, _ in chosen]
    names = [name for _, names in chosen for name in names]
    check_subset(model, params, names, model=model)


@CASES()
def two_optimizers():
    """Each has half of the parameters; the accelerator knows the model."""
    model = backward(fsdp1_model(False))
    accelerator = make_accelerator(StandIn)
    accelerator._models.append(model)
    for names in (WEIGHTS, BIASES):
        params = [named(model)[name] for name in names]
        check_subset(model, params, names, accelerator=accelerator)


@CASES(strategies=STRATEGIES[::2])
def changing(strategies):
    """The optimizer gets other parameters: as many, or the same ones twice."""
    model = backward(fsdp1_model(False, strategies))
    optimizer, whole = torch.optim.SGD(model.parameters()), whole_grads()
    hook = norm_hook(CLIPS_NOT)
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
        expected = true_norm([whole[name] for name in names])
        check_close("total", hook.total_norm, expected)


@CASES(flat=[False, True], known_to=["arguments", "accelerator"])
def inside_a_plain_module(flat, known_to):
    """A plain parameter beside it, equal on both ranks, is counted once."""
    outer = nn.Module()
    outer.sharded = backward(fsdp1_model(flat))
    (outer.plain,) = params_of([10 * randn((3,))])
    accelerator = make_accelerator(StandIn)
    if known_to == "accelerator":
        accelerator._models.append(outer)
    params = list(outer.parameters())
    before = copies(params)
    expected = true_norm([*whole_grads().values(), outer.plain.grad])
    hook = norm_hook()
    model = outer if known_to == "arguments" else None
    run_hook(hook, params, accelerator, model=model)
    check_clipped(hook.total_norm, params, before, expected)


@CASES(flat=[True], start=[0])
@CASES(flat=[False], start=[0, 5])
def of_an_unknown_module(flat, start):
    """An error on rank 0, too, which has no part of the last parameter."""
    params = list(backward(fsdp1_model(flat)).parameters())[start:]
    before = copies(params)
    said = raised(lambda: run_hook(norm_hook(), params))
    check("parameter" in said, "raised:", said)
    check_same("gradient", grads(params), grads(before))


@CASES(change=[{"norm_type": 0}, {}])
def under_a_scaler(change):
    """A step that fails changes nothing, and the next one works."""
    accelerator = make_accelerator(FP16)
    model = fsdp1_model(False)
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=0.0)
    hook = norm_hook(1.0, error_if_nonfinite=True)
    args = ours.PipelineHookArgs(accelerator, optimizer=optimizer, model=model)

    def scaled_backward(factor=1.0):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 4)).sum() * factor
        accelerator.scaler.scale(loss).backward()

    def step():
        with hook.begin("on_step", args):
            pass

    scaled_backward(1.0 if change else INF)
    before, known = copies(params), vars(hook).copy()
    vars(hook).update(change)
    for _ in range(2):
        said = raised(step, (ValueError, RuntimeError))
        check(("norm_type" if change else "not finite") in said, said)
        check_same("gradient", grads(params), grads(before))
    vars(hook).update(known)
    scaled_backward()
    expected = norm_of_parts(params, 2.0) / accelerator.scaler.get_scale()
    step()
    check_close("total", hook.total_norm, expected)
    accelerator.scaler.step(optimizer)
    accelerator.scaler.update()


# Beside DTensors in one optimizer.


@CASES(
    flat=[False, True],
    norm_type=[INF, 2.0],
    chosen=[(Shard(0),), (Partial(), Replicate(), None)],
)
@CASES(flat=[False], norm_type=[2.0], chosen=[(Shard(0),)], strategy=[NO])
def beside_dtensors(flat, norm_type, chosen, strategy=FULL):
    model = backward(fsdp1_model(flat, (strategy, strategy)))
    sharded = list(model.parameters())
    others = [
        placed(placement, mesh_of(2), seed=seed)
        for seed, placement in enumerate(chosen)
    ]
    before, whole = copies(sharded), reduced(others)
    expected = true_norm([*whole_grads().values(), *whole], norm_type)
    hook = norm_hook(norm_type=norm_type)
    run_hook(hook, [*sharded, *others], model=model)
    check(type(hook.total_norm) is torch.Tensor, hook.total_norm)
    check_clipped(hook.total_norm, sharded, before, expected)
    for found, old in zip(reduced(others), whole, strict=True):
        check_close("gradient", found, old * CLIPS / (expected + 1e-6))


@CASES()
def beside_dtensors_without_gradients():
    """Which have no part in a norm of which the smallest count."""
    model = backward(fsdp1_model(False))
    params = list(model.parameters())
    mine = [grad for grad in grads(params) if grad is not None]
    other = placed(Shard(0), mesh_of(2))
    other.grad = None
    hook = norm_hook(CLIPS_NOT, norm_type=-INF)
    run_hook(hook, [*params, other], model=model)
    expected = true_norm(sum(from_all(mine), []), -INF)
    check(expected > 0, "a gradient is zero")
    check_close("total", hook.total_norm, expected)


test_on_ranks = CASES.as_test()
