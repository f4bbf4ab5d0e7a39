"""The CUDA side of replayed clipping, as far as it goes without a GPU.

`torch.cuda` and Triton are replaced by records of what was asked of them; that
what they are asked is right was never tried on a GPU.
"""

import gc
import sys
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers.gradients import same_bits
from robo_orchard_fasthooks import _cuda_graph
from robo_orchard_fasthooks._clipping.foreach import by_dtype
from robo_orchard_fasthooks._clipping.gradients import Call, Gradients
from robo_orchard_fasthooks._cuda_graph import replay
from robo_orchard_fasthooks._cuda_graph.capture import CudaGraph
from robo_orchard_fasthooks._cuda_graph.tables import Tables, _table

KERNEL = "robo_orchard_fasthooks._cuda_graph.kernel"


@pytest.fixture
def calls(monkeypatch):
    """What torch.cuda was asked, in order."""
    found = []

    def make_stream(name):
        def wait_stream(other):
            found.append(f"{name} waits for {other.name}")

        return SimpleNamespace(name=name, wait_stream=wait_stream)

    class Graph:
        def capture_begin(self, *pool, **kwargs):
            found.append(("begin", *pool, kwargs))

        def capture_end(self):
            found.append("end")

        def replay(self):
            found.append("replay")

    @contextmanager
    def stream(which):
        found.append(f"on {which.name}")
        yield
        found.append(f"off {which.name}")

    for name, value in {
        "CUDAGraph": Graph,
        "Stream": lambda: make_stream("side"),
        "current_stream": lambda: make_stream("current"),
        "graph_pool_handle": lambda: "pool",
        "stream": stream,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return found


MODE = {"capture_error_mode": "thread_local"}
BEGIN = ("begin", "pool", MODE)


@pytest.mark.parametrize("collects", [gc.enable, gc.disable])
def test_a_capture(calls, collects):
    result = torch.tensor(2.0)
    collects()
    try:
        graph = CudaGraph(
            lambda: calls.append(f"work, {gc.isenabled()}") or result
        )
        assert gc.isenabled() == (collects is gc.enable)
    finally:
        gc.enable()
    assert calls == [
        *("side waits for current", "on side", BEGIN, "work, False", "end"),
        *("off side", "current waits for side"),
    ]
    calls.clear()
    copies = [graph.replay()]
    result.fill_(3.0)  # As the next replay does.
    copies.append(graph.replay())
    assert copies == [2.0, 3.0]
    assert calls == ["replay", "replay"]


def test_a_capture_whose_work_fails_is_ended(calls):
    with pytest.raises(ZeroDivisionError):
        CudaGraph(lambda: 1 / 0)
    assert calls[2:] == [BEGIN, "end"]
    assert gc.isenabled()


def test_a_capture_that_cannot_be_ended(calls, monkeypatch):
    """The allocator and the default generator are told by hand."""

    class Graph(torch.cuda.CUDAGraph):
        def capture_end(self):
            super().capture_end()
            if calls.count("end") == 1:
                raise RuntimeError("operation not permitted")

    def note(name):
        return lambda *args, **device: calls.append((name, *args))

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, note(name), raising=False)
    monkeypatch.setattr(torch, "zeros", note("zeros"))
    with pytest.raises(RuntimeError, match="not permitted"):
        CudaGraph(lambda: None)
    assert calls[2:] == [
        *(BEGIN, "end"),
        ("_cuda_endAllocateToPool", 3, "pool"),
        ("_cuda_releasePool", 3, "pool"),
        *(("begin", MODE), ("zeros", 1), "end"),
    ]


def test_a_graph_that_dies_during_a_capture(calls, monkeypatch):
    """To destroy it would end the capture: it is kept until later."""
    graph = CudaGraph(lambda: None)
    captured = weakref.ref(graph._graph)
    monkeypatch.setattr(
        torch.cuda, "is_current_stream_capturing", lambda: True
    )
    del graph
    assert captured() is not None
    CudaGraph(lambda: None)
    assert captured() is None


