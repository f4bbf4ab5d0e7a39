"""Clipping on a GPU, against torch's own functions there.

None of this has run on a GPU yet. EXAMPLES is how many random lists are
clipped.
"""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st

import robo_orchard_fasthooks
from gpu_measured import launches, sync_debug_mode
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
    random_lists,
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
foreachs = st.sampled_from([None, None, True, False])
no_syncs = partial(sync_debug_mode, "error")


def each_once(case):
    """Without a gradient that is in a list twice.

    The blocks of a launch run side by side: torch's own foreach kernels race
    where two of them scale the same gradient.
    """
    return replace(case, shared=0, twice=0)


def gradients(device="cuda"):
    """Of several shapes and dtypes, large and small."""
    runs = (
        Run(40, (64,), torch.float32),
        Run(3, (300, 300), torch.float32, "transposed"),
        Run(5, (64,), torch.bfloat16),
        Run(2, (), torch.float32),
    )
    return build(Case(runs, mixed=True), device)


@given(
    case=cases((*REAL, torch.complex64), CUDA_LAYOUTS).map(each_once),
    bound=bounds,
    norm_type=st.just(2.0) | st.sampled_from(NORM_TYPES),
    error_if_nonfinite=st.booleans(),
    foreach=foreachs,
)
@random_lists
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
@random_lists
def test_value(case, clip_value, foreach):
    """The same, zeros and their signs included: foreach kernels on both."""
    assert_clips_like(
        *VALUE, lambda: build(case, "cuda"), clip_value, foreach=foreach
    )


@pytest.mark.parametrize("dtype", [*REAL, torch.complex64], ids=str)
@pytest.mark.parametrize("ulps", range(-2, 3))
def test_where_clipping_begins(ulps, dtype):
    """The coefficient is torch's to the last bit."""
    case = Case((Run(20, (64,), dtype),))
    max_norm = Bound(ulps=ulps).max_norm(build(case, "cuda"), 2.0)
    assert_clips_like(*NORM, lambda: build(case, "cuda"), max_norm)


@BOTH
@BOUNDS
@pytest.mark.parametrize("devices", ["cpu cuda", "cuda cpu", "cuda:1 cuda:0"])
def test_several_devices(clips, bound, devices):
    """They are left to torch; the total is on the device of the first."""
    devices = devices.split()
    if torch.cuda.device_count() < 2 and "cuda:1" in devices:
        pytest.skip("needs two CUDA GPUs")

    def make():
        pairs = zip(*map(gradients, devices), strict=True)
        return [param for pair in pairs for param in pair]

    got, _ = assert_clips_like(*clips, make, bound)
    assert got is None or got.device == make()[0].grad.device


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
    params, expected = gradients(), gradients()
    clip(gradients(), bound)
    with no_syncs():
        got = clip(params, bound)
    total = reference(expected, bound)
    assert got is None or same_bits(got, total)
    assert_same_gradients(params, expected)


@BOUNDS
@pytest.mark.parametrize("mode", ["norm", "value"])
def test_the_hook_does_not_wait(mode, bound):
    """Nor does the hook at a step, which has torch's bits."""
    AcceleratorState._reset_state(True)
    accelerator = Accelerator()
    assert accelerator.device.type == "cuda"
    hook = robo_orchard_fasthooks.GradientClippingHookConfig(
        clip_mode=mode, max_norm=bound, clip_value=bound
    )()
    expected = gradients()
    (NORM if mode == "norm" else VALUE)[1](expected, bound)
    for context in (nullcontext, no_syncs):
        params = gradients()
        args = robo_orchard_fasthooks.PipelineHookArgs(
            accelerator, optimizer=torch.optim.SGD(params, lr=1)
        )
        with context(), hook.begin("on_step", args):
            pass
        assert_same_gradients(params, expected)
    AcceleratorState._reset_state(True)


@BOTH
@pytest.mark.parametrize("fill", ["normal", "small", float("nan")])
def test_captured_in_a_graph(clips, fill):
    """Replays clip what the gradients are by then, above or below alike."""
    clip, reference = clips
    params = build(Case((Run(40, (64,), torch.float32),)), "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # Warm, as capturing asks for.
        clip(params, 1.0)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = clip(params, 1.0)
    # What it was captured with comes between: nothing is left of it.
    for now in (fill, "small", fill, "normal"):
        fresh = Case((Run(40, (64,), torch.float32, fill=now),), seed=7)
        expected = build(fresh, "cuda")
        for param, other in zip(params, expected, strict=True):
            param.grad.copy_(other.grad)
        graph.replay()
        total = reference(expected, 1.0)
        assert captured is None or same_bits(captured, total)
        assert_same_gradients(params, expected)


def test_not_finite():
    """It is named, which may wait for the device; nothing has changed."""

    def make():
        params = build(Case((Run(60, (64,), torch.float32),)), "cuda")
        params[7].grad[3] = params[59].grad[3] = float("nan")
        return params

    params = make()
    with pytest.raises(RuntimeError, match=r"parameter 7\b"):
        clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    assert_same_gradients(params, make())


@BOTH
@BOUNDS
def test_sparse(clips, bound):
    """torch's bits where it clips them, otherwise an error by name."""

    def make():
        params = build(Case((Run(5, (64,), torch.float32),)), "cuda")
        params[3].grad = params[3].grad.to_sparse()
        return params

    assert_treats_sparse_like(*clips, make, bound, 3)


@BOTH
@BOUNDS
@pytest.mark.parametrize("second", [torch.float32, torch.bfloat16], ids=str)
def test_no_more_launches_than_torch(clips, bound, second):
    """torch multiplies, and copies norms, one by one where dtypes differ."""
    runs = Run(500, (64,), torch.float32), Run(500, (64,), second)
    counts = []
    for clip in clips:
        params = build(Case(runs, mixed=True), "cuda")
        clip(params, bound)
        counts.append(launches(lambda c=clip, p=params: c(p, bound)))
    tenth = clips is NORM and second == torch.bfloat16
    assert 0 < counts[0] <= counts[1] / (10 if tenth else 1), counts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("total", [3.0, 1 / 3, 1e-30, 1e30, float("inf")])
def test_a_coefficient_of_another_dtype(dtype, total):
    """Rounded once for all gradients, it gives the bits of rounding each."""
    runs = Run(40, (64,), dtype), Run(3, (), dtype), Run(3, (70000,), dtype)
    for norm_dtype in (torch.float32, torch.float64):
        total_norm = torch.tensor(total, dtype=norm_dtype, device="cuda")
        assert_clips_like(
            clip_grads_with_norm_,
            torch.nn.utils.clip_grads_with_norm_,
            lambda: build(Case(runs), "cuda"),
            1.0,
            total_norm,
        )
