"""OptimizerHook, and a training run through the hooks."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from accelerate import Accelerator


@pytest.fixture
def both():
    """Records the calls of an optimizer and of a scheduler."""
    both = mock.Mock(spec=["optimizer", "lr_scheduler"])
    both.optimizer = mock.Mock(spec=["step", "zero_grad"])
    both.lr_scheduler = mock.Mock(spec=["step"])
    return both


@pytest.fixture
def args(lib, both):
    return lib.PipelineHookArgs(
        None, optimizer=both.optimizer, lr_scheduler=both.lr_scheduler
    )


def test_steps_after_the_body(lib, args, both):
    hook = lib.OptimizerHookConfig()()
    with hook.begin("on_step", args):
        assert both.mock_calls == []
    assert both.mock_calls == [
        mock.call.optimizer.step(),
        mock.call.lr_scheduler.step(),
        mock.call.optimizer.zero_grad(),
    ]


@pytest.mark.contract("F3")
def test_does_nothing_after_a_failure(lib, args, both):
    hook = lib.OptimizerHookConfig()()
    with pytest.raises(ValueError):
        with hook.begin("on_step", args):
            raise ValueError
    assert len(both.mock_calls) == (0 if lib.name == "ours" else 3)


def test_works_on_arguments_without_exception(ours, both):
    args = SimpleNamespace(
        optimizer=both.optimizer, lr_scheduler=both.lr_scheduler
    )
    with ours.OptimizerHook().begin("on_step", args):
        pass
    assert len(both.mock_calls) == 3


@pytest.mark.parametrize("missing", ["optimizer", "lr_scheduler"])
def test_needs_both(lib, args, both, missing):
    hook = lib.OptimizerHookConfig()()
    setattr(args, missing, None)
    with pytest.raises(ValueError) as raised:
        with hook.begin("on_step", args):
            pass
    assert both.mock_calls == []
    if lib.name == "ours":
        assert str(raised.value) == (
            f"OptimizerHook: the hook arguments have no {missing}; pass "
            f"PipelineHookArgs(..., {missing}=)"
        )


def test_a_misspelt_setting_is_an_error(ours):
    with pytest.raises(ValueError, match="(?s)lr\n.*not permitted"):
        ours.OptimizerHookConfig(lr=1)

    class Own(ours.OptimizerHookConfig):
        lr: float

    assert Own(lr=1).lr == 1
    assert ours.PipelineHooksConfig(class_type=ours.OptimizerHook, lr=1)


def test_a_training_run_is_bit_for_bit_upstream_s(ours, theirs):
    def train(lib):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model, optimizer, scheduler = accelerator.prepare(
            model, optimizer, scheduler
        )
        clip = lib.GradientClippingHookConfig(clip_mode="norm", max_norm=0.3)
        hooks = lib.PipelineHooks.from_hooks([clip, lib.OptimizerHookConfig()])
        args = lib.PipelineHookArgs(
            accelerator, optimizer=optimizer, lr_scheduler=scheduler
        )
        for _ in range(20):
            step = args.copy_with_updates(batch=torch.randn(8, 4))
            with accelerator.accumulate(model), hooks.begin("on_step", step):
                with hooks.begin("on_model_backward", step):
                    accelerator.backward(model(step.batch).square().mean())
        return [param.tolist() for param in model.parameters()]

    assert train(ours) == train(theirs)
