"""Clipping on a GPU: waits, launches and graphs, against torch's functions.

None of this has run on a GPU yet.
"""

import gc
import os
import warnings
from contextlib import contextmanager, nullcontext

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.profiler import ProfilerActivity, profile

import robo_orchard_fasthooks
from helpers.gradients import (
    CUDA,
    Case,
    Run,
    assert_clips_like,
    assert_same_gradients,
    build,
    same_bits,
)
from robo_orchard_fasthooks._cuda_graph.capture import CudaGraph
from robo_orchard_fasthooks._cuda_graph.tables import Tables
from robo_orchard_fasthooks.clip import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
)

pytestmark = CUDA
NORM = (clip_grad_norm_, torch.nn.utils.clip_grad_norm_)
VALUE = (clip_grad_value_, torch.nn.utils.clip_grad_value_)
BOTH = pytest.mark.parametrize("clips", [NORM, VALUE], ids=["norm", "value"])
# Both below and above what the gradients here come to.
BOUNDS = pytest.mark.parametrize("bound", [0.01, 1e6])


@contextmanager
def no_syncs():
    """Whatever makes the host wait for the device is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*prototype feature")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def launches(clip):
    """How many kernels a call runs on the device."""
    torch.cuda.synchronize()
    # With CPU: a session without it may leave later ones without kernels.
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as found:
        clip()
        torch.cuda.synchronize()
    kinds = [event.device_type for event in found.events()]
    return kinds.count(torch.autograd.DeviceType.CUDA)


def gradients(device="cuda"):
    """Of several shapes and dtypes, large and small."""
    runs = (
        Run(40, (64,), torch.float32),
        Run(3, (300, 300), torch.float32, "transposed"),
        Run(5, (64,), torch.bfloat16),
        Run(2, (), torch.float32),
    )
    return build(Case(runs, mixed=True), device)


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


# Replayed clipping and its kernel.

DTYPES = pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32,),
        (torch.bfloat16,),
        (torch.float32, torch.bfloat16, torch.float16, torch.float64),
    ],
    ids=str,
)
# Smaller where an interpreter runs the kernels.
SIZES = (1, 7, 64, 2049, 65537, int(os.environ.get("CUDA_NUMEL", 300_000)))
TENSORS = int(os.environ.get("CUDA_TENSORS", 60))


def parameters(dtypes, count=TENSORS):
    params = []
    for index in range(count):
        size, dtype = SIZES[index % len(SIZES)], dtypes[index % len(dtypes)]
        value = torch.zeros(size, dtype=dtype, device="cuda")
        params.append(torch.nn.Parameter(value))
        # At other alignments, too.
        flat = torch.zeros(size + 1, dtype=dtype, device="cuda")
        params[-1].grad = flat[index % 2 :][:size]
    return params


def fill(params, seed):
    """New values in the same memory, and a copy of all."""
    torch.manual_seed(seed)
    copies = []
    for index, param in enumerate(params):
        param.grad.copy_(torch.randn(param.shape, device="cuda"))
        copies.append(torch.nn.Parameter(param.detach().clone()))
        # torch's norms depend on how a gradient is aligned.
        flat = param.grad.new_empty(param.numel() + 1)
        grad = flat[index % 2 :][: param.numel()]
        copies[-1].grad = grad.copy_(param.grad)
    return copies


def assert_same(params, copies):
    for param, copy in zip(params, copies, strict=True):
        assert same_bits(param.grad.clone(), copy.grad.clone())


def replays():
    """The graphs that there are."""
    return [it for it in gc.get_objects() if type(it) is CudaGraph]


@pytest.fixture
def empty():
    robo_orchard_fasthooks.clip._kept.cache_clear()
    yield
    robo_orchard_fasthooks.clip._kept.cache_clear()


@pytest.mark.usefixtures("empty")
class TestReplayed:
    @BOTH
    @BOUNDS
    @DTYPES
    def test_bits(self, clips, dtypes, bound):
        params, norms = parameters(dtypes), []
        for seed in range(6):
            copies = fill(params, seed)
            got = clips[0](params, bound, cuda_graph=True)
            norms.append((got, clips[1](copies, bound)))
            assert_same(params, copies)
            assert len(replays()) == (seed > 1)
        # No later call has changed an earlier norm.
        assert clips is VALUE or all(same_bits(*pair) for pair in norms)
        assert Tables.usable

    def test_a_replay_is_few_launches_from_the_host(self):
        params = parameters((torch.float32,))
        for seed in range(4):
            fill(params, seed)
            clip_grad_norm_(params, 0.01, cuda_graph=True)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            clip_grad_norm_(params, 0.01, cuda_graph=True)
        names = [event.name for event in found.events()]
        assert "aten::copy_" in names
        assert not any(name.startswith("aten::_foreach") for name in names)

    def test_within_somebody_elses_capture(self):
        params = parameters((torch.float32,))
        copies = fill(params, 0)
        for _ in range(2):
            clip_grad_norm_(params, 0.01, cuda_graph=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(4):
                total = clip_grad_norm_(params, 0.01, cuda_graph=True)
        assert not replays()
        fill(params, 0)
        graph.replay()
        for _ in range(4):
            expected = torch.nn.utils.clip_grad_norm_(copies, 0.01)
        assert same_bits(total, expected)
        assert_same(params, copies)

    def test_another_stream(self):
        params = parameters((torch.float32,))
        stream = torch.cuda.Stream()
        for seed in range(10):
            copies = fill(params, seed)
            torch.nn.utils.clip_grad_norm_(copies, 0.01)
            stream.wait_stream(torch.cuda.current_stream())
            if seed % 2:
                with torch.cuda.stream(stream):
                    clip_grad_norm_(params, 0.01, cuda_graph=True)
                torch.cuda.current_stream().wait_stream(stream)
            else:
                clip_grad_norm_(params, 0.01, cuda_graph=True)
            assert_same(params, copies)
        assert len(replays()) == 2

    def test_another_device_is_current(self):
        if torch.cuda.device_count() < 2:
            pytest.skip("needs two CUDA GPUs")
        with torch.cuda.device(1):
            params = parameters((torch.float32,))
        for seed in range(5):
            copies = fill(params, seed)
            got = clip_grad_norm_(params, 0.01, cuda_graph=True)
            total = torch.nn.utils.clip_grad_norm_(copies, 0.01)
            assert same_bits(got, total)
            assert_same(params, copies)
        assert len(replays()) == 1

    def test_memory_is_freed(self):
        """With the optimizer of a hook."""
        params = parameters((torch.float32,))
        optimizer = torch.optim.SGD(params, lr=1)
        hook = robo_orchard_fasthooks.GradientClippingHookConfig(
            clip_mode="norm", max_norm=0.01, cuda_graph=True
        )()
        args = robo_orchard_fasthooks.PipelineHookArgs(
            Accelerator(), optimizer=optimizer
        )
        fill(params, 0)
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        for _ in range(5):
            with hook.begin("on_step", args):
                pass
        assert len(replays()) == 1
        hook.total_norm = None
        del optimizer, args
        gc.collect()
        assert not replays()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        assert torch.cuda.memory_reserved() <= before
