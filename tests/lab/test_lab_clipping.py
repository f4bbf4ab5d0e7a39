"""RoboOrchardLab's clipping hook, as `lab.install` changes it."""

from unittest import mock

import pytest
import torch
from accelerate import Accelerator

import upstream
from helpers.lab import Args, assert_same_installed, failing, outcome, run
from robo_orchard_fasthooks import lab

CONFIG = upstream.grad_clip.GradientClippingHookConfig(
    clip_mode="norm", max_norm=1
)


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


class TestClipping:
    def gradients(self, hook, accelerator):
        generator = torch.Generator().manual_seed(0)
        shapes = [(3, 4), (5,), (), (7, 11), *[(64,)] * 8]
        params = [torch.nn.Parameter(torch.zeros(each)) for each in shapes]
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer = torch.optim.SGD(params, lr=1)
        run(hook, Args(accelerator=accelerator, optimizer=optimizer))
        return [param.grad.tolist() for param in params]

    def test_is_ours(self, accelerator, installed):
        hook = CONFIG()
        with mock.patch("torch.nn.utils.clip_grad._get_total_norm") as norm:
            self.gradients(hook, accelerator)
        norm.assert_not_called()

    def test_of_hooks_made_before(self, accelerator):
        hook = CONFIG()
        expected = self.gradients(CONFIG(), accelerator)
        with lab.install():
            assert self.gradients(hook, accelerator) == expected

    def test_of_a_subclass_that_calls_super(self, accelerator):
        class Own(upstream.grad_clip.GradientClippingHook):
            def _gradient_clipping(self, hook_args):
                self.max_norm /= 2
                super()._gradient_clipping(hook_args)

        def call():
            hook = Own(CONFIG)
            first = self.gradients(hook, accelerator)
            return first, self.gradients(hook, accelerator), hook.max_norm

        assert assert_same_installed(call)[2] == 0.25

    def test_goes_on_after_a_failing_body_as_before(self, accelerator):
        def call():
            param = torch.nn.Parameter(torch.zeros(2))
            param.grad = torch.tensor([3.0, 4.0])
            args = Args(accelerator, optimizer=torch.optim.SGD([param], lr=1))
            outcome(lambda: failing(CONFIG(), args, KeyError()))
            return param.grad.tolist()

        assert assert_same_installed(call) == pytest.approx([0.6, 0.8])

    def test_is_switched_off_by_another_mode_as_before(self, accelerator):
        def call():
            hook = CONFIG()
            hook.clip_mode = None
            return self.gradients(hook, accelerator)

        assert_same_installed(call)
