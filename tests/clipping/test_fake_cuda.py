"""Which operations clipping calls on CUDA, seen without a GPU.

Fake tensors of device "cuda" have no memory; who reads a number from one gets
an error, as does every operation whose output depends on values.
"""

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

import robo_orchard_fasthooks
from helpers.gradients import assert_same_gradients, same_bits
from robo_orchard_fasthooks import clip

F32, BF16 = torch.float32, torch.bfloat16


class Calls(TorchDispatchMode):
    """Records each operation, and for how many tensors it was called."""

    def __init__(self):
        super().__init__()
        self.found = []
        self.from_host = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).rpartition(".")[0]
        if name == "aten._to_copy" and args[0].is_cpu:  # To the device.
            assert (kwargs or {}).get("non_blocking"), "the host waits"
            self.from_host += 1
        if name not in ("prim.device", "aten.empty"):  # No work for a GPU.
            many = isinstance(args[0], (list, tuple)) if args else False
            self.found.append((name, len(args[0]) if many else 1))
        return func(*args, **(kwargs or {}))

    def of(self, name):
        return [count for each, count in self.found if each == f"aten.{name}"]


@pytest.fixture
def fake():
    with FakeTensorMode() as mode:
        yield mode


def parameters(count, dtypes=(F32,), device="cuda"):
    """Of 64 and 65 elements, with the dtypes in turn."""
    params = []
    for index in range(count):
        dtype = dtypes[index % len(dtypes)]
        value = torch.zeros(64 + index % 2, dtype=dtype, device=device)
        params.append(torch.nn.Parameter(value))
        params[-1].grad = torch.full_like(value, index + 1)
    return params


def by_norm(params, module=clip):
    return module.clip_grad_norm_(params, 1.0)


def by_value(params, module=clip):
    return module.clip_grad_value_(params, 1.0)


def halves(params, module=clip):
    total = module.get_total_norm([param.grad for param in params])
    module.clip_grads_with_norm_(params, 1.0, total)
    return total


def hook(params):
    config = robo_orchard_fasthooks.GradientClippingHookConfig(
        clip_mode="norm", max_norm=1.0
    )
    args = robo_orchard_fasthooks.PipelineHookArgs(
        Accelerator(cpu=True), optimizer=torch.optim.SGD(params, lr=1)
    )
    with config().begin("on_step", args):
        pass


FUNCTIONS = pytest.mark.parametrize("call", [by_norm, halves, by_value])


@pytest.fixture
def mesh():
    """Over torch's own stand-in for a process group, which reduces nothing."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield init_device_mesh("cuda", (2,))
    dist.destroy_process_group()


def sharded(mesh, count, dtypes=(F32,)):
    params = parameters(count, dtypes)
    for index, param in enumerate(params):
        placements = [Replicate() if index % 3 == 0 else Shard(0)]
        grad = DTensor.from_local(param.grad, mesh, placements)
        params[index] = torch.nn.Parameter(grad.detach())
        params[index].grad = grad
    return params


@pytest.mark.parametrize("call", [by_norm, halves, hook, by_value])
@pytest.mark.parametrize("dtypes", [(F32,), (F32, BF16)], ids=str)
@pytest.mark.parametrize("is_sharded", [False, True])
def test_foreach_kernels_alone(mesh, fake, call, dtypes, is_sharded):
    """One call for each dtype, none for each gradient, one all-reduce."""
    lists = []
    for count in (40, 100):
        if is_sharded:
            params = sharded(mesh, count, dtypes)
        else:
            params = parameters(count, dtypes)
        with Calls() as calls:
            call(params)
        lists.append([name for name, _ in calls.found])
        # So that it can be captured in a graph.
        assert is_sharded or not calls.from_host
    assert lists[0] == lists[1]
    reductions = is_sharded and call is not by_value
    assert lists[0].count("c10d.allreduce_") == reductions
    each = [100 // len(dtypes)] * len(dtypes)
    if call is by_value:
        assert calls.of("_foreach_clamp_max_") == each
    else:
        assert is_sharded or calls.of("_foreach_norm") == each
        assert calls.of("_foreach_mul_") == each


def test_gradients_that_no_fused_kernel_multiplies(fake):
    """Those without dimensions or with gaps take a call of their own."""
    fused = [((4, 3), (3, 1)), ((4, 3), (1, 4)), ((5,), (1,))]
    others = [((), ()), ((4, 3), (6, 2))]
    params = parameters(1)
    for shape, strides in fused + others:
        grad = torch.empty_strided(shape, strides, dtype=BF16, device="cuda")
        params.append(torch.nn.Parameter(torch.zeros_like(grad)))
        params[-1].grad = grad
    with Calls() as calls:
        by_norm(params)
    assert sorted(calls.of("_foreach_mul_")) == [1, len(others), len(fused)]


def test_only_an_error_waits(fake):
    """To raise an error if the norm is not finite, the host has to know it."""
    params = parameters(4)
    with Calls() as calls, pytest.raises(DataDependentOutputException):
        clip.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    assert not calls.of("_foreach_mul_")


def test_a_sharded_gradient_that_this_rank_lacks(mesh, fake):
    """Which ones some rank has is known to the device alone."""
    params = sharded(mesh, 40)
    params[1].grad = None
    with Calls() as calls, pytest.raises(DynamicOutputShapeException):
        by_norm(params)
    assert not calls.of("_foreach_mul_")


@FUNCTIONS
def test_fake_and_real_gradients_share_no_plan(call):
    """On a CPU, where a plan may hold a tensor."""
    for _ in range(2):
        with FakeTensorMode():
            call(parameters(30, (F32, BF16)))
            call(parameters(30, (F32, BF16), "cpu"))
        params, theirs = (parameters(30, (F32, BF16), "cpu") for _ in "12")
        got, expected = call(params), call(theirs, torch.nn.utils)
        assert expected is None or same_bits(got, expected)
        assert_same_gradients(params, theirs)


@FUNCTIONS
@pytest.mark.filterwarnings("ignore:.*jit.trace")
@pytest.mark.parametrize("mode", ["real", "symbolic", "jit"])
def test_what_is_traced_clips_other_gradients(call, mode):
    def clipped(module):
        def function(*grads):
            params = parameters(6, device="cpu")
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad.clone()
            total = call(params, module)
            found = [param.grad for param in params]
            return (*found,) if total is None else (total, *found)

        return function

    shown = [param.grad for param in parameters(6, device="cpu")]
    if mode == "jit":
        graph = torch.jit.trace(clipped(clip), shown)
    else:
        graph = make_fx(clipped(clip), tracing_mode=mode)(*shown)
    for factor in (1e-3, 1.0, 1e3):
        grads = [factor * grad for grad in shown]
        found, expected = graph(*grads), clipped(torch.nn.utils)(*grads)
        assert all(map(same_bits, found, expected))
