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

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from robo_orchard_fasthooks._clipping import replay
from robo_orchard_fasthooks._clipping.gradients import GradientNorm

CALLS_AT_REST = replay._REST
GRAPHS = replay._KEYS
MISSES = replay._DEBT


class FakeGraph:
    """Takes the place of CudaGraph."""

    def __init__(self, work, graphs):
        self.graphs = graphs
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
        graphs.alive.append(self)

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

    def release(self):
        self.graphs.alive.remove(self)


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
    """All stand-ins of one test, and what may go wrong with them.

    Attributes:
        alive (list[FakeGraph]): Those that were captured and not released.
        attempts (int): How often a capture was begun.
        replays (int): How often any was replayed.
        fails (bool): Whether captures fail.
        breaks (bool): Whether replays fail.
        queue (Any): Where kernels are queued.
    """

    def __init__(self, monkeypatch):
        self.alive = []
        self.attempts = self.replays = 0
        self.fails = self.breaks = False
        self.queue = "stream 0"
        self.after_replay = self.before_norm = lambda: None
        replay._REPLAYS.clear()
        for name, value in {
            "CudaGraph": lambda work: FakeGraph(work, self),
            "_on_cuda": lambda grads: True,
            "_queue": lambda device: self.queue,
            "norm_of_gradients": self._norm,
            "scale_to_norm_": _scale_to_norm_,
        }.items():
            monkeypatch.setattr(replay, name, value)
        monkeypatch.setattr(replay.Tables, "usable", False)

    def _norm(self, gradients, params, norm_type, *others):
        self.before_norm()
        grads = [param.grad for param in params if param.grad is not None]
        total = torch.nn.utils.get_total_norm(grads, norm_type, foreach=True)
        return GradientNorm(total, grads)


def _scale_to_norm_(gradients, params, norm, max_norm, foreach, name, scale_):
    scale_(norm, torch.clamp(max_norm / (norm.total_norm + 1e-6), max=1.0))
