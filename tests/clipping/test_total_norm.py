"""`hook.total_norm`, where an accelerator clips by a method of its own."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed._functional_collectives import all_reduce
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

import robo_orchard_fasthooks as ours


class Own(Accelerator):
    """Clips by itself, and returns what it is told to."""

    returned = None

    def clip_grad_norm_(self, parameters, max_norm, norm_type=2):
        for param in parameters:
            param.grad.mul_(0.5)
        return self.returned


class MyTensor(torch.Tensor):
    pass


@pytest.fixture
def norm_of():
    """Runs a hook whose last norm is given; returns `total_norm` after it."""

    def run(returned, last=None):
        accelerator = Own(cpu=True)
        accelerator.returned = returned
        param = torch.nn.Parameter(torch.zeros(2))
        param.grad = torch.tensor([3.0, 4.0])
        hook = ours.GradientClippingHookConfig(clip_mode="norm", max_norm=1)()
        hook.total_norm = last
        args = ours.PipelineHookArgs(
            accelerator, optimizer=torch.optim.SGD([param], lr=1)
        )
        with hook.begin("on_step", args):
            pass
        assert torch.equal(param.grad, torch.tensor([1.5, 2.0]))
        return hook.total_norm

    return run


def assert_plain(found, expected):
    assert type(found) is torch.Tensor and found.shape == ()
    assert not found.requires_grad
    assert found.item() == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    "returned",
    [
        7,
        Fraction(7),
        np.float32(7),
        torch.tensor([[7]]),
        torch.tensor(7.0, dtype=torch.bfloat16),
        torch.nn.Parameter(torch.tensor([7.0])),
        torch.tensor([7.0]).as_subclass(MyTensor),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_number_or_one_element(norm_of, returned):
    assert_plain(norm_of(returned), 7)


@pytest.mark.parametrize(
    "returned",
    [
        None,
        "7.0",
        (7.0,),
        True,
        7j,
        10**400,
        np.array([7.0, 8.0]),
        torch.tensor([7.0, 8.0]),
        torch.empty(0),
        torch.sparse_coo_tensor([[0]], [7.0], (1,), check_invariants=True),
        torch.Tensor,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("last", [None, torch.tensor(3.0)])
def test_anything_else_leaves_it_as_it_was(norm_of, returned, last):
    assert norm_of(returned, last) is last


class TestDTensors:
    @pytest.fixture(autouse=True)
    def mesh(self):
        dist.init_process_group(
            "gloo", store=dist.HashStore(), rank=0, world_size=1
        )
        yield init_device_mesh("cpu", (1,))
        dist.destroy_process_group()

    @pytest.mark.parametrize(
        ("local", "placement"),
        [
            (torch.tensor(7.0), Replicate()),
            (torch.tensor(7.0), Partial()),
            (torch.tensor([7.0]), Shard(0)),
        ],
    )
    def test_a_dtensor_becomes_its_full_value(
        self, norm_of, mesh, local, placement
    ):
        returned = DTensor.from_local(local, mesh, [placement])
        assert_plain(norm_of(returned), 7)

    def test_a_reduction_on_its_way(self, norm_of, mesh):
        returned = all_reduce(torch.tensor(7.0), "sum", mesh)
        assert type(returned) is not torch.Tensor
        assert_plain(norm_of(returned), 7)


def test_a_step_that_takes_no_norm_leaves_the_last_one():
    accelerator = Accelerator(cpu=True)
    param = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([param], lr=1)
    args = ours.PipelineHookArgs(accelerator, optimizer=optimizer)
    hook = ours.GradientClippingHookConfig(clip_mode="norm", max_norm=1)()
    for grad, mode, sync in [
        ([3.0, 4.0], "norm", True),
        (None, "norm", True),
        ([6.0, 8.0], "norm", False),
        ([6.0, 8.0], "value", True),
    ]:
        param.grad = None if grad is None else torch.tensor(grad)
        hook.clip_mode, hook.clip_value = mode, 1.0
        accelerator.gradient_state._set_sync_gradients(sync)
        try:
            with hook.begin("on_step", args):
                pass
        finally:
            accelerator.gradient_state._set_sync_gradients(True)
        assert_plain(hook.total_norm, 5)
