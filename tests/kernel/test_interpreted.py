"""The kernel's bits against those of torch's foreach functions."""

import math
import random

import pytest
import torch

from helpers.gradients import same_bits
from robo_orchard_fasthooks._clipping.foreach import by_dtype
from robo_orchard_fasthooks._cuda_graph.tables import Tables

# NumPy warns of NaN and of overflows in what the kernel computes.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIZES = (1, 2, 3, 7, 8, 15, 16, 63, 65, 2047, 2048, 2049, 4096, 8190)
LARGE = (65535, 65536, 65537, 140_000)
COEFFICIENTS = (0.37, 1e-3, 0.99999994, 0.998, 1.0, 0.0, -0.5, math.nan)
CLIP_VALUES = (0.5, 1e-3, 1e-45, 0.1, 0.0, math.inf, -1.0, math.nan)


def values(size, dtype, seed=0):
    """Numbers of every exponent, with all that is special among them."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (-24, 10) if dtype == torch.float16 else (-140, 20)
    exponents = torch.randint(low, high, (size,), generator=generator)
    found = torch.randn(size, generator=generator, dtype=torch.float64)
    found = (found * exponents.double().exp2()).to(dtype)
    info = torch.finfo(dtype)
    special = (
        *(math.nan, math.inf, -math.inf, -0.0, 0.0),
        *(info.tiny, info.tiny / 4, -info.tiny / 4, info.max, info.min),
    )
    for index, value in enumerate(special):
        found[index * 7 :: 997] = value
    return found


def cut(flat, sizes, offset, gap):
    """Tensors of these sizes that lie in one, and so at any alignment."""
    grads = []
    for size in sizes:
        grads.append(flat[offset : offset + size])
        offset += size + gap
    assert offset - gap <= len(flat)
    return grads


def grouped(grads, tables):
    assert tables._tables.keys() == {grad.dtype for grad in grads}
    return by_dtype(grads)


def multiply(grads, coefficient):
    coefficient = torch.as_tensor(coefficient, dtype=torch.float64)
    multiply_by(grads, coefficient)


def multiply_by(grads, coefficient):
    tables = Tables(grads)
    tables.multiply_(grouped(grads, tables), coefficient)
    assert Tables.usable


def clamp(grads, clip_value):
    tables = Tables(grads, clip_value)
    tables.clamp_(grouped(grads, tables))
    assert Tables.usable


def foreach_multiply(grads, coefficient):
    """By a coefficient in fp64, which is rounded unless there is no dim."""
    coefficient = torch.as_tensor(coefficient, dtype=torch.float64)
    for grad in grads:
        grad.mul_(coefficient.to(grad.dtype) if grad.dim() else coefficient)


def foreach_clamp(grads, clip_value):
    if not clip_value:
        # On a CPU, -0.0 may stay. On CUDA, ForeachMinMaxFunctors.cuh gives
        # the bound unless a gradient is larger, then smaller: 0.0 always.
        for grad in grads:
            grad[~grad.isnan()] = 0.0
        return
    torch._foreach_clamp_min_(grads, -clip_value)
    torch._foreach_clamp_max_(grads, clip_value)


BOTH = pytest.mark.parametrize(
    ("clips", "expect"),
    [(multiply, foreach_multiply), (clamp, foreach_clamp)],
    ids=["multiply", "clamp"],
)


@pytest.mark.parametrize("value", COEFFICIENTS)
@pytest.mark.parametrize("coefficient_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_multiply(dtype, coefficient_dtype, value):
    coefficient = torch.tensor(value, dtype=coefficient_dtype)
    sizes = random.Random(value).sample(SIZES, len(SIZES))
    for offset, gap in ((0, 0), (1, 0), (0, 1), (3, 2)):
        flat = values(sum(SIZES) + 60, dtype)
        expected = flat.clone()
        torch._foreach_mul_(
            cut(expected, sizes, offset, gap), coefficient.to(dtype)
        )
        multiply_by(cut(flat, sizes, offset, gap), coefficient)
        assert same_bits(flat, expected)


@pytest.mark.parametrize("value", CLIP_VALUES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clamp(dtype, value):
    for offset, gap in ((0, 0), (1, 1)):
        flat = values(sum(SIZES) + 20, dtype)
        expected = flat.clone()
        foreach_clamp(cut(expected, SIZES, offset, gap), value)
        clamp(cut(flat, SIZES, offset, gap), value)
        assert same_bits(flat, expected)


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0, 1])
def test_several_chunks(dtype, offset, clips, expect):
    """What lies before, between and after gradients stays as it was."""
    flat = values(sum(LARGE) + 20, dtype)
    expected = flat.clone()
    expect(cut(expected, LARGE, offset, 4), 0.3)
    clips(cut(flat, LARGE, offset, 4), 0.3)
    assert same_bits(flat, expected)


def many():
    sizes = random.Random(0).choices([1, 5, 64, 200, 1000], k=400)
    return [values(n, torch.bfloat16, seed) for seed, n in enumerate(sizes)]


def mixed():
    """Of all dtypes, in any order, and some that the kernel is not for."""
    grads = [values(300 + n, DTYPES[n % 4], n) for n in range(20)]
    grads[3] = values(64, DTYPES[3], 1).view(8, 8).t()
    grads[4] = values(1, DTYPES[0], 9)[0]
    grads[5] = values(0, DTYPES[1], 9)
    return grads


@BOTH
@pytest.mark.parametrize("make", [many, mixed])
def test_lists(make, clips, expect):
    grads, expected = make(), make()
    clips(grads, 0.37)
    expect(expected, 0.37)
    assert all(map(same_bits, grads, expected))


def test_nothing_is_written_where_the_coefficient_is_one():
    """Even a NaN keeps its payload."""
    bits = torch.full((64,), 0x7FA12345, dtype=torch.int32)
    multiply([bits.view(torch.float32)], 1.0)
    assert (bits == 0x7FA12345).all()
