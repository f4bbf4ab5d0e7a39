"""RoboOrchardLab's own trainer and hooks, with install on and off."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from robo_orchard_lab.pipeline.batch_processor.simple import (
    SimpleBatchProcessor,
)
from robo_orchard_lab.pipeline.hook_based_trainer import HookBasedTrainer
from robo_orchard_lab.pipeline.hooks import grad_clip, loss_tracker, mixin

import robo_orchard_fasthooks as ours
from robo_orchard_fasthooks import lab

CLIPPING = {"clip_mode": "norm", "max_norm": 1e-3}
CONFIG = grad_clip.GradientClippingHookConfig(**CLIPPING)
STEPS = 3
PER_STEP = (
    *("before on_step", "before on_batch", "before on_model_forward"),
    *("before on_model_backward", "after on_step"),
)


class Counting(mixin.PipelineHooks):
    """As users write one; before install comes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        for channel in self.hooks:
            before, after = self.count(f"before {channel}"), None
            if channel == "on_step":
                after = self.count("after on_step")
            hook = mixin.HookContext.from_callable(before=before, after=after)
            self.register_hook(channel, hook)

    def count(self, name):
        return lambda args: self.seen.update([name])


def make_trainer(hooks=(), clipping=CONFIG, fail=None, max_step=STEPS):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)

    def forward(model, batch):
        loss = model(batch).square().mean()
        return {"loss": loss}, loss

    return HookBasedTrainer(
        accelerator=Accelerator(cpu=True),
        model=model,
        dataloader=list(torch.randn(STEPS, 4, 4)),
        batch_processor=SimpleBatchProcessor.from_callable(forward),
        optimizer=optimizer,
        lr_scheduler=scheduler,
        hooks=hooks,
        max_step=max_step,
        grad_clip=clipping,
    )


def bits(trainer):
    return [p.detach().numpy().tobytes() for p in trainer.model.parameters()]


def trained(**options):
    trainer = make_trainer(**options)
    trainer()
    return bits(trainer)


@pytest.fixture(scope="module")
def expected():
    assert not lab.status().installed
    return trained()


@pytest.fixture
def installed():
    with lab.install():
        yield


def switch(on):
    (lab.install if on else lab.uninstall)()


@pytest.mark.parametrize("called_with", [False, True])
@pytest.mark.parametrize("built_with", [False, True])
@pytest.mark.parametrize("hooks_with", [False, True])
def test_install_and_uninstall_may_come_at_any_time(
    hooks_with, built_with, called_with, expected
):
    try:
        switch(hooks_with)
        counting = Counting()
        switch(built_with)
        trainer = make_trainer(hooks=[counting])
        switch(called_with)
        trainer()
    finally:
        lab.uninstall()
    assert bits(trainer) == expected
    assert counting.seen == {
        **{"before on_loop": 1, "before on_epoch": 1},
        **dict.fromkeys(PER_STEP, STEPS),
    }


def our_hooks(log):
    hooks = ours.PipelineHooks()
    hook = ours.HookContext.from_callable(after=lambda args: log.append(args))
    hooks.register_hook("on_step", hook)
    return hooks


def test_a_trainer_takes_hooks_and_configs_of_both(expected, installed, log):
    counting = Counting()
    trainer = make_trainer(
        hooks=[
            our_hooks(log),
            counting,
            loss_tracker.LossTrackerConfig(step_log_freq=3),
        ],
        clipping=ours.GradientClippingHookConfig(**CLIPPING),
    )
    trainer()
    assert bits(trainer) == expected
    assert [args.global_step_id for args in log] == list(range(STEPS))
    assert all(type(args) is mixin.PipelineHookArgs for args in log)
    assert counting.seen["after on_step"] == STEPS


@pytest.mark.parametrize("family", [grad_clip, ours])
def test_clipping_after_the_optimizer_is_warned_of_once(family, installed):
    config = family.GradientClippingHookConfig(**CLIPPING)
    with pytest.warns(UserWarning, match="pass it as grad_clip=") as warned:
        make_trainer(hooks=[config], clipping=None)()
    assert len(warned) == 1


def fail_once(args):
    raise ValueError("once")


@pytest.mark.parametrize("channel", ["on_batch", "on_model_backward"])
@pytest.mark.parametrize("with_install", [False, True])
def test_a_failing_hook_is_named_and_the_optimizer_still_steps(
    with_install, channel
):
    hooks = mixin.PipelineHooks()
    hook = mixin.HookContext.from_callable(after=fail_once)
    hooks.register_hook(channel, hook)
    try:
        switch(with_install)
        trainer = make_trainer(hooks=[hooks])
        with pytest.raises(ValueError, match="once") as raised:
            trainer()
    finally:
        lab.uninstall()
    # As 0.4.0 does: after the backward pass, a step as whole as any.
    assert bits(trainer) == trained(max_step=1)
    notes = "\n".join(getattr(raised.value, "__notes__", []))
    for part in ("fail_once", repr(channel), "after", Path(__file__).name):
        assert (part in notes) == with_install
