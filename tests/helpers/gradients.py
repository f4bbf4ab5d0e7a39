"""Lists of parameters with gradients of every kind.

A `Case` describes such a list and `build` makes it, with the same bits each
time: one copy for the function under test and one for torch's.
"""

from __future__ import annotations

import math
import os
import random
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("EXAMPLES", 80))
"""How many lists a random test clips."""
random_lists = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

CUDA = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA GPU"
    ),
]
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]

REAL = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = (
    *("own", "flat", "transposed", "channels last", "strided", "expanded"),
    *("overlapping", "parameter", "requires grad"),
)
SPECIAL = (math.nan, math.inf, -math.inf, -0.0)
FILLS = (
    *("normal", "normal", "wide", "small", "small", "subnormal", "zero"),
    *("huge", *SPECIAL, "all special"),
)
SHAPES = ((), (0,), (1,), (64,), (8, 8), (3, 5, 7), (2, 3, 4, 4))
LARGE_SHAPES = ((2048,), (2049,), (4096,), (64, 64), (4097,), (12288,))
EACH_DIFFERENT = "each different"
NORM_TYPES = (2.0, 2, math.inf, -math.inf, 0, 0.5, 1.0, 3.0, "inf", -1)
BOUNDS = (0, 0.0, 1e-3, 1.0, math.inf, -1.0, math.nan)
CLIP_VALUES = (0, -0.0, 1, 1e-3, 1e-45, 0.1, math.inf, -1.0, math.nan)


@dataclass(frozen=True)
class Run:
    """A number of gradients of the same kind."""

    count: int
    shape: tuple[int, ...] | str
    dtype: torch.dtype
    layout: str = "own"
    fill: str | float = "normal"

    def shapes(self):
        if self.shape == EACH_DIFFERENT:
            return [(index + 1,) for index in range(self.count)]
        return [self.shape] * self.count


@dataclass(frozen=True)
class Case:
    """A list of parameters.

    `without` parameters without a gradient are added to it, `shared` of its
    parameters share the gradient of another one, and `twice` of them are
    listed twice.
    """

    runs: tuple[Run, ...]
    seed: int = 0
    mixed: bool = False
    without: int = 0
    shared: int = 0
    twice: int = 0


def values(run, count, generator):
    """`count` values, one of which is special if the run says so."""
    if run.dtype.is_complex:
        parts = replace(run, dtype=run.dtype.to_real())
        pairs = values(parts, 2 * count, generator)
        return torch.view_as_complex(pairs.view(-1, 2))
    wide = torch.float64 if run.dtype == torch.float64 else torch.float32
    made = torch.randn(count, dtype=wide, generator=generator)
    limits = torch.finfo(run.dtype)
    factors = {"small": 1e-3, "subnormal": limits.tiny, "huge": limits.max}
    if run.fill == "wide":
        exponents = torch.randint(-24, 12, (count,), generator=generator)
        made *= torch.exp2(exponents)
    elif factor := factors.get(run.fill):
        made = made.clamp(-1, 1) * factor
    elif run.fill == "zero":
        made *= 0.0  # Of both signs.
    made = made.to(run.dtype)
    special = SPECIAL if run.fill == "all special" else (run.fill,)
    for value in special:
        if count and isinstance(value, float):
            made[int(torch.randint(count, (), generator=generator))] = value
    return made


def arrange(dense, layout):
    """A gradient with the values of `dense` in another memory layout."""
    if layout == "flat":
        return dense
    own = dense.clone()
    if layout == "transposed":
        order = tuple(reversed(range(dense.dim())))
        return own.permute(order).contiguous().permute(order)
    if layout == "channels last" and dense.dim() > 1:
        return own.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "strided":
        pairs = dense.new_full((*dense.shape, 2), 7)
        pairs.select(-1, 0).copy_(dense)
        return pairs.select(-1, 0)
    # torch refuses to write to an expanded tensor of more than one element.
    if layout == "expanded" and dense.numel() == 1:
        return own.view(()).expand(dense.shape)
    # torch would split more elements among threads, which race.
    if layout == "overlapping" and 0 < dense.numel() <= 4096:
        return own.view(-1).as_strided(dense.shape, (1,) * dense.dim())
    if layout == "parameter":
        return torch.nn.Parameter(own)
    return own.requires_grad_(layout == "requires grad")


def parameter(grad):
    if grad is None:
        return torch.nn.Parameter(torch.zeros(2))
    data = torch.zeros((), dtype=grad.dtype, device=grad.device)
    made = torch.nn.Parameter(data.expand(grad.shape))
    made.grad = grad
    return made


def build(case, device="cpu"):
    generator = torch.Generator().manual_seed(case.seed)
    choose = random.Random(case.seed)
    params = []
    for run in case.runs:
        sizes = [math.prod(shape) for shape in run.shapes()]
        # Without the first element, so that the views are not aligned as an
        # allocator would align them.
        flat = values(run, 1 + sum(sizes), generator).to(device)
        parts = flat[1:].split(sizes)
        params += [
            parameter(arrange(part.view(shape), run.layout))
            for part, shape in zip(parts, run.shapes(), strict=True)
        ]
    for _ in range(min(case.shared, len(params) - 1)):
        at = choose.randrange(len(params) - 1)
        first, second = params[at : at + 2]
        if form(first.grad)[1:4] == form(second.grad)[1:4]:
            second.grad = first.grad
    if params:
        params += choose.choices(params, k=case.twice)
    if case.mixed:
        choose.shuffle(params)
    for _ in range(case.without):
        empty = torch.nn.Parameter(torch.zeros(2, device=device))
        params.insert(choose.randint(0, len(params)), empty)
    return params


