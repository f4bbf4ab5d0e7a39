"""get_total_norm and clip_grads_with_norm_: torch's bits, and on torch 2.5."""

import importlib
import inspect
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import robo_orchard_fasthooks
from helpers.gradients import (
    NORM_TYPES,
    REAL,
    Case,
    Run,
    as_bytes,
    assert_clips_like,
    assert_same_gradients,
    attempt,
    bounds,
    build,
    cases,
    same_bits,
)
from robo_orchard_fasthooks import (
    clip_grad_norm_,
    clip_grads_with_norm_,
    get_total_norm,
)
from robo_orchard_fasthooks._clipping import torch_functions

NAMES = ["get_total_norm", "clip_grads_with_norm_"]

thorough = settings(
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
pytestmark = pytest.mark.filterwarnings(
    # torch's own norm of complex gradients, once in a process.
    "ignore:Casting complex values to real"
)
foreachs = st.sampled_from([None, None, True, False])
packs = st.sampled_from([list, tuple, iter])
KINDS = (*REAL, torch.complex64)


def gradients(case):
    return [p.grad for p in build(case) if p.grad is not None]


def small(count=9, **kwargs):
    return Case((Run(count, (8, 8), torch.float32, **kwargs),))


@pytest.fixture(params=["torch's", "for torch 2.5"])
def backport(request, monkeypatch):
    """The functions that torch 2.5 lacks, where it lacks them or not."""
    if request.param == "for torch 2.5":
        for name in NAMES:
            monkeypatch.delattr(torch.nn.utils, name)
    yield importlib.reload(torch_functions)
    monkeypatch.undo()
    importlib.reload(torch_functions)


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name):
    ours = inspect.signature(getattr(robo_orchard_fasthooks, name))
    theirs = inspect.signature(getattr(torch.nn.utils, name))
    assert [
        (each.name, each.default, each.kind)
        for each in ours.parameters.values()
    ] == [
        (each.name, each.default, each.kind)
        for each in theirs.parameters.values()
    ]
    assert name in robo_orchard_fasthooks.__all__


@given(
    case=cases(KINDS),
    norm_type=st.just(2.0) | st.sampled_from(NORM_TYPES),
    error_if_nonfinite=st.booleans(),
    foreach=foreachs,
    pack=packs,
)
@settings(thorough, max_examples=500)
def test_norm(case, norm_type, error_if_nonfinite, foreach, pack):
    args = norm_type, error_if_nonfinite, foreach
    expected, refusal = attempt(
        torch.nn.utils.get_total_norm, pack(gradients(case)), *args
    )
    found, error = attempt(get_total_norm, pack(gradients(case)), *args)
    assert type(error) is type(refusal), (error, refusal)
    if error is None:
        assert same_bits(found, expected), (found, expected)
        assert found.grad_fn is None


@given(
    case=cases(KINDS),
    bound=bounds,
    factor=st.sampled_from([0.0, 0.5, 1.0, 2.0, math.inf, math.nan, -1.0]),
    dtype=st.sampled_from(REAL),
    foreach=foreachs,
    pack=packs,
)
@settings(thorough, max_examples=500)
def test_scaling(case, bound, factor, dtype, foreach, pack):
    assert_clips_like(
        clip_grads_with_norm_,
        torch.nn.utils.clip_grads_with_norm_,
        lambda: build(case),
        bound.max_norm(build(case), 2.0),
        torch.tensor(factor, dtype=dtype),
        foreach,
        pack=pack,
    )


@given(case=cases(KINDS), bound=bounds, norm_type=st.sampled_from(NORM_TYPES))
@settings(thorough, max_examples=200)
def test_the_halves_are_the_whole(case, bound, norm_type):
    max_norm = bound.max_norm(build(case), norm_type)
    whole, halves = build(case), build(case)
    expected, error = attempt(clip_grad_norm_, whole, max_norm, norm_type)
    if error is not None:
        return
    total = get_total_norm(
        [p.grad for p in halves if p.grad is not None], norm_type
    )
    clip_grads_with_norm_(halves, max_norm, total)
    assert same_bits(total, expected)
    assert_same_gradients(halves, whole)


def test_one_tensor():
    tensor = torch.tensor([3.0, -4.0])
    assert get_total_norm(tensor) == 5
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = tensor.clone()
    clip_grads_with_norm_(param, 1.0, torch.tensor(5.0))
    assert torch.allclose(param.grad, tensor / 5)


