"""When a scope ends in generators and coroutines, and how."""

import asyncio

import pytest
import torch
from accelerate import Accelerator


@pytest.fixture
def hooks(lib, log):
    made = lib.PipelineHooks()
    made.register_hook(
        "on_step",
        lib.HookContext.from_callable(
            before=lambda args: log.append("before"),
            after=lambda args: log.append("after"),
        ),
    )
    return made


@pytest.fixture
def args(lib):
    return lib.PipelineHookArgs(accelerator=None)


def test_a_closed_generator_is_a_failed_step(ours):
    """GeneratorExit leaves the scope, as in RoboOrchardLab 0.5."""
    seen = []
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([3.0, 4.0])
    optimizer = torch.optim.SGD([param], lr=1)
    hooks = ours.PipelineHooks.from_hooks(
        [
            ours.GradientClippingHookConfig(clip_mode="norm", max_norm=1),
            ours.OptimizerHookConfig(),
        ]
    )
    hooks.register_hook(
        "on_step",
        ours.HookContext.from_callable(
            after=lambda args: seen.append(type(args.exception))
        ),
    )
    args = ours.PipelineHookArgs(
        Accelerator(cpu=True),
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 3),
    )

    def steps():
        with hooks.begin("on_step", args):
            yield

    generator = steps()
    next(generator)
    generator.close()
    assert seen == [GeneratorExit]
    assert torch.equal(param.grad, torch.tensor([3.0, 4.0]))
    assert torch.equal(param.detach(), torch.zeros(2))
    list(steps())  # One that runs to its end is a step.
    assert seen == [GeneratorExit, type(None)]
    torch.testing.assert_close(param.detach(), torch.tensor([-0.6, -0.8]))


def test_a_decorated_generator_ends_its_scope_before_its_body(
    hooks, args, log
):
    @hooks.begin("on_step", args)
    def steps():
        log.append("body")
        yield 1

    generator = steps()
    assert log == ["before", "after"]
    assert list(generator) == [1]
    assert log == ["before", "after", "body"]


def test_a_decorated_coroutine_ends_its_scope_before_its_body(
    hooks, args, log
):
    @hooks.begin("on_step", args)
    async def step():
        log.append("body")
        return 1

    coroutine = step()
    assert log == ["before", "after"]
    assert asyncio.run(coroutine) == 1
    assert log == ["before", "after", "body"]


def test_a_scope_in_a_coroutine_ends_after_its_body(hooks, args, log):
    async def step():
        with hooks.begin("on_step", args):
            await asyncio.sleep(0)
            log.append("body")

    asyncio.run(step())
    assert log == ["before", "body", "after"]
