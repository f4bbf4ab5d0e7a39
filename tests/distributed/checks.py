"""Building blocks and checks of the tests on several ranks."""

import math

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

import robo_orchard_fasthooks as ours

NAN, INF = math.nan, math.inf
# All norms of the tests lie between the two.
CLIPS, CLIPS_NOT = 1e-3, 1e9


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def grads(params):
    return [param.grad for param in params]


def from_all(value):
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def bits(tensor):
    tensor = local(tensor.detach())
    return torch.where(tensor.isnan(), NAN, tensor).flatten().view(torch.uint8)


def same(first, second):
    """Equal in every bit of this rank's part, where any NaN equals any NaN."""
    if first is None or second is None:
        return first is second
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and torch.equal(bits(first), bits(second))
    )


def assert_same(found, expected):
    pairs = enumerate(zip(found, expected, strict=True))
    assert [index for index, pair in pairs if not same(*pair)] == []


def assert_close(found, expected):
    """Equal within what the order of a sum may change in float32."""
    found, expected = (
        torch.as_tensor(value).detach().double() for value in (found, expected)
    )
    torch.testing.assert_close(
        found, expected, rtol=1e-5, atol=1e-8, equal_nan=True
    )


def assert_total(total, expected):
    """Compares a total with torch's, and with those of the other ranks."""
    total, expected = full(total), full(expected)
    assert type(total) is torch.Tensor
    assert same(total, expected), (total, expected)
    totals = from_all(total)
    assert all(same(total, each) for each in totals), totals


def assert_clipped(total, params, before, expected):
    """Compares with a known norm, and with the other rank."""
    totals = from_all(full(total))
    assert same(*totals), totals
    assert_close(full(total), expected)
    coefficient = CLIPS / (expected + 1e-6)
    for param, old in zip(params, before, strict=True):
        assert (param.grad is None) == (old.grad is None)
        if old.grad is not None:
            assert_close(local(param.grad), local(old.grad) * coefficient)


def randn(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype)


def copies(params):
    """Parameters with copies of the gradients."""
    made = [nn.Parameter(param.detach().clone()) for param in params]
    for copy, param in zip(made, params, strict=True):
        if param.grad is not None:
            copy.grad = param.grad.detach().clone()
    return made


def params_of(gradients):
    gradients = list(gradients)
    params = [nn.Parameter(torch.zeros_like(grad)) for grad in gradients]
    for param, grad in zip(params, gradients, strict=True):
        param.grad = grad.clone()
    return params


def true_norm(gradients, norm_type=2.0):
    flat = torch.cat([grad.flatten().double() for grad in gradients])
    return torch.linalg.vector_norm(flat, norm_type)


def norm_of_parts(params, norm_type):
    """The norm over all ranks, each of which holds a part of the gradients."""
    mine = [local(grad) for grad in grads(params) if grad is not None]
    return true_norm(sum(from_all(mine), []), norm_type)


def batch():
    return 10 * randn((8, 4)), randn((8, 1))


def my_half():
    """This rank's part of the batch."""
    return [part.chunk(2)[dist.get_rank()] for part in batch()]


def backward(model, part=None):
    inputs, targets = part or my_half()
    dtype = next(model.parameters()).dtype
    inputs, targets = inputs.to(dtype), targets.to(dtype)
    nn.functional.mse_loss(model(inputs), targets).backward()
    return model


class StandIn(Accelerator):
    """Reports FSDP, which `Accelerator(cpu=True)` never does.

    All of its methods are accelerate's own.
    """

    distributed_type = DistributedType.FSDP


def make_accelerator(cls=Accelerator, **settings):
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator = cls(cpu=True, **settings)
    assert accelerator.num_processes == 2
    return accelerator


def norm_hook(max_norm=CLIPS, lib=ours, **settings):
    return lib.GradientClippingHookConfig(
        clip_mode="norm", max_norm=max_norm, **settings
    )()


def value_hook(clip_value=0.5, lib=ours):
    return lib.GradientClippingHookConfig(
        clip_mode="value", clip_value=clip_value
    )()


def run_hook(hook, optimizer, accelerator=None, **settings):
    """Runs one step of the hook, with an optimizer or with parameters."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = torch.optim.SGD(optimizer)
    args = ours.PipelineHookArgs(
        accelerator or make_accelerator(StandIn),
        optimizer=optimizer,
        **settings,
    )
    with hook.begin("on_step", args):
        pass


def mesh_of(*shape, names="ab"):
    return init_device_mesh("cpu", shape, mesh_dim_names=names[: len(shape)])
