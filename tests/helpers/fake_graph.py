"""A stand-in for a CUDA graph, on a CPU.

As with a CUDA graph, a capture does not do the work, and whoever reads a
number meanwhile gets an error, with which the capture is lost. A replay does
the same operations again, on the memory that they had, whatever refers to it
by then; the result lies in the same memory each time. Unlike a CUDA graph it
keeps that memory alive, so that a replay that should not have been is seen by
its result and does not crash.

What asks whether a tensor is on a CPU would not do what it does on CUDA, so
torch's foreach functions take the place of this package's norm, and the kernel
is off.
"""

from weakref import WeakSet

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from robo_orchard_fasthooks import clip
from robo_orchard_fasthooks._clipping.local import LocalPlan
from robo_orchard_fasthooks._cuda_graph import replay

CALLS_AT_REST = replay._REST
GRAPHS = replay._ENTRIES
CAPTURES = replay._DEBT // replay._COST
"""Captures without a replay, after which no more are tried."""


class FakeGraph:
    """Takes the place of CudaGraph."""

    def __init__(self, graphs, work, kept):
        self.graphs = graphs
        self.kept = kept
        recorder = Recorder()
        try:
            graphs.attempts += 1
            with recorder:
                self.result = work()
                if graphs.fails:
                    raise RuntimeError("capture failed")
        finally:
            for tensor, before in reversed(recorder.before):
                tensor.copy_(before)
        self.ops = recorder.ops
        graphs.alive.add(self)

    def replay(self):
        if self.graphs.breaks:
            raise RuntimeError("replay failed")
        self.graphs.replays += 1
        for function, args, kwargs, outputs in self.ops:
            found = tree_leaves(function(*args, **kwargs))
            for old, new in zip(outputs, found, strict=True):
                if old is not None and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
        self.graphs.after_replay()
        return None if self.result is None else self.result.clone()


class Recorder(TorchDispatchMode):
    """Records operations, and what they overwrote."""

    def __init__(self):
        super().__init__()
        self.ops = []
        self.before = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "_local_scalar_dense" in str(func):
            raise RuntimeError("operation not permitted in a capture")
        if func._schema.is_mutable:
            for tensor in tree_leaves(args[0]):
                self.before.append((tensor, tensor.clone()))
        out = func(*args, **(kwargs or {}))
        # Aliases: the objects may go.
        args, kwargs, outputs = tree_map_only(
            torch.Tensor,
            torch.Tensor.detach,
            (args, kwargs or {}, tree_leaves(out)),
        )
        self.ops.append((func, args, kwargs, outputs))
        return out


class FakeGraphs:
    """All stand-ins of one test, and what may go wrong with them."""

    def __init__(self, monkeypatch):
        self.alive = WeakSet()
        self.attempts = self.replays = self.stream = 0
        self.fails = self.breaks = False
        self.after_replay = lambda: None
        self._eligible = replay._eligible
        clip._kept.cache_clear()
        for owner, name, value in [
            (replay, "CudaGraph", lambda *args: FakeGraph(self, *args)),
            (replay, "_eligible", self._as_on_cuda),
            (replay.Tables, "usable", False),
            (LocalPlan, "norm", _norm),
            (replay, "_current_stream", lambda index: self.stream),
            (replay, "_device", lambda params: torch.device("cuda", 0)),
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "is_current_stream_capturing", lambda: False),
        ]:
            monkeypatch.setattr(owner, name, value)

    def _as_on_cuda(self, call, device):
        return self._eligible(call, torch.device("cpu"))


def _norm(plan, grads, norm_type):
    return torch.nn.utils.get_total_norm(grads, norm_type, foreach=True)
