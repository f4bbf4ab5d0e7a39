"""GradientClippingHook: its config, and what it clips when."""

import gc
import math
import random
import weakref
from contextlib import nullcontext
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from pydantic_core import PydanticSerializationError
from robo_orchard_core.utils.config import load_config_class

from helpers.implementations import INSTALLED

NORM = {"clip_mode": "norm", "max_norm": 1.0}
VALUE = {"clip_mode": "value", "clip_value": 1.0}


def parameter(grad):
    grad = torch.as_tensor(grad)
    param = torch.nn.Parameter(torch.zeros_like(grad))
    param.grad = grad
    return param


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def clip(lib, optimizer, *, model=None, hook=None, error=None, **settings):
    """Runs a hook of the given settings on an optimizer or on parameters."""
    if isinstance(optimizer, list):
        optimizer = torch.optim.SGD(optimizer, lr=1)
    if hook is None:
        hook = lib.GradientClippingHookConfig(**settings)()
    args = lib.PipelineHookArgs(
        Accelerator(cpu=True), optimizer=optimizer, model=model
    )
    with pytest.raises(type(error)) if error else nullcontext():
        with hook.begin("on_step", args):
            if error:
                raise error
    return hook


@pytest.fixture
def params():
    generator = torch.Generator().manual_seed(0)
    return [
        parameter(10 * torch.randn(shape, generator=generator))
        for shape in ((3, 4), (5,), ())
    ]


def copies(params):
    return [parameter(param.grad.clone()) for param in params]


def grads(params):
    return [param.grad for param in params]


@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e9])
@pytest.mark.also_on(*INSTALLED)
def test_norm(lib, params, max_norm, norm_type):
    expected = copies(params)
    torch.nn.utils.clip_grad_norm_(expected, max_norm, norm_type)
    settings = {"max_norm": max_norm, "norm_type": norm_type}
    clip(lib, params, clip_mode="norm", **settings)
    assert same(grads(params), grads(expected))


@pytest.mark.also_on(*INSTALLED)
def test_settings_changed_on_the_hook_count(lib, params):
    hook = lib.GradientClippingHookConfig(clip_mode="norm", max_norm=1e9)()
    hook.clip_mode, hook.clip_value = "value", 3.0
    expected = copies(params)
    clip(lib, params, hook=hook)
    torch.nn.utils.clip_grad_value_(expected, 3.0)
    assert same(grads(params), grads(expected))
    hook.clip_mode, hook.max_norm, hook.norm_type = "norm", 0.5, 1.0
    clip(lib, params, hook=hook)
    torch.nn.utils.clip_grad_norm_(expected, 0.5, 1.0)
    assert same(grads(params), grads(expected))


@pytest.mark.also_on("installed")  # 0.5 counts micro-steps by itself.
def test_nothing_while_gradients_accumulate(lib, params):
    state, before = Accelerator(cpu=True).gradient_state, copies(params)
    state._set_sync_gradients(False)
    try:
        clip(lib, params, **NORM)
        assert same(grads(params), grads(before))
    finally:
        state._set_sync_gradients(True)
    clip(lib, params, **NORM)
    assert not same(grads(params), grads(before))


@pytest.mark.contract("F3")
def test_nothing_after_a_failure(lib, params):
    before = copies(params)
    clip(lib, params, error=ValueError(), **NORM)
    assert same(grads(params), grads(before)) == (lib.name == "ours")


@pytest.mark.contract("F10")
def test_a_parameter_held_twice_is_clipped_once(lib):
    """Also if it comes to be held twice."""
    params = [parameter([3.0, 4.0]), parameter([1.0, 0.0])]
    optimizer = torch.optim.SGD(params, lr=1)
    clip(lib, optimizer, clip_mode="norm", max_norm=100.0)
    optimizer.param_groups[0]["params"] = [params[0]] * 2
    clip(lib, optimizer, **NORM)
    # Twice in the list is a norm of 5 * sqrt(2), and scaled by it twice.
    expected = 1 if lib.name == "ours" else 5 / 50
    assert params[0].grad.norm().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.also_on(*INSTALLED)
def test_parameters_without_gradients_are_left_out(lib):
    frozen, used = parameter([100.0, 100.0]), parameter([3.0, 4.0])
    frozen.requires_grad = False
    unused = torch.nn.Parameter(torch.zeros(2))
    clip(lib, [frozen, unused, used], **NORM)
    assert torch.equal(frozen.grad, torch.full((2,), 100.0))
    assert unused.grad is None
    torch.testing.assert_close(used.grad, torch.tensor([0.6, 0.8]))
    used.grad = None
    with mock.patch.object(Accelerator, "clip_grad_norm_") as called:
        clip(lib, [frozen, unused, used], **NORM)
    called.assert_not_called()


@pytest.mark.also_on("installed")
def test_an_optimizer_is_needed(lib):
    with pytest.raises(ValueError) as raised:
        clip(lib, None, **NORM)
    if lib.name == "ours":
        assert str(raised.value) == (
            "GradientClippingHook: the hook arguments have no optimizer; pass "
            "PipelineHookArgs(..., optimizer=)"
        )


