"""FSDP2: clipping of what `fully_shard` makes of parameters."""

from copy import deepcopy

import pytest
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
    assert_clipped,
    assert_close,
    assert_same,
    assert_total,
    copies,
    from_all,
    full,
    grads,
    local,
    mesh_of,
    norm_hook,
    norm_of_parts,
    params_of,
    randn,
    run_hook,
    same,
)
from distributed.placed import IN_EVERY_WAY, clip, clip_values
from robo_orchard_fasthooks.clip import clip_grad_norm_

NORM_TYPES = [INF, -INF, 0.0, 0.5, 1.0, 2.0, 3.0]
EVEN = nn.Linear(4, 6), nn.Linear(6, 2)
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
    assert any(empty) == (layers is UNEVEN and dist.get_rank() == 1)
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


@pytest.mark.parametrize("layers", [EVEN, UNEVEN])
@pytest.mark.parametrize(
    ("norm_type", "dtype", "max_norm"),
    [
        *((each, torch.float32, CLIPS) for each in NORM_TYPES),
        (2.0, torch.bfloat16, CLIPS),
        (2.0, torch.bfloat16, CLIPS_NOT),
        (2.0, torch.float64, CLIPS_NOT),
    ],
)
def test_norm(layers, norm_type, dtype, max_norm):
    params, whole = with_grads(layers, dtype)
    # torch raises for the inf-norm of an empty part, and the other rank hangs.
    if layers is UNEVEN and abs(norm_type) == INF:
        oracle = params_of(whole)
    else:
        oracle = copies(params)
    expected = nn.utils.clip_grad_norm_(oracle, max_norm, norm_type)
    total = clip_grad_norm_(params, max_norm, norm_type)
    assert isinstance(total, DTensor)
    assert_total(total, expected)
    found = [full(grad) for grad in grads(params)]
    assert_same(found, [full(grad) for grad in grads(oracle)])
    assert same(found[0], whole[0]) == (max_norm == CLIPS_NOT)


@pytest.mark.parametrize("poison", [NAN, INF])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("norm_type", [INF, 2, -INF])
def test_nonfinite(poison, rank, norm_type):
    params, whole = with_grads(poison=poison, rank=rank)
    oracle = params_of(whole)
    expected = nn.utils.clip_grad_norm_(oracle, CLIPS, norm_type)
    total = full(clip_grad_norm_(params, CLIPS, norm_type))
    assert_close(total, expected)
    assert_same(from_all(total), [total] * 2)
    # The smallest element may be finite.
    if not expected.isfinite():
        found = [full(grad) for grad in grads(params)]
        assert_same(found, grads(oracle))


@IN_EVERY_WAY
def test_error_if_nonfinite(way):
    """On the rank whose part is finite, too."""
    params, _ = with_grads(poison=NAN, rank=1)
    before = copies(params)
    with pytest.raises(RuntimeError, match="finite"):
        clip(way, params, CLIPS, error_if_nonfinite=True)
    assert_same(grads(params), grads(before))


@pytest.mark.parametrize("way", ["hook", "function"])
@pytest.mark.parametrize("rank", [None, 0, 1])
def test_value(rank, way):
    """One parameter has no gradient; on one rank, no parameter has one."""
    params, whole = with_grads(poison=NAN)
    clamped = copies(params)
    give(clamped, [grad.clamp(-0.5, 0.5) for grad in whole])
    for index in range(4) if rank == dist.get_rank() else [2]:
        params[index].grad = clamped[index].grad = None
    clip_values(way, params, 0.5)
    assert_same(grads(params), grads(clamped))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("missing", [(0,), (1, 2), (0, 1, 2, 3)])
@pytest.mark.parametrize("norm_type", [INF, 2, -INF])
def test_missing_on_one_rank(rank, missing, norm_type):
    """A rank without gradients takes part: otherwise the other one hangs."""
    params, _ = with_grads(EVEN)
    if dist.get_rank() == rank:
        for index in missing:
            params[index].grad = None
    before, expected = copies(params), norm_of_parts(params, norm_type)
    total = clip_grad_norm_(params, CLIPS, norm_type)
    assert_clipped(total, params, before, expected)


needs_grad_dtype = pytest.mark.skipif(
    not hasattr(torch.Tensor, "grad_dtype"), reason="newer than this torch"
)


@needs_grad_dtype
@pytest.mark.parametrize("missing", [(1,), (0, 1, 2, 3)])
@pytest.mark.parametrize("norm_type", [INF, 2.0])
# None: any dtype, so that of the parameter is expected.
@pytest.mark.parametrize("grad_dtype", [torch.float32, None])
def test_missing_of_another_dtype(grad_dtype, missing, norm_type):
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
    assert all(same(total, each) for each in from_all(total))
    assert total.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert abs(total / expected - 1) < tolerance
    for param, old in zip(params, before, strict=True):
        if old is not None:
            scaled = old * (CLIPS / expected.to(dtype))
            assert local(param.grad).allclose(scaled, tolerance)


@needs_grad_dtype
def test_a_dtype_that_is_set_between_calls():
    """While a rank that has no gradients shows the same parameters."""
    params = list(sharded_model(EVEN, torch.bfloat16).parameters())
    for dtype in (torch.bfloat16, torch.float32):
        for param in params:
            param.grad = None
            param.grad_dtype = dtype
        give(params, [randn(param.shape, dtype) for param in params])
        for param in params if dist.get_rank() == 1 else ():
            param.grad = None
        assert full(clip_grad_norm_(params, CLIPS)).dtype == dtype


@pytest.mark.parametrize("norm_type", [INF, 2, -INF])
def test_changing(norm_type):
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
        assert_clipped(hook.total_norm, clipped, before, expected)


@pytest.mark.parametrize("norm_type", [INF, 1, 1.5, 2, 3])
@pytest.mark.parametrize(
    ("missing", "dtype"),
    # In fp64, because sums of fp32 are accumulated in fp64.
    [(0, torch.float32), (1, torch.float64), (33, torch.float64)],
)
def test_many(norm_type, missing, dtype):
    """So many of one shape that their norms are reduced as a vector.

    The powers of a vector differ in the last bits from those of scalars, and
    parameters without gradients must not change them.
    """
    mesh = mesh_of(2)
    params, oracle = (
        params_of(
            distribute_tensor(randn((6,), dtype, at), mesh, [Shard(0)])
            for at in range(100)
        )
        for _ in range(2)
    )
    for param in (*params[::3][:missing], *oracle[::3][:missing]):
        param.grad = None
    expected = nn.utils.clip_grad_norm_(oracle, CLIPS, norm_type)
    assert_total(clip_grad_norm_(params, CLIPS, norm_type), expected)
    assert_same(grads(params), grads(oracle))


@pytest.mark.parametrize("late", [False, True])
def test_without_gradients(late):
    """A plain parameter beside them has a gradient, or has none either."""
    params, _ = with_grads()
    plain = nn.Parameter(torch.zeros(2))
    if late:
        plain.grad = torch.tensor([3.0, 4.0])
    for param in params:
        param.grad = None
    total = clip_grad_norm_([*params, plain], 1.0)
    assert type(total) is torch.Tensor
    assert_close(total, 5.0 if late else 0.0)


@IN_EVERY_WAY
def test_model_to(way):
    """`to` swaps such parameters, which fails while weak references exist."""
    model = sharded_model()
    params = list(model.parameters())
    give(params, [randn(param.shape) for param in params])
    clip(way, params, CLIPS)
    for param in params:
        param.grad = None
    model.to(torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
