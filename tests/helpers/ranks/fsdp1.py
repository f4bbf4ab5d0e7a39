"""FSDP1: torch's FullyShardedDataParallel, which flattens parameters."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    ShardingStrategy,
)

from helpers.ranks.cases import case, check
from helpers.ranks.checks import (
    CLIPS,
    CLIPS_NOT,
    INF,
    NAN,
    StandIn,
    backward,
    batch,
    check_clipped,
    check_close,
    check_same,
    check_total,
    copies,
    grads,
    make_accelerator,
    norm_hook,
    norm_of_parts,
    params_of,
    raised,
    randn,
    run_hook,
    true_norm,
    value_hook,
)

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
    """Norms are in fp32, coefficients in the gradients' dtype, as in FSDP."""
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
    """Clamping is elementwise, so each rank can clamp its own part."""
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
    """Checks that the hook clips these parameters and no others.

    Args:
        root: The model.
        params: The parameters of the optimizer.
        names: Their names in the unwrapped model.
        norm_type: The type of the norm.
        **settings: Fields of the arguments.
    """
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
    """Each has half of the parameters; the accelerator knows the model."""
    model = backward(fsdp1_model(False, strategies))
    accelerator = make_accelerator(StandIn)
    accelerator._models.append(model)
    for names in (WEIGHTS, BIASES):
        params = [named(model)[name] for name in names]
        check_subset(model, params, names, accelerator=accelerator)


@case("fsdp1", strategies=STRATEGIES, norm_type=[2, INF])
def fsdp1_changing(strategies, norm_type):
    """The optimizer gets other parameters: as many, or the same ones twice."""
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
    """A plain parameter beside it, equal on both ranks, is counted once."""
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
    """An error on rank 0, too, which has no part of the last parameter."""
    params = list(backward(fsdp1_model(flat)).parameters())[start:]
    before = copies(params)
    said = raised(lambda: run_hook(norm_hook(), params))
    check("parameter" in said, "raised:", said)
    check_same("gradient", grads(params), grads(before))