@st.composite
def runs(draw, dtypes, layouts):
    size = draw(
        st.sampled_from(["few"] * 9 + ["ladder"] * 3 + ["many", "big"])
    )
    if size == "few":
        shape = draw(st.sampled_from(SHAPES))
        count = draw(st.integers(1, 12))
    elif size == "ladder":
        shape, count = EACH_DIFFERENT, draw(st.integers(2, 40))
    elif size == "many":
        shape = draw(st.sampled_from(SHAPES))
        count = draw(st.integers(100, 600))
    elif draw(st.integers(0, 3)):
        shape = draw(st.sampled_from(LARGE_SHAPES))
        count = draw(st.integers(1, 20))
    else:
        shape, count = (70000,), draw(st.integers(1, 2))
    dtype = draw(st.sampled_from(dtypes))
    return Run(
        count,
        shape,
        dtype,
        # Half of them in the layout that real gradients have.
        draw(st.just("own") | st.sampled_from(layouts)),
        draw(st.sampled_from(FILLS[:5]) | st.sampled_from(FILLS)),
    )


@st.composite
def cases(draw, dtypes=REAL, layouts=LAYOUTS):
    if draw(st.booleans()):
        dtypes = (draw(st.sampled_from(dtypes)),)
    few = st.just(0) | st.integers(0, 3)
    return Case(
        tuple(draw(st.lists(runs(dtypes, layouts), max_size=4))),
        draw(st.integers(0, 2**16)),
        draw(st.booleans()),
        without=draw(few),
        shared=draw(few),
        twice=draw(few),
    )


def without_races(case):
    """Of a case for a GPU, where threads that write the same element race.

    torch's own foreach kernels do where two blocks scale one gradient.
    """
    runs = tuple(
        replace(run, layout="own") if run.layout == "overlapping" else run
        for run in case.runs
    )
    return replace(case, runs=runs, shared=0, twice=0)


bounds = (
    st.tuples(st.just("factor"), st.sampled_from([0.1, 0.5, 0.99, 1.0, 1.01]))
    | st.tuples(st.just("ulps"), st.integers(-3, 3))
    | st.tuples(st.just("value"), st.sampled_from(BOUNDS))
)


def max_norm_of(params, bound, norm_type=2.0):
    """A factor of the norm, or in ulps from where clipping begins.

    It may scale the gradients.
    """
    kind, number = bound
    if kind == "value":
        return number
    try:
        total = torch.nn.utils.clip_grad_norm_(params, math.inf, norm_type)
    except RuntimeError:  # The test will meet the same error.
        return 1.0
    if kind == "factor":
        return total.item() * number
    step = torch.finfo(total.dtype).eps * number
    return (total + 1e-6).item() * (1 + step)


def storages(params):
    """The gradients' whole storages, the gaps between elements included."""
    grads = [param.grad for param in params if param.grad is not None]
    found = {grad.untyped_storage().data_ptr(): grad for grad in grads}
    return [
        torch.empty(0, dtype=grad.dtype, device=grad.device).set_(
            grad.untyped_storage()
        )
        for grad in found.values()
    ]


def form(grad):
    return grad is not None and (
        type(grad),
        grad.dtype,
        grad.device,
        grad.shape,
        grad.stride(),
        grad.storage_offset(),
        grad.requires_grad,
    )


def as_bytes(tensor):
    """The bytes of a tensor, in which every NaN is the same.

    When fp16 is converted to fp32, torch's scalar and vector code make NaNs
    with different bits, so the bits depend on a norm's position in a vector.
    """
    plain = tensor.detach().resolve_conj().resolve_neg()
    dense = plain.clone(memory_format=torch.contiguous_format).view(-1)
    real = torch.view_as_real(dense) if dense.is_complex() else dense
    return torch.where(real.isnan(), math.nan, real).view(torch.uint8)


def same_bits(first, second):
    return form(first) == form(second) and torch.equal(
        as_bytes(first), as_bytes(second)
    )


def assert_same_gradients(got, expected):
    pairs = list(zip(got, expected, strict=True))
    for index, (one, other) in enumerate(pairs):
        assert form(one.grad) == form(other.grad), f"parameter {index}"
    for one, other in zip(storages(got), storages(expected), strict=True):
        assert torch.equal(as_bytes(one), as_bytes(other)), [
            f"parameter {index}: {one.grad} for {other.grad}"
            for index, (one, other) in enumerate(pairs)
            if one.grad is not None and not same_bits(one.grad, other.grad)
        ][:3]


def attempt(function, *args, **kwargs):
    """Returns the result of a call, or None, and its exception, or None."""
    try:
        return function(*args, **kwargs), None
    except Exception as error:
        return None, error


def assert_clips_like(function, reference, make, *args, pack=list, **kwargs):
    """Both do the same, each to a list of its own that `pack` is called on.

    Returns the result of the function under test, or None, and its exception.
    """
    ours, theirs = make(), make()
    grads = [param.grad for param in ours]
    expected, refusal = attempt(reference, pack(theirs), *args, **kwargs)
    got, error = attempt(function, pack(ours), *args, **kwargs)
    assert type(error) is type(refusal), (error, refusal)
    if error is not None:
        theirs = make()
    elif expected is None:
        assert got is None
    else:
        assert same_bits(got, expected), (got, expected)
        assert got.grad_fn is None
    assert_same_gradients(ours, theirs)
    assert all(
        param.grad is grad for param, grad in zip(ours, grads, strict=True)
    )
    return got, error
