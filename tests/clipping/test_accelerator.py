"""Clipping with a loss scaler, and where accelerate clips by itself."""

import functools
import math
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.nn.utils import clip_grad

import robo_orchard_fasthooks
from helpers.fp16 import FP16

GRADIENTS = torch.tensor([3.0, -4.0]), torch.tensor([50.0, 0.0, -120.0])


def scaled(scaler, gradients):
    """Optimizers of one parameter each, with scaled gradients."""
    optimizers = []
    for gradient in gradients:
        param = torch.nn.Parameter(torch.zeros_like(gradient))
        optimizers.append(torch.optim.SGD([param], lr=1))
        scaler.scale(param @ gradient).backward()
    return optimizers


def param_of(optimizer):
    return optimizer.param_groups[0]["params"][0]


def run(lib, hook, accelerator, optimizer):
    args = lib.PipelineHookArgs(accelerator, optimizer=optimizer)
    with hook.begin("on_step", args):
        pass


CLIPPING = {
    "norm": (
        {"clip_mode": "norm", "max_norm": 1.0},
        lambda params: torch.nn.utils.clip_grad_norm_(params, 1.0),
    ),
    "value": (
        {"clip_mode": "value", "clip_value": 2.0},
        lambda params: torch.nn.utils.clip_grad_value_(params, 2.0),
    ),
}


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("mode", CLIPPING)
class TestScaler:
    """Two optimizers, of which a hook unscales the one it clips."""

    @pytest.fixture(autouse=True)
    def prepare(self, mode, prepared):
        self.settings, self.clip = CLIPPING[mode]
        self.prepared = prepared

    def optimizers(self, gradients=GRADIENTS):
        self.accelerator = FP16()
        made = scaled(self.accelerator.scaler, gradients)
        if self.prepared:
            made = [self.accelerator.prepare_optimizer(each) for each in made]
        self.accelerator._optimizers = made
        return made

    def by_hand(self, gradients=GRADIENTS):
        """Unscaled, clipped by torch and stepped without any hook."""
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        made = scaled(scaler, gradients)
        for optimizer in made:
            scaler.unscale_(optimizer)
            self.clip([param_of(optimizer)])
            scaler.step(optimizer)
        scaler.update()
        return scaler, made

    def test_each_optimizer_is_unscaled_once(self, ours):
        first, second = optimizers = self.optimizers()
        _, expected = self.by_hand()
        hook = ours.GradientClippingHookConfig(**self.settings)()
        scale, norms = 8.0, []
        run(ours, hook, self.accelerator, first)
        norms.append(hook.total_norm)
        assert torch.equal(param_of(second).grad, scale * GRADIENTS[1])
        run(ours, hook, self.accelerator, second)
        norms.append(hook.total_norm)
        for one, other in zip(optimizers, expected, strict=True):
            assert torch.equal(param_of(one).grad, param_of(other).grad)
        if self.settings["clip_mode"] == "norm":
            assert norms == [5, 130]  # Without the scale.

    def test_a_wrapper_of_several(self, ours):
        """Those of accelerate's optimizers whose parameters it has."""
        optimizers = self.optimizers()
        other = self.optimizers()[0]
        self.accelerator._optimizers = [*optimizers, other]
        for optimizer in optimizers:  # Two groups are unscaled once.
            param = torch.nn.Parameter(torch.zeros(1))
            getattr(optimizer, "optimizer", optimizer).add_param_group(
                {"params": [param]}
            )
        wrapper = SimpleNamespace(
            param_groups=sum((each.param_groups for each in optimizers), [])
        )
        hook = ours.GradientClippingHookConfig(**self.settings)()
        run(ours, hook, self.accelerator, wrapper)
        params = [param_of(optimizer) for optimizer in optimizers]
        found = [param.grad for param in params]
        for param, grad in zip(params, GRADIENTS, strict=True):
            param.grad = grad.clone()
        self.clip(params)
        assert all(map(torch.equal, found, [p.grad for p in params]))
        assert torch.equal(param_of(other).grad, 8 * GRADIENTS[0])

    @pytest.mark.parametrize("poison", [math.inf, math.nan])
    def test_a_step_that_overflows_is_skipped(self, ours, poison):
        gradients = torch.tensor([1.0, poison]), GRADIENTS[1]
        optimizers = self.optimizers(gradients)
        hand_scaler, expected = self.by_hand(gradients)
        hook = ours.GradientClippingHookConfig(**self.settings)()
        scaler = self.accelerator.scaler
        for optimizer in optimizers:
            run(ours, hook, self.accelerator, optimizer)
        for optimizer in optimizers:
            scaler.step(getattr(optimizer, "optimizer", optimizer))
        scaler.update()
        for one, other in zip(optimizers, expected, strict=True):
            assert torch.equal(param_of(one), param_of(other))
        assert torch.equal(param_of(optimizers[0]), torch.zeros(2))
        assert not torch.equal(param_of(optimizers[1]), torch.zeros(3))
        assert scaler.get_scale() == hand_scaler.get_scale() == 4


