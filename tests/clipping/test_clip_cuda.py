"""Clipping on a GPU, against torch's own functions there.

None of this has run on a GPU yet.
"""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import robo_orchard_fasthooks
from helpers.gpu import launches, sync_debug_mode
from helpers.gradients import (
    CLIP_VALUES,
    CUDA_LAYOUTS,
    NORM_TYPES,
    REAL,
    Bound,
    Case,
    Run,
    assert_clips_like,
    assert_same_gradients,
    assert_treats_sparse_like,
    bounds,
    build,
    cases,
    has_gradients,
    same_bits,
)
from robo_orchard_fasthooks.clip import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
)

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA GPU"
    ),
    pytest.mark.filterwarnings(
        # torch's own norm of complex gradients, once in a process.
        "ignore:Casting complex values to real"
    ),
]
NORM = (clip_grad_norm_, torch.nn.utils.clip_grad_norm_)
VALUE = (clip_grad_value_, torch.nn.utils.clip_grad_value_)
BOTH = pytest.mark.parametrize("clips", [NORM, VALUE], ids=["norm", "value"])
# Both below and above what the gradients here come to.
BOUNDS = pytest.mark.parametrize("bound", [0.01, 1e6])
thorough = settings(
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
foreachs = st.sampled_from([None, None, True, False])
no_syncs = partial(sync_debug_mode, "error")


def each_once(case):
    """Without a gradient that is in a list twice.

    The blocks of a launch run side by side: torch's own foreach kernels race
    where two of them scale the same gradient.
    """
    return replace(case, shared=0, twice=0)


def gradients(mixed=True):
    """Of several shapes and dtypes, large and small."""
    runs = (
        Run(40, (64,), torch.float32),
        Run(3, (300, 300), torch.float32, "transposed"),
        Run(5, (64,), torch.bfloat16),
        Run(2, (), torch.float32),
    )
    return Case(runs, mixed=mixed)


@given(
    case=cases((*REAL, torch.complex64), CUDA_LAYOUTS).map(each_once),
    bound=bounds,
    norm_type=st.just(2.0) | st.sampled_from(NORM_TYPES),
    error_if_nonfinite=st.booleans(),
    foreach=foreachs,
)
@settings(thorough, max_examples=500)
def test_norm(case, bound, norm_type, error_if_nonfinite, foreach):
    """The bits of torch's function, or its error."""
    assert_clips_like(
        *NORM,
        lambda: build(case, "cuda"),
        bound.max_norm(build(case, "cuda"), norm_type),
        norm_type,
        error_if_nonfinite,
        foreach,
    )


@given(
    case=cases(REAL, CUDA_LAYOUTS).filter(has_gradients).map(each_once),
    clip_value=st.sampled_from(CLIP_VALUES),
    foreach=foreachs,
)
@settings(thorough, max_examples=200)
def test_value(case, clip_value, foreach):
    """The same, zeros and their signs included: foreach kernels on both."""
    assert_clips_like(
        *VALUE, lambda: build(case, "cuda"), clip_value, foreach=foreach
    )


@pytest.mark.parametrize("dtype", [*REAL, torch.complex64], ids=str)
@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("ulps", range(-3, 4))
def test_where_clipping_begins(ulps, norm_type, dtype):
    """The coefficient is torch's to the last bit."""
    case = Case((Run(20, (64,), dtype),))
    max_norm = Bound(ulps=ulps).max_norm(build(case, "cuda"), norm_type)
    assert_clips_like(*NORM, lambda: build(case, "cuda"), max_norm, norm_type)


@BOTH
@BOUNDS
@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("first", ["cpu", "cuda"])
def test_some_gradients_on_the_cpu(clips, bound, foreach, first):
    """The total is on the device of the first gradient."""

    def make():
        lists = {at: build(gradients(), at) for at in ("cpu", "cuda")}
        second = "cuda" if first == "cpu" else "cpu"
        pairs = zip(lists[first], lists[second], strict=True)
        return [param for pair in pairs for param in pair]

    got, _ = assert_clips_like(*clips, make, bound, foreach=foreach)
    assert got is None or got.device.type == first


@BOTH
@BOUNDS
@pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two CUDA GPUs"
)
def test_several_gpus(clips, bound):
    """Such gradients are left to torch, which has its own order of them."""

    def make():
        first, second = (build(gradients(), f"cuda:{at}") for at in (1, 0))
        return first + second

    assert_clips_like(*clips, make, bound)


def test_syncs_are_noticed():
    """Or the next tests could not fail."""
    value = torch.ones((), device="cuda")
    with pytest.raises(RuntimeError), no_syncs():
        value.item()


