"""GradientClippingHook: its config, and what it clips when."""

import math
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from pydantic_core import PydanticSerializationError

import robo_orchard_fasthooks


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def step(accelerator):
    """Runs a step of the hook of a config on freshly made gradients."""

    def run(lib, hook, *, error=None, accelerator=accelerator):
        generator = torch.Generator().manual_seed(0)
        params = [
            torch.nn.Parameter(torch.zeros(shape))
            for shape in ((3, 4), (5,), ())
        ]
        optimizer = torch.optim.SGD(params, lr=1)
        for param in params:
            param.grad = 10 * torch.randn(param.shape, generator=generator)
        before = [param.grad.clone() for param in params]
        args = lib.PipelineHookArgs(accelerator, optimizer=optimizer)
        with nullcontext() if error is None else pytest.raises(type(error)):
            with hook.begin("on_step", args):
                if error is not None:
                    raise error
        return before, [param.grad for param in params]

    return run


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def clipped_by_torch(grads, function, *args):
    params = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    function(params, *args)
    return [param.grad for param in params]


@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf, 3.0])
@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e9])
def test_norm(lib, step, max_norm, norm_type):
    hook = lib.GradientClippingHookConfig(
        clip_mode="norm", max_norm=max_norm, norm_type=norm_type
    )()
    before, after = step(lib, hook)
    expected = clipped_by_torch(
        before, torch.nn.utils.clip_grad_norm_, max_norm, norm_type
    )
    assert same(after, expected)
    assert same(before, after) == (max_norm == 1e9)


def test_value(lib, step):
    hook = lib.GradientClippingHookConfig(clip_mode="value", clip_value=2)()
    before, after = step(lib, hook)
    expected = clipped_by_torch(before, torch.nn.utils.clip_grad_value_, 2.0)
    assert same(after, expected) and not same(before, after)


def test_settings_changed_on_the_hook_count(lib, step):
    hook = lib.GradientClippingHookConfig(clip_mode="norm", max_norm=1e9)()
    hook.clip_mode, hook.clip_value = "value", 3.0
    before, after = step(lib, hook)
    assert same(after, [grad.clamp(-3, 3) for grad in before])
    hook.clip_mode, hook.max_norm, hook.norm_type = "norm", 0.5, 1.0
    before, after = step(lib, hook)
    assert same(
        after,
        clipped_by_torch(before, torch.nn.utils.clip_grad_norm_, 0.5, 1.0),
    )


def test_nothing_while_gradients_accumulate(lib, step):
    accumulating = Accelerator(cpu=True, gradient_accumulation_steps=2)
    hook = lib.GradientClippingHookConfig(clip_mode="norm", max_norm=1)()
    accumulating.gradient_state._set_sync_gradients(False)
    try:
        before, after = step(lib, hook, accelerator=accumulating)
        assert same(before, after)
    finally:
        accumulating.gradient_state._set_sync_gradients(True)
    before, after = step(lib, hook, accelerator=accumulating)
    assert not same(before, after)


def test_nothing_after_a_failure(ours, theirs, step):  # F3
    for lib in (ours, theirs):
        hook = lib.GradientClippingHookConfig(clip_mode="norm", max_norm=1)()
        before, after = step(lib, hook, error=ValueError())
        assert same(before, after) == (lib is ours)


def test_a_parameter_held_twice_is_clipped_once(  # F10
    ours, theirs, accelerator
):
    norms = []
    for lib in (ours, theirs):
        param = torch.nn.Parameter(torch.zeros(2))
        param.grad = torch.tensor([3.0, 4.0])
        optimizer = torch.optim.SGD([param], lr=1)
        optimizer.param_groups[0]["params"].append(param)
        hook = lib.GradientClippingHookConfig(clip_mode="norm", max_norm=1)()
        args = lib.PipelineHookArgs(accelerator, optimizer=optimizer)
        with hook.begin("on_step", args):
            pass
        norms.append(param.grad.norm().item())
    # Twice in the list is a norm of 5 * sqrt(2), and scaled by it twice.
    assert norms == pytest.approx([1, 5 / 50], rel=1e-5)


def test_parameters_without_gradients_are_left_out(lib, accelerator):
    frozen, unused, used = (
        torch.nn.Parameter(torch.zeros(2)) for _ in range(3)
    )
    frozen.grad = torch.full((2,), 100.0)
    frozen.requires_grad = False
    used.grad = torch.tensor([3.0, 4.0])
    optimizer = torch.optim.SGD([frozen, unused, used], lr=1)
    hook = lib.GradientClippingHookConfig(clip_mode="norm", max_norm=1)()
    args = lib.PipelineHookArgs(accelerator, optimizer=optimizer)
    with hook.begin("on_step", args):
        pass
    assert torch.equal(frozen.grad, torch.full((2,), 100.0))
    assert unused.grad is None
    torch.testing.assert_close(used.grad, torch.tensor([0.6, 0.8]))
    used.grad = None
    with mock.patch.object(accelerator, "clip_grad_norm_") as clip:
        with hook.begin("on_step", args):
            pass
    clip.assert_not_called()


