"""clip_grad_norm_ and clip_grad_value_ against torch's own on a GPU."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

import robo_orchard_fasthooks
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
from robo_orchard_fasthooks.clip import clip_grad_norm_, clip_grad_value_

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
    case=cases((*REAL, torch.complex64), CUDA_LAYOUTS),
    bound=bounds,
    norm_type=st.just(2.0) | st.sampled_from(NORM_TYPES),
    error_if_nonfinite=st.booleans(),
    foreach=foreachs,
)
@settings(thorough, max_examples=500)
def test_norm(case, bound, norm_type, error_if_nonfinite, foreach):
    assert_clips_like(
        *NORM,
        lambda: build(case, "cuda"),
        bound.max_norm(build(case, "cuda"), norm_type),
        norm_type,
        error_if_nonfinite,
        foreach,
    )


@given(
    case=cases(REAL, CUDA_LAYOUTS).filter(has_gradients),
    clip_value=st.sampled_from(CLIP_VALUES),
    foreach=foreachs,
)
@settings(thorough, max_examples=200)
def test_value(case, clip_value, foreach):
    assert_clips_like(
        *VALUE, lambda: build(case, "cuda"), clip_value, foreach=foreach
    )


@pytest.mark.parametrize("dtype", [*REAL, torch.complex64], ids=str)
@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("ulps", range(-3, 4))
def test_where_clipping_begins(ulps, norm_type, dtype):
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
    def make():
        first, second = (build(gradients(), f"cuda:{at}") for at in (1, 0))
        return first + second

    assert_clips_like(*clips, make, bound)


@contextmanager
def no_syncs():
    """Whatever makes the host wait for the device raises."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_syncs_are_noticed():
    value = torch.ones((), device="cuda")
    with pytest.raises(RuntimeError), no_syncs():
        value.item()


@BOTH
@BOUNDS
def test_the_host_does_not_wait(clips, bound):
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
    def make():
        params = build(Case((Run(5, (64,), torch.float32),)), "cuda")
        params[3].grad = params[3].grad.to_sparse()
        return params

    assert_treats_sparse_like(*clips, make, bound, 3)


def launches(function, *args):
    """How many kernels, copies and fills the call has the device run."""
    function(*args)
    torch.cuda.synchronize()
    with profile(
        activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]
    ) as profiler:
        function(*args)
        torch.cuda.synchronize()
    device = torch.autograd.DeviceType.CUDA
    return sum(event.device_type == device for event in profiler.events())


@BOUNDS
def test_fewer_launches_than_torch(bound):
    case = Case((Run(1000, (64,), torch.float32),))
    ours, theirs = (
        launches(clip, build(case, "cuda"), bound) for clip in NORM
    )
    assert theirs > 0
    assert ours <= 0.75 * theirs, (ours, theirs)


@BOUNDS
def test_no_more_launches_for_values(bound):
    case = Case((Run(1000, (64,), torch.float32),))
    ours, theirs = (
        launches(clip, build(case, "cuda"), bound) for clip in VALUE
    )
    assert 0 < ours <= theirs