def test_total_norm_is_that_before_clipping(ours):
    """Of anything that has groups of parameters."""
    optimizer = SimpleNamespace(
        param_groups=[{"params": [parameter([3.0, 4.0])]}]
    )
    hook = ours.GradientClippingHookConfig(**NORM)()
    assert hook.total_norm is None
    for expected in (5.0, 1.0):
        clip(ours, optimizer, hook=hook)
        assert hook.total_norm.item() == pytest.approx(expected, rel=1e-6)
    assert hook.total_norm.shape == () and not hook.total_norm.requires_grad


@pytest.mark.parametrize("seed", range(2))
def test_changes_of_the_optimizer_count(ours, seed):
    """Of its groups, of their parameters and of their gradients."""
    choose, noise = random.Random(seed), torch.Generator().manual_seed(seed)

    def make():
        shapes = (3,), (3,), (3,), (2, 3), (), (5000,)
        return torch.nn.Parameter(torch.zeros(choose.choice(shapes)))

    optimizer = torch.optim.SGD([make() for _ in range(20)], lr=1)
    hook = ours.GradientClippingHookConfig(**NORM)()
    kinds = "none add replace reverse remove load freeze bf16 fp64 resize"
    for step in range(120):
        held = choose.choice(optimizer.param_groups)["params"]
        kind = choose.choice(kinds.split())
        at = choose.randrange(len(held) or 1)
        if kind == "add":
            optimizer.add_param_group({"params": [make()]})
        elif kind == "load":
            optimizer.load_state_dict(optimizer.state_dict())
        elif kind in ("replace", "remove"):
            held[at : at + 1] = [make()] if kind == "replace" else []
        elif kind == "reverse":
            held.reverse()
        elif kind == "freeze" and held:
            held[at].requires_grad_(not held[at].requires_grad)
        elif kind != "none" and held:
            held[at].grad, old = None, held[at].data
            held[at].data = {
                "bf16": old.bfloat16(),
                "fp64": old.double(),
                "resize": torch.zeros(7),
            }.get(kind, old)
        every = sum((each["params"] for each in optimizer.param_groups), [])
        for param in every:
            grad = torch.randn(param.shape, generator=noise).to(param.dtype)
            if grad.ndim == 2 and choose.random() < 0.5:
                grad = grad.t().contiguous().t()
            param.grad = None if choose.random() < 0.1 else grad
        used = [p for p in every if p.requires_grad and p.grad is not None]
        expected = copies(used)
        hook.max_norm = 2.0 if step % 2 else 1e6
        torch.nn.utils.clip_grad_norm_(expected, hook.max_norm)
        clip(ours, optimizer, hook=hook)
        assert same(grads(used), grads(expected))


@pytest.mark.parametrize("mode", [NORM, VALUE])
def test_a_dead_optimizer_is_freed(ours, mode):
    param = parameter([3.0, 4.0])
    optimizer = torch.optim.SGD([param], lr=1)
    param.stepped_by = optimizer
    hook = clip(ours, optimizer, **mode)
    refs = [weakref.ref(optimizer), weakref.ref(param)]
    del optimizer, param
    gc.collect()
    assert [ref() for ref in refs] == [None, None]
    assert hook.clip_mode == mode["clip_mode"]


@pytest.mark.parametrize("mode", [NORM, VALUE])
def test_parameters_can_still_be_swapped(ours, mode):
    """torch does so in `model.to`, unless a tensor is referred to weakly."""
    param = parameter([3.0, 4.0])
    clip(ours, [param], **mode)
    param.grad = None
    torch.utils.swap_tensors(param, torch.nn.Parameter(torch.ones(5)))
    assert param.shape == (5,)


