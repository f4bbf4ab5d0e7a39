"""OptimizerHook, and a training run through the hooks."""

import pytest
import torch
from accelerate import Accelerator


class Recorder:
    """Stands for an optimizer or a scheduler, and records its calls."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def step(self):
        self.calls.append(f"{self.name}.step")

    def zero_grad(self):
        self.calls.append(f"{self.name}.zero_grad")


@pytest.fixture
def calls():
    return []


@pytest.fixture
def args(lib, calls):
    return lib.PipelineHookArgs(
        None,
        optimizer=Recorder("optimizer", calls),
        lr_scheduler=Recorder("scheduler", calls),
    )


def test_steps_after_the_body(lib, args, calls):
    hook = lib.OptimizerHookConfig()()
    with hook.begin("on_step", args):
        assert calls == []
    assert calls == ["optimizer.step", "scheduler.step", "optimizer.zero_grad"]


@pytest.mark.contract("F3")
def test_does_nothing_after_a_failure(lib, args, calls):
    hook = lib.OptimizerHookConfig()()
    with pytest.raises(ValueError):
        with hook.begin("on_step", args):
            raise ValueError
    assert len(calls) == (0 if lib.name == "ours" else 3)


def test_works_on_arguments_without_exception(ours, calls):
    class Foreign:
        optimizer = Recorder("optimizer", calls)
        lr_scheduler = Recorder("scheduler", calls)

    with ours.OptimizerHook().begin("on_step", Foreign()):
        pass
    assert len(calls) == 3


@pytest.mark.parametrize("missing", ["optimizer", "lr_scheduler"])
def test_needs_both(lib, args, calls, missing):
    hook = lib.OptimizerHookConfig()()
    setattr(args, missing, None)
    with pytest.raises(ValueError) as raised:
        with hook.begin("on_step", args):
            pass
    assert calls == []
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
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        data = torch.utils.data.TensorDataset(
            torch.randn(40, 4), torch.randint(2, (40,))
        )
        loader = torch.utils.data.DataLoader(data, 8)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model, optimizer, scheduler, loader = accelerator.prepare(
            model, optimizer, scheduler, loader
        )
        hooks = lib.PipelineHooks.from_hooks(
            [
                lib.GradientClippingHookConfig(clip_mode="norm", max_norm=0.3),
                lib.OptimizerHookConfig(),
            ]
        )
        for epoch in range(4):
            for step, (inputs, labels) in enumerate(loader):
                args = lib.PipelineHookArgs(
                    accelerator,
                    epoch_id=epoch,
                    step_id=step,
                    optimizer=optimizer,
                    lr_scheduler=scheduler,
                    model=model,
                )
                with (
                    accelerator.accumulate(model),
                    hooks.begin("on_step", args),
                ):
                    with hooks.begin(
                        "on_model_forward",
                        args.copy_with_updates(batch=inputs),
                    ):
                        outputs = model(inputs)
                        loss = torch.nn.functional.cross_entropy(
                            outputs, labels
                        )
                    backward = args.copy_with_updates(reduce_loss=loss)
                    with hooks.begin("on_model_backward", backward):
                        accelerator.backward(loss)
        return [param.detach() for param in model.parameters()]

    first, second = train(ours), train(theirs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