def test_a_tensor_that_is_not_finite_is_named():
    tensors = gradients(small())
    tensors[4][0, 0] = math.nan
    with pytest.raises(
        RuntimeError, match=r"finite, nor is that of tensor 4$"
    ):
        get_total_norm(tensors, error_if_nonfinite=True)


def test_a_sparse_tensor():
    """It is named where torch, before 2.14, refuses it."""
    tensors = [torch.ones(3), torch.ones(3).to_sparse()]
    _, refusal = attempt(torch.nn.utils.get_total_norm, tensors)
    found, error = attempt(get_total_norm, tensors)
    if refusal is None:
        assert found == math.sqrt(6)
    else:
        assert isinstance(error, NotImplementedError)
        assert "tensor 1 is sparse" in str(error)


def test_gradients_that_share_memory_are_named():
    params = build(small())
    params[2].grad = torch.ones(()).expand(8, 8)
    before = [param.grad.clone() for param in params]
    with pytest.raises(NotImplementedError, match="parameter 2 has elements"):
        clip_grads_with_norm_(params, 0.5, torch.tensor(1.0))
    assert all(map(torch.equal, [p.grad for p in params], before))


def test_a_norm_that_is_no_tensor():
    """torch's own error, and nothing has changed."""
    params = build(small())
    _, refusal = attempt(
        torch.nn.utils.clip_grads_with_norm_, build(small()), 0.5, 5.0
    )
    _, error = attempt(clip_grads_with_norm_, params, 0.5, 5.0)
    assert type(error) is type(refusal) is TypeError
    assert str(error) == str(refusal)
    assert_same_gradients(params, build(small()))


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("dtypes", [KINDS[:1], KINDS], ids=["one", "all"])
def test_backport(backport, foreach, norm_type, dtypes):
    runs = tuple(Run(3, (8, 8), dtype) for dtype in dtypes)
    case = Case(runs, mixed=True, without=1)
    expected = torch.nn.utils.clip_grad_norm_(
        theirs := build(case), 0.5, norm_type, foreach=foreach
    )
    params = build(case)
    tensors = [p.grad for p in params if p.grad is not None]
    total = backport.get_total_norm(tensors, norm_type, foreach=foreach)
    assert torch.equal(as_bytes(total), as_bytes(expected))
    backport.clip_grads_with_norm_(params, 0.5, total, foreach)
    assert_same_gradients(params, theirs)


def test_backport_of_nothing(backport):
    assert torch.equal(backport.get_total_norm([]), torch.tensor(0.0))
    backport.clip_grads_with_norm_([], 1.0, torch.tensor(1.0))


def test_backport_of_one_tensor(backport):
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([3.0, -4.0])
    assert backport.get_total_norm(param.grad) == 5
    backport.clip_grads_with_norm_(param, 1.0, torch.tensor(5.0))
    assert torch.allclose(param.grad, torch.tensor([0.6, -0.8]))


def test_backport_refuses(backport):
    with pytest.raises(RuntimeError, match="non-finite"):
        backport.get_total_norm(torch.tensor([math.inf]), 2.0, True)
    meta = torch.zeros(2, device="meta")
    with pytest.raises(RuntimeError, match="foreach API on meta"):
        backport.get_total_norm([meta], foreach=True)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_compiled(backport, factor):
    """Traced into one graph, by way of torch's functions."""

    def run(params, max_norm):
        tensors = [param.grad for param in params]
        total = get_total_norm(tensors)
        clip_grads_with_norm_(params, max_norm, total)
        return total

    params, plain = build(small(3)), build(small(3))
    max_norm = factor * get_total_norm([p.grad for p in plain]).item()
    compiled = torch.compile(run, backend="eager", fullgraph=True)
    total = compiled(params, max_norm)
    assert torch.allclose(total, run(plain, max_norm))
    for one, other in zip(params, plain, strict=True):
        assert torch.allclose(one.grad, other.grad)
    torch._dynamo.reset()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("devices", ["cpu cuda", "cuda cpu"])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_norm_on_another_device(devices, factor):
    of_norm, of_gradients = devices.split()
    params, theirs = (build(small(), of_gradients) for _ in range(2))
    total = torch.tensor(1.0, device=of_norm)
    clip_grads_with_norm_(params, factor, total)
    torch.nn.utils.clip_grads_with_norm_(theirs, factor, total)
    assert_same_gradients(params, theirs)