@pytest.mark.parametrize(
    ("devices", "hip", "initialized", "expected"),
    [
        (("cuda:0", "cuda:0"), None, True, True),
        (("cuda:0", "cuda:1"), None, True, False),
        (("cuda:0", "cuda:0"), "6.0", True, False),
        (("cuda:0", "cuda:0"), None, False, False),
        (("cpu", "cpu"), None, True, False),
    ],
)
def test_where(monkeypatch, devices, hip, initialized, expected):
    """Neither on two devices nor on ROCm, nor where only fake ones are."""
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
    with FakeTensorMode():
        grads = [torch.empty(2, device=device) for device in devices]
        call = Call(Gradients(), grads, given=grads)
    for group in call.groups:
        group.grads = [torch.ones(2)]  # Fake ones are not captured.
    device = replay._device(call.params)
    group = device and replay._eligible(call, device)
    assert (group is not None) == expected


@pytest.fixture
def usable(monkeypatch):
    monkeypatch.setattr(Tables, "usable", True)


def gradients():
    grads = [torch.arange(1.0, 6), torch.arange(4.0).double(), torch.ones(())]
    return grads, [grad.clone() for grad in grads]


def multiplied(grads):
    Tables(grads).multiply_(by_dtype(grads), torch.tensor(0.25))


def clamped(grads):
    Tables(grads, 1.5).clamp_(by_dtype(grads))


def assert_foreach(clips, grads, before):
    expected = [
        grad * 0.25 if clips is multiplied else grad.clamp(-1.5, 1.5)
        for grad in before
    ]
    assert all(map(same_bits, grads, expected))


BOTH = pytest.mark.parametrize("clips", [multiplied, clamped])


class FakeKernel:
    CHUNK = SimpleNamespace(value=4)
    DTYPES = {"torch.float32": "float32", "torch.float64": "float64"}

    def __init__(self, error=None):
        self.error = error
        self.launches = []
        self.clip_kernel = self

    def __getitem__(self, grid):
        def launch(table, *args, **options):
            if self.error is not None:
                raise self.error
            self.launches.append((grid, *args))

        return launch


@BOTH
@pytest.mark.parametrize("fault", ["no Triton", "no such card"])
def test_foreach_where_the_kernel_fails(usable, monkeypatch, clips, fault):
    """One warning says so, and the kernel is not tried again."""
    kernel = FakeKernel(ValueError(fault))
    if fault == "no Triton":
        monkeypatch.setitem(sys.modules, "triton", None)
        monkeypatch.delitem(sys.modules, KERNEL, raising=False)
        monkeypatch.delattr(_cuda_graph, "kernel", raising=False)
        fault = "foreach.* triton"
    else:
        monkeypatch.setattr(_cuda_graph, "kernel", kernel, raising=False)
    grads, before = gradients()
    with pytest.warns(UserWarning, match=fault) as warned:
        clips(grads)
    assert len(warned) == 1
    assert_foreach(clips, grads, before)
    kernel.error = None
    grads, before = gradients()
    clips(grads)  # A warning would be an error.
    assert not kernel.launches
    assert_foreach(clips, grads, before)


def test_tables(monkeypatch):
    """Lengths of billions, without their memory."""
    large = SimpleNamespace(
        data_ptr=lambda: 16,
        numel=lambda: 5 * 2**30,
        device=torch.device("cpu"),
    )
    monkeypatch.setattr(torch.Tensor, "data_ptr", lambda each: each.data_ptr())
    table, rows, chunks = _table([large, large], -0.5, 65536)
    assert (rows, chunks) == (2, 2 * 5 * 2**14)
    expected = [16, 16, 0, 5 * 2**14, 5 * 2**30, 5 * 2**30]
    assert table[:-1].tolist() == expected
    assert table[-1:].view(torch.float64).item() == -0.5


def test_a_launch_for_each_dtype(usable, monkeypatch):
    kernel = FakeKernel()
    monkeypatch.setattr(_cuda_graph, "kernel", kernel, raising=False)
    grads, before = gradients()
    multiplied(grads)
    # Five elements are two chunks of four.
    launches = {launch[3]: launch[:2] for launch in kernel.launches}
    assert launches == {"float32": ((2,), 1), "float64": ((1,), 1)}
    # The 0-dim one is not the kernel's.
    assert grads[2] == 0.25
    assert all(map(torch.equal, grads[:2], before[:2]))
