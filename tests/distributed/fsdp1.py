"""FSDP1: torch's FullyShardedDataParallel, which flattens parameters."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.tensor import Partial, Replicate, Shard

from distributed.checks import (
    CLIPS,
    CLIPS_NOT,
    INF,
    NAN,
    StandIn,
    assert_clipped,
    assert_close,
    assert_same,
    assert_total,
    backward,
    batch,
    copies,
    from_all,
    grads,
    make_accelerator,
    mesh_of,
    norm_hook,
    norm_of_parts,
    params_of,
    randn,
    run_hook,
    true_norm,
    value_hook,
)
from distributed.placed import placed, reduced
from helpers.fp16 import FP16

FULL, GRAD_OP, NO = (
    ShardingStrategy.FULL_SHARD,
    ShardingStrategy.SHARD_GRAD_OP,
    ShardingStrategy.NO_SHARD,
)
# The strategies of the outer and the inner module.
STRATEGIES = [(FULL, FULL), (GRAD_OP, GRAD_OP), (NO, NO), (FULL, NO)]
FLAT = pytest.mark.parametrize("flat", [False, True])


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


@FLAT
@pytest.mark.parametrize("strategies", STRATEGIES)
@pytest.mark.parametrize(
    ("norm_type", "max_norm"), [(2, CLIPS), (INF, CLIPS), (1, CLIPS_NOT)]
)
def test_norm(flat, strategies, norm_type, max_norm):
    model, oracle = (backward(fsdp1_model(flat, strategies)) for _ in range(2))
    expected = oracle.clip_grad_norm_(max_norm, norm_type)
    hook = norm_hook(max_norm, norm_type=norm_type)
    run_hook(hook, model.parameters(), model=model)
    assert_total(hook.total_norm, expected)
    assert_same(grads(model.parameters()), grads(oracle.parameters()))
    assert_close(
        hook.total_norm,
        true_norm(whole_grads().values(), norm_type),
    )


@FLAT
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("norm_type", [2, INF])
def test_nan_on_one_rank(flat, rank, norm_type):
    model = backward(fsdp1_model(flat))
    mine = [grad for grad in grads(model.parameters()) if grad is not None]
    if dist.get_rank() == rank:
        mine[-1].flatten()[-1] = NAN
    hook = norm_hook(norm_type=norm_type)
    run_hook(hook, model.parameters(), model=model)
    assert hook.total_norm.isnan()
    assert all(grad.isnan().all() for grad in mine)


@FLAT
def test_half(flat):
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
    assert_total(hook.total_norm.to(torch.bfloat16), expected)
    assert hook.total_norm.dtype == torch.float32
    assert_same(grads(model.parameters()), grads(oracle.parameters()))


@FLAT
@pytest.mark.parametrize("strategies", [(FULL, FULL), (FULL, NO)])
def test_value(flat, strategies):
    """Clamping is elementwise, so each rank can clamp its own part."""
    model = backward(fsdp1_model(flat, strategies))
    expected = [
        None if grad is None else grad.clamp(-0.5, 0.5)
        for grad in grads(model.parameters())
    ]
    run_hook(value_hook(), model.parameters(), model=model)
    assert_same(grads(model.parameters()), expected)


def assert_subset(root, params, names, norm_type=2.0, **settings):
    """Checks that the hook clips these parameters and no others."""
    chosen = set(params)
    others = [param for param in root.parameters() if param not in chosen]
    before, kept = copies(params), copies(others)
    whole = whole_grads()
    expected = true_norm([whole[name] for name in names], norm_type)
    hook = norm_hook(norm_type=norm_type)
    run_hook(hook, params, **settings)
    assert_clipped(hook.total_norm, params, before, expected)
    assert_same(grads(others), grads(kept))


WEIGHTS = "0.weight", "1.0.weight", "2.weight"
# When they are sharded, rank 0 has no part of these.
BIASES = "0.bias", "1.0.bias", "2.bias"


@pytest.mark.parametrize(
    "names", [WEIGHTS, BIASES, BIASES[2:], (BIASES + WEIGHTS)[::-1]]
)
@pytest.mark.parametrize("norm_type", [2, INF])
@pytest.mark.parametrize("strategies", STRATEGIES)
def test_some_parameters(names, norm_type, strategies):
    model = backward(fsdp1_model(False, strategies))
    params = [named(model)[name] for name in names]
    if names == BIASES and strategies == (FULL, FULL):
        alone = all(grad is None for grad in grads(params))
        assert alone == (dist.get_rank() == 0)
    assert_subset(model, params, names, norm_type, model=model)


OUTER = "_flat_param", ("0.weight", "0.bias", "2.weight", "2.bias")
INNER = "1._flat_param", ("1.0.weight", "1.0.bias")


@pytest.mark.parametrize("chosen", [(OUTER,), (INNER, OUTER)])
def test_some_flat_parameters(chosen):
    model = backward(fsdp1_model(True))
    params = [named(model)[flat] for flat, _ in chosen]
    names = [name for _, names in chosen for name in names]
    assert_subset(model, params, names, model=model)


def test_two_optimizers():
    """Each has half of the parameters; the accelerator knows the model."""
    model = backward(fsdp1_model(False))
    accelerator = make_accelerator(StandIn)
    accelerator._models.append(model)
    for names in (WEIGHTS, BIASES):
        params = [named(model)[name] for name in names]
        assert_subset(model, params, names, accelerator=accelerator)


@pytest.mark.parametrize("strategies", STRATEGIES[::2])
def test_changing(strategies):
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
        assert_close(hook.total_norm, expected)


@FLAT
@pytest.mark.parametrize("known_to", ["arguments", "accelerator"])
def test_inside_a_plain_module(flat, known_to):
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
    assert_clipped(hook.total_norm, params, before, expected)


@pytest.mark.parametrize(
    ("flat", "start"), [(True, 0), (False, 0), (False, 5)]
)
def test_of_an_unknown_module(flat, start):
    """An error on rank 0, too, which has no part of the last parameter."""
    params = list(backward(fsdp1_model(flat)).parameters())[start:]
    before = copies(params)
    with pytest.raises(RuntimeError, match="parameter"):
        run_hook(norm_hook(), params)
    assert_same(grads(params), grads(before))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"norm_type": 0}, ValueError, "norm_type"),
        ({}, RuntimeError, "not finite"),
    ],
)
def test_under_a_scaler(change, error, message):
    """A step that fails changes nothing, and the next one works."""
    accelerator = make_accelerator(FP16)
    model = fsdp1_model(False)
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=0.0)
    hook = norm_hook(1.0, error_if_nonfinite=True)

    def scaled_backward(factor=1.0):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 4)).sum() * factor
        accelerator.scaler.scale(loss).backward()

    def step():
        run_hook(hook, optimizer, accelerator, model=model)

    scaled_backward(1.0 if change else INF)
    before, known = copies(params), vars(hook).copy()
    vars(hook).update(change)
    for _ in range(2):
        with pytest.raises(error, match=message):
            step()
        assert_same(grads(params), grads(before))
    vars(hook).update(known)
    scaled_backward()
    expected = norm_of_parts(params, 2.0) / accelerator.scaler.get_scale()
    step()
    assert_close(hook.total_norm, expected)
    accelerator.scaler.step(optimizer)
    accelerator.scaler.update()


# Beside DTensors in one optimizer.


@FLAT
@pytest.mark.parametrize("norm_type", [INF, 2.0])
@pytest.mark.parametrize(
    "chosen", [(Shard(0),), (Partial(), Replicate(), None)]
)
@pytest.mark.parametrize("strategy", [FULL, NO])
def test_beside_dtensors(flat, norm_type, chosen, strategy):
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
    assert type(hook.total_norm) is torch.Tensor
    assert_clipped(hook.total_norm, sharded, before, expected)
    for found, old in zip(reduced(others), whole, strict=True):
        assert_close(found, old * CLIPS / (expected + 1e-6))


def test_beside_dtensors_without_gradients():
    """Which have no part in a norm of which the smallest count."""
    model = backward(fsdp1_model(False))
    params = list(model.parameters())
    mine = [grad for grad in grads(params) if grad is not None]
    other = placed(Shard(0), mesh_of(2))
    other.grad = None
    hook = norm_hook(CLIPS_NOT, norm_type=-INF)
    run_hook(hook, [*params, other], model=model)
    expected = true_norm(sum(from_all(mine), []), -INF)
    assert expected > 0
    assert_close(hook.total_norm, expected)
