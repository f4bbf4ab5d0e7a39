"""Replayed clipping and its kernel on a GPU, against torch's own.

None of these tests has run yet.
"""

import gc

import pytest
import torch
from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile

import robo_orchard_fasthooks
from helpers.gradients import CUDA, EXAMPLES, same_bits
from robo_orchard_fasthooks._cuda_graph import replay
from robo_orchard_fasthooks.clip import clip_grad_norm_, clip_grad_value_

pytestmark = CUDA
BOUNDS = pytest.mark.parametrize("bound", [0.01, 1e6])
DTYPES = pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32,),
        (torch.bfloat16,),
        (torch.float32, torch.bfloat16, torch.float16, torch.float64),
    ],
    ids=str,
)
SIZES = (1, 7, 64, 2049, 65537, 300_000)


def parameters(dtypes, count=60):
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
    generator = torch.Generator("cuda").manual_seed(seed)
    copies = []
    for param in params:
        noise = torch.randn(
            param.shape, generator=generator, device="cuda"
        ).to(param.dtype)
        param.grad.copy_(noise)
        copies.append(torch.nn.Parameter(param.detach().clone()))
        copies[-1].grad = param.grad.clone()
    return copies


def assert_same(params, copies):
    for param, copy in zip(params, copies, strict=True):
        assert same_bits(param.grad.clone(), copy.grad)


def replays():
    """The graphs that there are."""
    return [
        entry.graph
        for each in replay._REPLAYS.values()
        for entry in each._entries
        if entry.graph is not None
    ]


@pytest.fixture(autouse=True)
def empty():
    replay._REPLAYS.clear()
    yield
    replay._REPLAYS.clear()


@BOUNDS
@DTYPES
@pytest.mark.parametrize("by_norm", [True, False])
def test_bits(dtypes, bound, by_norm):
    params, norms = parameters(dtypes), []
    for seed in range(6):
        copies = fill(params, seed)
        if by_norm:
            total = torch.nn.utils.clip_grad_norm_(copies, bound)
            got = clip_grad_norm_(params, bound, cuda_graph=True)
            norms.append((got, total))
        else:
            torch.nn.utils.clip_grad_value_(copies, bound)
            clip_grad_value_(params, bound, cuda_graph=True)
        assert_same(params, copies)
        assert len(replays()) == (seed > 1)
    # No later call has changed an earlier norm.
    assert all(same_bits(*pair) for pair in norms)
    assert replay.Tables.usable


def test_a_replay_is_few_launches_from_the_host():
    params = parameters((torch.float32,), 500)
    for seed in range(4):
        fill(params, seed)
        clip_grad_norm_(params, 0.01, cuda_graph=True)
    torch.cuda.synchronize()
    # With CUDA: a session without it may leave later ones without kernels.
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as profiled:
        clip_grad_norm_(params, 0.01, cuda_graph=True)
    names = [event.name for event in profiled.events()]
    assert not [name for name in names if name.startswith("aten::_foreach")]


def test_within_somebody_elses_capture():
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


def test_another_stream():
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


def test_memory_is_freed():
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


def test_addresses_that_change():
    params = parameters((torch.float32,))
    for seed in range(EXAMPLES):
        copies = fill(params, seed)
        if seed % 7 == 0:
            for param in params:
                param.grad = param.grad.clone()
        torch.nn.utils.clip_grad_norm_(copies, 0.01)
        clip_grad_norm_(params, 0.01, cuda_graph=True)
        assert_same(params, copies)