@BOTH
@BOUNDS
def test_the_host_does_not_wait(clips, bound):
    """Not once, whichever side of the bound the gradients are on."""
    clip, reference = clips
    params, expected = build(gradients(), "cuda"), build(gradients(), "cuda")
    clip(build(gradients(), "cuda"), bound)
    with no_syncs():
        got = clip(params, bound)
    total = reference(expected, bound)
    assert got is None or same_bits(got, total)
    assert_same_gradients(params, expected)


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(True)
    yield Accelerator()
    AcceleratorState._reset_state(True)


@BOUNDS
@pytest.mark.parametrize("mode", ["norm", "value"])
def test_the_hook_does_not_wait(accelerator, mode, bound):
    """Nor does the hook at a step, which has torch's bits."""
    assert accelerator.device.type == "cuda"
    config = robo_orchard_fasthooks.GradientClippingHookConfig(
        clip_mode=mode, max_norm=bound, clip_value=bound
    )
    hook = config()

    def step(context):
        params = build(gradients(), "cuda")
        args = robo_orchard_fasthooks.PipelineHookArgs(
            accelerator, optimizer=torch.optim.SGD(params, lr=1)
        )
        with context(), hook.begin("on_step", args):
            pass
        return params

    expected = build(gradients(), "cuda")
    (NORM if mode == "norm" else VALUE)[1](expected, bound)
    assert_same_gradients(step(nullcontext), expected)
    assert_same_gradients(step(no_syncs), expected)


@BOTH
@pytest.mark.parametrize("fill", ["normal", "small", float("nan")])
def test_captured_in_a_graph(clips, fill):
    """Replays clip what the gradients are by then, above or below alike."""
    clip, reference = clips
    case = Case((Run(40, (64,), torch.float32),))
    bound = 1.0
    params = build(case, "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # Warm, as capturing asks for.
        clip(params, bound)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = clip(params, bound)
    # What it was captured with comes between: nothing is left of it.
    for now in (fill, "small", fill, "normal"):
        fresh = Case((Run(40, (64,), torch.float32, fill=now),), seed=7)
        expected = build(fresh, "cuda")
        for param, other in zip(params, expected, strict=True):
            param.grad.copy_(other.grad)
        graph.replay()
        total = reference(expected, bound)
        assert captured is None or same_bits(captured, total)
        assert_same_gradients(params, expected)


@pytest.mark.parametrize("first", [0, 7, 59])
def test_not_finite(first):
    """It is named, which may wait for the device; nothing has changed."""

    def make():
        params = build(Case((Run(60, (64,), torch.float32),)), "cuda")
        for at in (first, 59):
            params[at].grad[3] = float("nan")
        return params

    params = make()
    with pytest.raises(RuntimeError, match=rf"parameter {first}\b"):
        clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    assert_same_gradients(params, make())
    with pytest.raises(RuntimeError):
        torch.nn.utils.clip_grad_norm_(make(), 1.0, error_if_nonfinite=True)


@BOTH
@BOUNDS
def test_sparse(clips, bound):
    """torch's bits where it clips them, otherwise an error by name."""

    def make():
        params = build(Case((Run(5, (64,), torch.float32),)), "cuda")
        params[3].grad = params[3].grad.to_sparse()
        return params

    assert_treats_sparse_like(*clips, make, bound, 3)


def launched(clip, case, bound):
    """How much a call has the device run, after one of the same kind."""
    params = build(case, "cuda")
    clip(params, bound)
    return launches(lambda: clip(params, bound))


@BOTH
@BOUNDS
def test_no_more_launches_than_torch(clips, bound):
    """For one dtype: small gradients, and ones of several blocks."""
    runs = Run(1000, (64,), torch.float32), Run(20, (300, 300), torch.float32)
    ours, theirs = (launched(clip, Case(runs), bound) for clip in clips)
    assert 0 < ours <= theirs, (ours, theirs)


@BOUNDS
def test_a_tenth_of_torch_s_launches_for_two_dtypes(bound):
    """torch multiplies, and copies norms, one by one where dtypes differ."""
    runs = Run(500, (64,), torch.float32), Run(500, (64,), torch.bfloat16)
    case = Case(runs, mixed=True)
    ours, theirs = (launched(clip, case, bound) for clip in NORM)
    assert 0 < ours <= theirs / 10, (ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("total", [3.0, 1 / 3, 1e-30, 1e30, float("inf")])
def test_a_coefficient_of_another_dtype(dtype, total):
    """Rounded once for all gradients, it gives the bits of rounding each."""
    runs = Run(40, (64,), dtype), Run(3, (), dtype), Run(3, (70000,), dtype)
    for norm_dtype in (torch.float32, torch.float64):
        params, expected = build(Case(runs), "cuda"), build(Case(runs), "cuda")
        total_norm = torch.tensor(total, dtype=norm_dtype, device="cuda")
        clip_grads_with_norm_(params, 1.0, total_norm)
        torch.nn.utils.clip_grads_with_norm_(expected, 1.0, total_norm)
        assert_same_gradients(params, expected)