class TestErrors:
    """Each names the parameter, and leaves every gradient as it was."""

    @pytest.mark.parametrize(
        ("grad", "mode", "message"),
        [
            (torch.tensor(5.0).expand(3), VALUE, "has elements that share"),
            (
                torch.tensor([1.0, math.nan]),
                {**NORM, "error_if_nonfinite": True},
                "norm of order 2.0 of the gradients is not finite, nor is",
            ),
        ],
        ids=["expanded", "NaN"],
    )
    @pytest.mark.parametrize("name", ["", " ('third')", " ('c')"])
    def test_by_group_index_and_name(self, ours, grad, mode, message, name):
        """The optimizer's name comes before that of the model."""
        params = [parameter([3.0, 4.0]) for _ in range(2)]
        params.append(torch.nn.Parameter(torch.zeros_like(grad)))
        params[2].grad = grad
        first, second = params[:1], params[1:]
        if "c" in name:
            first = [("a", params[0])]
            second = [("b", params[1]), ("c", params[2])]
        optimizer = torch.optim.SGD(first, lr=1)
        optimizer.add_param_group({"params": second})
        names = "first", "second", "third"
        model = torch.nn.ParameterDict(zip(names, params, strict=True))
        hook = ours.GradientClippingHookConfig(**mode)()
        error = RuntimeError if "finite" in message else NotImplementedError
        with pytest.raises(error, match=message) as raised:
            clip(ours, optimizer, hook=hook, model=model if name else None)
        place = f"parameter 1 of group 1{name}"
        assert place in str(raised.value)
        assert params[2].grad is grad
        assert grads(params[:2]) == [pytest.approx([3.0, 4.0])] * 2
        assert hook.total_norm is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_mode": "nrom"}, "clip_mode must be 'norm' or 'value', not"),
        ({"max_norm": None}, "max_norm must be specified when clip_mode is"),
        ({"clip_mode": "value"}, "clip_value must be specified when"),
        ({"max_norm": -1.0}, "max_norm must be non-negative when"),
        ({"max_norm": math.nan}, "max_norm must be non-negative when"),
        ({"max_norm": "much"}, "max_norm must be a number, not 'much'"),
        ({"max_norm": torch.ones(2)}, "max_norm must be a number, not tensor"),
        ({"norm_type": math.nan}, "norm_type must not be NaN"),
        ({"norm_type": None}, "norm_type must be a number, not None"),
    ],
)
def test_a_schedule_that_sets_what_cannot_be(ours, change, message):
    hook = ours.GradientClippingHookConfig(**NORM)()
    vars(hook).update(change)
    param = parameter([3.0, 4.0])
    with pytest.raises(ValueError, match=message):
        clip(ours, [param], hook=hook)
    assert torch.equal(param.grad, torch.tensor([3.0, 4.0]))


@pytest.mark.also_on(*INSTALLED)
def test_an_accelerator_is_needed(ours):
    optimizer = torch.optim.SGD([parameter([3.0])])
    hook = ours.GradientClippingHookConfig(**NORM)()
    args = ours.PipelineHookArgs(None, optimizer=optimizer)
    if hasattr(args, "is_optimizer_step_boundary"):
        pytest.skip("the trainer of 0.5 has one")
    with pytest.raises(ValueError, match="have no accelerator; pass"):
        with hook.begin("on_step", args):
            pass


class TestConfig:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                {"clip_mode": "value"},
                "clip_value must be specified when clip_mode is 'value'",
            ),
            (
                VALUE | {"clip_value": -1},
                "clip_value must be non-negative when clip_mode is 'value'",
            ),
            (
                {"clip_mode": "norm"},
                "max_norm must be specified when clip_mode is 'norm'",
            ),
            (
                NORM | {"max_norm": -0.5},
                "max_norm must be non-negative when clip_mode is 'norm'",
            ),
            *(({}, "clip_mode"), ({"max_norm": 1}, "clip_mode")),
            ({"clip_mode": "nrom", "max_norm": 1}, "clip_mode"),
        ],
    )
    def test_refused_by_both(self, lib, settings, message):
        with pytest.raises(ValueError, match=message):
            lib.GradientClippingHookConfig(**settings)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (NORM | {"max_norm": math.nan}, "max_norm must be non-negative"),
            (VALUE | {"clip_value": math.nan}, "clip_value must be non-neg"),
            (NORM | {"norm_type": math.nan}, "norm_type must not be NaN."),
        ],
    )
    def test_nan_is_refused(self, ours, settings, message):
        with pytest.raises(ValueError, match=message):
            ours.GradientClippingHookConfig(**settings)

    def test_bounds_that_are_not_used_may_be_anything(self, lib):
        config = lib.GradientClippingHookConfig(**NORM, clip_value=-1)
        assert config.clip_value == -1

    @pytest.mark.parametrize("format", ["json", "toml", "yaml"])
    @pytest.mark.parametrize(
        ("cls", "settings"),
        [
            ("GradientClippingHookConfig", {**NORM, "norm_type": 1.0}),
            (
                "GradientClippingHookConfig",
                {"clip_mode": "norm", "max_norm": "inf", "norm_type": "-inf"},
            ),
            ("OptimizerHookConfig", {}),
        ],
    )
    @pytest.mark.contract("F9")
    def test_serialises_and_loads(self, ours, theirs, cls, settings, format):
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

    def test_cuda_graph(self, ours):
        config = ours.GradientClippingHookConfig(**NORM)
        assert config.cuda_graph is None
        text = config.replace(cuda_graph=True).to_str(format="json")
        assert type(config).from_str(text, format="json").cuda_graph is True

    def test_one_that_was_saved_with_foreach(self, ours):
        """A field of an earlier version, null by default."""
        config = ours.GradientClippingHookConfig(**NORM)
        text = config.to_str("json").replace("{", '{"foreach": null,', 1)
        assert type(config).from_str(text, "json") == config

    def test_makes_the_hook_of_class_type(self, lib):
        class Own(lib.GradientClippingHook):
            pass

        config = lib.GradientClippingHookConfig(class_type=Own, **NORM)
        assert type(config()) is Own
        assert config(max_norm=3).max_norm == 3

    def test_a_misspelt_setting_is_an_error(self, ours):
        for setting in ({"norm_typ": 1.0}, {"foreach": True}):
            with pytest.raises(ValueError, match="not permitted"):
                ours.GradientClippingHookConfig(**NORM, **setting)
