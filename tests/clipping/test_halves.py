"""get_total_norm and clip_grads_with_norm_, with the bits of torch's."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import robo_orchard_fasthooks
from helpers.gradients import (
    NORM_TYPES,
    REAL,
    Case,
    Run,
    assert_clips_like,
    assert_same_gradients,
    attempt,
    bounds,
    build,
    cases,
    random_lists,
    same_bits,
)
from robo_orchard_fasthooks import (
    clip_grad_norm_,
    clip_grads_with_norm_,
    get_total_norm,
)

pytestmark = pytest.mark.filterwarnings(
    # torch's own norm of complex gradients, once in a process.
    "ignore:Casting complex values to real"
)
foreachs = st.sampled_from([None, None, True, False])
packs = st.sampled_from([list, tuple, iter])
KINDS = (*REAL, torch.complex64)


def gradients(params):
    return [param.grad for param in params if param.grad is not None]


def small(count=9):
    return Case((Run(count, (8, 8), torch.float32),))


@pytest.mark.parametrize("name", robo_orchard_fasthooks.clip.__all__)
def test_signatures(name):
    """torch's, and keywords of our own."""
    ours, theirs = (
        [
            (each.name, each.default, each.kind)
            for each in inspect.signature(
                getattr(module, name)
            ).parameters.values()
            if each.kind != each.KEYWORD_ONLY
        ]
        for module in (robo_orchard_fasthooks, torch.nn.utils)
    )
    assert ours == theirs


@given(
    case=cases(KINDS),
    norm_type=st.just(2.0) | st.sampled_from(NORM_TYPES),
    error_if_nonfinite=st.booleans(),
    foreach=foreachs,
    pack=packs,
)
@random_lists
def test_norm(case, norm_type, error_if_nonfinite, foreach, pack):
    tensors, args = gradients(build(case)), (norm_type, error_if_nonfinite)
    expected, refusal = attempt(
        torch.nn.utils.get_total_norm, pack(tensors), *args, foreach
    )
    found, error = attempt(get_total_norm, pack(tensors), *args, foreach)
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
@random_lists
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


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_the_halves_are_the_whole(norm_type):
    case = Case(tuple(Run(5, (8, 8), dtype) for dtype in KINDS), mixed=True)
    whole, halves = build(case), build(case)
    expected = clip_grad_norm_(whole, 0.5, norm_type)
    total = get_total_norm(gradients(halves), norm_type)
    clip_grads_with_norm_(halves, 0.5, total)
    assert same_bits(total, expected)
    assert_same_gradients(halves, whole)


def test_a_tensor_that_is_not_finite_is_named():
    tensors = gradients(build(small()))
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


def test_a_norm_that_is_no_tensor():
    """torch's own error, and nothing has changed."""
    params = build(small())
    _, refusal = attempt(
        torch.nn.utils.clip_grads_with_norm_, build(small()), 0.5, 5.0
    )
    _, error = attempt(clip_grads_with_norm_, params, 0.5, 5.0)
    assert type(error) is type(refusal) is TypeError
    assert_same_gradients(params, build(small()))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("devices", ["cpu cuda", "cuda cpu"])
def test_norm_on_another_device(devices):
    of_norm, of_gradients = devices.split()
    params, theirs = (build(small(), of_gradients) for _ in range(2))
    total = torch.tensor(1.0, device=of_norm)
    clip_grads_with_norm_(params, 0.5, total)
    torch.nn.utils.clip_grads_with_norm_(theirs, 0.5, total)
    assert_same_gradients(params, theirs)