def test_an_optimizer_is_needed(lib, accelerator):
    hook = lib.GradientClippingHookConfig(clip_mode="norm", max_norm=1)()
    with pytest.raises(ValueError) as raised:
        with hook.begin("on_step", lib.PipelineHookArgs(accelerator)):
            pass
    if lib.name == "ours":
        assert str(raised.value) == (
            "GradientClippingHook: the hook arguments have no optimizer; pass "
            "PipelineHookArgs(..., optimizer=)"
        )


def refusals(error):
    return [each["msg"] for each in error.value.errors()]


class TestConfig:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                {"clip_mode": "value"},
                "clip_value must be specified when clip_mode is 'value'.",
            ),
            (
                {"clip_mode": "value", "clip_value": -1},
                "clip_value must be non-negative when clip_mode is 'value'.",
            ),
            (
                {"clip_mode": "norm"},
                "max_norm must be specified when clip_mode is 'norm'.",
            ),
            (
                {"clip_mode": "norm", "max_norm": -0.5, "clip_value": 1},
                "max_norm must be non-negative when clip_mode is 'norm'.",
            ),
        ],
    )
    def test_refused_by_both(self, lib, settings, message):
        with pytest.raises(ValueError) as raised:
            lib.GradientClippingHookConfig(**settings)
        assert refusals(raised) == [f"Value error, {message}"]

    @pytest.mark.parametrize(
        "settings",
        [{}, {"clip_mode": "nrom", "max_norm": 1}, {"max_norm": 1}],
    )
    def test_an_unknown_mode_is_refused(self, lib, settings):
        with pytest.raises(ValueError, match="clip_mode"):
            lib.GradientClippingHookConfig(**settings)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                {"clip_mode": "norm", "max_norm": math.nan},
                "max_norm must be non-negative when clip_mode is 'norm'.",
            ),
            (
                {"clip_mode": "value", "clip_value": math.nan},
                "clip_value must be non-negative when clip_mode is 'value'.",
            ),
            (
                {"clip_mode": "norm", "max_norm": 1, "norm_type": math.nan},
                "norm_type must not be NaN.",
            ),
        ],
    )
    def test_nan_is_refused(self, ours, settings, message):
        with pytest.raises(ValueError) as raised:
            ours.GradientClippingHookConfig(**settings)
        assert refusals(raised) == [f"Value error, {message}"]

    def test_bounds_that_are_not_used_may_be_anything(self, lib):
        config = lib.GradientClippingHookConfig(
            clip_mode="norm", max_norm=0, clip_value=-1
        )
        assert config.clip_value == -1

    @pytest.mark.parametrize("format", ["json", "toml", "yaml"])
    @pytest.mark.parametrize(
        ("cls", "settings"),
        [
            (
                "GradientClippingHookConfig",
                {"clip_mode": "norm", "max_norm": 1.5, "norm_type": 1.0},
            ),
            (
                "GradientClippingHookConfig",
                {"clip_mode": "norm", "max_norm": "inf", "norm_type": "-inf"},
            ),
            ("OptimizerHookConfig", {}),
        ],
    )
    def test_serialises_and_loads(self, ours, theirs, cls, settings, format):
        from robo_orchard_core.utils.config import load_config_class

        config = getattr(ours, cls)(**settings)
        text = config.to_str(format)
        for loaded in (
            load_config_class(text, format),
            type(config).from_str(text, format),
        ):
            assert type(loaded) is type(config) and loaded == config
            assert type(loaded()) is type(config())
        if settings:
            assert config != config.replace(norm_type=math.inf)
        with pytest.raises(PydanticSerializationError):
            getattr(theirs, cls)(**settings).to_str(format)

    def test_makes_the_hook_of_class_type(self, lib):
        class Own(lib.GradientClippingHook):
            pass

        config = lib.GradientClippingHookConfig(
            class_type=Own, clip_mode="norm", max_norm=1
        )
        assert type(config()) is Own
        assert config(max_norm=3).max_norm == 3


def test_plain_hooks_from_a_config(ours):
    config = ours.PipelineHooksConfig[ours.PipelineHooks](
        class_type=ours.PipelineHooks
    )
    assert type(config()) is robo_orchard_fasthooks.PipelineHooks