def stand_in(kind):
    """Reports that distributed type; its methods are accelerate's own."""

    class StandIn(Accelerator):
        distributed_type = kind

    return StandIn(cpu=True)


@pytest.fixture
def calls():
    """What accelerate's own clip methods were called with, in order.

    They are not patched, which would make them others than accelerate's.
    """
    names = {
        getattr(Accelerator, name).__code__: name
        for name in ("clip_grad_norm_", "clip_grad_value_")
    }
    found = []

    def see(frame, event, _):
        if event == "call" and frame.f_code in names:
            given = dict(frame.f_locals)
            del given["self"]
            found.append((names[frame.f_code], given))

    before = sys.getprofile()
    sys.setprofile(see)
    yield found
    sys.setprofile(before)


def two_params():
    params = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    for param in params:
        param.grad = torch.tensor([3.0, 4.0])
    return params


@pytest.fixture
def clip(ours):
    """Runs a hook on two parameters, which it returns with the hook."""

    def run_on(accelerator, **settings):
        params = two_params()
        optimizer = torch.optim.SGD(params, lr=1)
        hook = ours.GradientClippingHookConfig(**settings)()
        run(ours, hook, accelerator, optimizer)
        return params, hook

    return run_on


def is_same(found, params):
    return [id(each) for each in found] == [id(each) for each in params]


class TestDelegated:
    @pytest.mark.parametrize("kind", ["XLA", "MEGATRON_LM"])
    @pytest.mark.parametrize(
        ("mode", "settings"),
        [
            ("norm", {"max_norm": 2, "norm_type": 1}),
            ("value", {"clip_value": 2}),
        ],
    )
    def test_by_accelerate(self, clip, calls, kind, mode, settings):
        accelerator = stand_in(DistributedType[kind])
        params, hook = clip(accelerator, clip_mode=mode, **settings)
        ((name, given),) = calls
        assert name == f"clip_grad_{mode}_"
        assert is_same(given.pop("parameters"), params)
        assert given == settings
        assert hook.total_norm == (14 if mode == "norm" else None)
        assert params[0].grad.sum() < 4.001

    def test_by_deepspeed(self, clip):
        """It clips by itself, and tells the norm."""
        accelerator = stand_in(DistributedType.DEEPSPEED)
        accelerator.deepspeed_engine_wrapped = SimpleNamespace(
            get_global_grad_norm=lambda: torch.tensor(7.0)
        )
        params, hook = clip(accelerator, clip_mode="norm", max_norm=2)
        assert hook.total_norm == 7
        assert torch.equal(params[0].grad, torch.tensor([3.0, 4.0]))

    def test_deepspeed_that_keeps_the_gradients(self, ours):
        """In buffers of its own; parameters have none."""
        accelerator = stand_in(DistributedType.DEEPSPEED)
        accelerator.deepspeed_engine_wrapped = SimpleNamespace(
            get_global_grad_norm=lambda: 7.0
        )
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))])
        hook = ours.GradientClippingHookConfig(clip_mode="norm", max_norm=1)()
        run(ours, hook, accelerator, optimizer)
        assert torch.equal(hook.total_norm, torch.tensor(7.0))

    @pytest.mark.parametrize("method", ["clip_grad_norm_", "clip_grad_value_"])
    def test_accelerate_patched(self, ours, method, monkeypatch):
        """By what looks like the original."""
        found = []

        @functools.wraps(getattr(Accelerator, method))
        def patch(self, *args):
            found.append(args)

        monkeypatch.setattr(Accelerator, method, patch)
        hook = ours.GradientClippingHookConfig(
            clip_mode=method[10:-1], max_norm=1, clip_value=1
        )()
        optimizer = torch.optim.SGD(two_params())
        run(ours, hook, Accelerator(cpu=True), optimizer)
        assert len(found) == 1

    def test_error_if_nonfinite_is_refused(self, clip, calls):
        accelerator = stand_in(DistributedType.MEGATRON_LM)
        settings = {"clip_mode": "norm", "error_if_nonfinite": True}
        with pytest.raises(ValueError, match="StandIn, .*MEGATRON_LM"):
            clip(accelerator, max_norm=2, **settings)
        assert calls == []

    def test_own_unscaling(self, ours):
        """It is called as accelerate calls it."""
        calls = []

        class Own(Accelerator):
            def unscale_gradients(self):
                calls.append(self)

        accelerator = Own(cpu=True)
        hook = ours.GradientClippingHookConfig(clip_mode="norm", max_norm=1)()
        run(ours, hook, accelerator, torch.optim.SGD(two_params()))
        assert calls == [accelerator]

    def test_deepspeed_has_no_value_mode(self, clip):
        accelerator = stand_in(DistributedType.DEEPSPEED)
        with pytest.raises(Exception, match="do not support `clip_grad_value"):
            clip(accelerator, clip_mode="value", clip_value=2)

    @pytest.mark.parametrize("kind", ["NO", "MULTI_CPU", "MULTI_GPU", "FSDP"])
    @pytest.mark.parametrize("mode", CLIPPING)
    def test_clipped_by_this_package(self, clip, calls, kind, mode):
        settings, by_torch = CLIPPING[mode]
        params, _ = clip(stand_in(DistributedType[kind]), **settings)
        assert calls == []
        others = two_params()
        by_torch(others)
        for param, other in zip(params, others, strict=True):
            assert torch.equal(param.grad, other.grad)

    @pytest.mark.parametrize("patched", [False, True])
    @pytest.mark.parametrize(
        ("mode", "settings", "expected"),
        [
            ("norm", {"max_norm": 2, "norm_type": 1}, [2, 1]),
            ("value", {"clip_value": 2}, [2]),
        ],
    )
    def test_methods_of_its_own(self, clip, patched, mode, settings, expected):
        method = mock.Mock(return_value=torch.tensor(3.0))
        name = f"clip_grad_{mode}_"
        if patched:
            accelerator = Accelerator(cpu=True)
            setattr(accelerator, name, method)
        else:
            own = {name: lambda self, *args: method(*args)}
            accelerator = type("Own", (Accelerator,), own)(cpu=True)
        params, hook = clip(accelerator, clip_mode=mode, **settings)
        ((found, *rest),) = (call.args for call in method.mock_calls)
        assert is_same(found, params) and rest == expected
        assert hook.total_norm == (3 if mode == "norm" else None)
        assert torch.equal(params[0].grad, torch.tensor([3.0, 4.0]))


class TestReplaced:
    """Functions that a program has put in place of those called by name."""

    @pytest.mark.also_on("installed")
    @pytest.mark.parametrize(
        "replacing",
        [
            lambda original, own: own,
            lambda original, own: functools.wraps(original)(own),
            lambda original, own: torch.no_grad()(own),
            lambda original, own: clip_grad._no_grad(own),
            lambda original, own: mock.Mock(side_effect=own),
        ],
        ids=["function", "wraps", "no_grad", "torch's no_grad", "mock"],
    )
    @pytest.mark.parametrize(
        ("owner", "name", "mode"),
        [
            (torch.nn.utils, "clip_grad_norm_", "norm"),
            (torch.nn.utils, "clip_grad_value_", "value"),
            (Accelerator, "_clip_grad_norm_dtensor_aware", "norm"),
        ],
    )
    def test_are_called(self, lib, monkeypatch, owner, name, mode, replacing):
        def own(*args, **settings):
            (params,) = (each for each in args if isinstance(each, list))
            for param in params:
                param.grad.zero_()

        if not hasattr(owner, name):
            pytest.skip(f"this accelerate has no {name}")
        settings, _ = CLIPPING[mode]
        hook = lib.GradientClippingHookConfig(**settings)()
        for step in ("theirs", "own", "theirs"):
            params = two_params()
            optimizer = torch.optim.SGD(params)
            with monkeypatch.context() as patch:
                if step == "own":
                    replacement = replacing(getattr(owner, name), own)
                    patch.setattr(owner, name, replacement)
                run(lib, hook, Accelerator(cpu=True), optimizer)
            assert (params[0].grad.count_nonzero() == 0) == (step == "own")

    @pytest.mark.parametrize("mode", CLIPPING)
    def test_by_this_package(self, clip, calls, mode, monkeypatch):
        name = f"clip_grad_{mode}_"
        own = getattr(robo_orchard_fasthooks, name)
        monkeypatch.setattr(torch.nn.utils, name, own)
        clip(Accelerator(cpu=True), **CLIPPING[mode][0])
        assert calls == []

    def test_error_if_nonfinite_is_refused(self, clip, monkeypatch):
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", mock.Mock())
        with pytest.raises(ValueError, match="in place of torch's"):
            clip(
                Accelerator(cpu=True),
                clip_mode="norm",
                max_norm=1,
                error_if_nonfinite=True,
            )
        torch.nn.utils.clip_grad_norm_.assert_not_called()
