"""Where accelerate, or a subclass of it, clips by itself."""

import functools
import sys
from fractions import Fraction
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed._functional_collectives import all_reduce
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn.utils import clip_grad

import robo_orchard_fasthooks

NORM = {"clip_mode": "norm", "max_norm": 2, "norm_type": 1}
VALUE = {"clip_mode": "value", "clip_value": 2}
MODES = {"norm": NORM, "value": VALUE}
SETTINGS = pytest.mark.parametrize("settings", [NORM, VALUE])
GRAD = torch.tensor([3.0, 4.0])


def run(lib, hook, accelerator, optimizer):
    args = lib.PipelineHookArgs(accelerator, optimizer=optimizer)
    with hook.begin("on_step", args):
        pass


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
        param.grad = GRAD.clone()
    return params


@pytest.fixture
def clip(ours):
    """Runs a hook on two parameters, which it returns with the hook."""

    def run_on(accelerator, last=None, **settings):
        params = two_params()
        hook = ours.GradientClippingHookConfig(**settings)()
        hook.total_norm = last
        run(ours, hook, accelerator, torch.optim.SGD(params))
        return params, hook

    return run_on


def is_same(found, params):
    return [id(each) for each in found] == [id(each) for each in params]


@SETTINGS
@pytest.mark.parametrize("kind", ["XLA", "MEGATRON_LM"])
def test_by_accelerate(clip, calls, kind, settings):
    params, hook = clip(stand_in(DistributedType[kind]), **settings)
    ((name, given),) = calls
    assert name == f"clip_grad_{settings['clip_mode']}_"
    assert is_same(given.pop("parameters"), params)
    assert {"clip_mode": settings["clip_mode"], **given} == settings
    assert hook.total_norm == (14 if settings is NORM else None)
    assert params[0].grad.sum() < 4.001


@pytest.mark.parametrize("norm", [7.0, torch.tensor(7.0)])
@pytest.mark.parametrize("has_gradients", [True, False])
def test_by_deepspeed(ours, norm, has_gradients):
    """It clips by itself, and tells the norm; it may keep the gradients."""
    accelerator = stand_in(DistributedType.DEEPSPEED)
    accelerator.deepspeed_engine_wrapped = SimpleNamespace(
        get_global_grad_norm=lambda: norm
    )
    params = two_params()
    if not has_gradients:
        params = [torch.nn.Parameter(torch.zeros(2))]
    hook = ours.GradientClippingHookConfig(**NORM)()
    run(ours, hook, accelerator, torch.optim.SGD(params))
    assert torch.equal(hook.total_norm, torch.tensor(7.0))
    assert not has_gradients or torch.equal(params[0].grad, GRAD)


def test_deepspeed_has_no_value_mode(clip):
    with pytest.raises(Exception, match="do not support `clip_grad_value"):
        clip(stand_in(DistributedType.DEEPSPEED), **VALUE)


def test_error_if_nonfinite_is_refused(clip, calls):
    accelerator = stand_in(DistributedType.MEGATRON_LM)
    with pytest.raises(ValueError, match="StandIn, .*MEGATRON_LM"):
        clip(accelerator, **NORM, error_if_nonfinite=True)
    assert calls == []


def test_own_unscaling(clip):
    """It is called as accelerate calls it."""
    calls = []

    class Own(Accelerator):
        def unscale_gradients(self):
            calls.append(self)

    clip(accelerator := Own(cpu=True), **NORM)
    assert calls == [accelerator]


@SETTINGS
@pytest.mark.parametrize("kind", ["NO", "MULTI_CPU", "MULTI_GPU", "FSDP"])
def test_clipped_by_this_package(clip, calls, kind, settings):
    params, _ = clip(stand_in(DistributedType[kind]), **settings)
    assert calls == []
    others = two_params()
    if settings is NORM:
        torch.nn.utils.clip_grad_norm_(others, 2, 1)
    else:
        torch.nn.utils.clip_grad_value_(others, 2)
    for param, other in zip(params, others, strict=True):
        assert torch.equal(param.grad, other.grad)


@SETTINGS
@pytest.mark.parametrize("of", ["instance", "subclass", "patch"])
def test_methods_of_its_own(clip, of, settings, monkeypatch):
    """A patch of accelerate may look like the original."""
    method = mock.Mock(return_value=torch.tensor(3.0))
    mode, *expected = settings.values()
    name = f"clip_grad_{mode}_"

    @functools.wraps(getattr(Accelerator, name))
    def patch(self, *args):
        return method(*args)

    if of == "patch":
        monkeypatch.setattr(Accelerator, name, patch)
    cls = type("Own", (Accelerator,), {name: patch})
    accelerator = (cls if of == "subclass" else Accelerator)(cpu=True)
    if of == "instance":
        setattr(accelerator, name, method)
    params, hook = clip(accelerator, **settings)
    ((found, *rest),) = (call.args for call in method.mock_calls)
    assert is_same(found, params) and rest == expected
    assert hook.total_norm == (3 if mode == "norm" else None)
    assert torch.equal(params[0].grad, GRAD)


class TestTotalNorm:
    """`hook.total_norm`, of what an accelerator's own method returns."""

    @pytest.fixture
    def norm_of(self, clip):
        def norm_of(returned, last=None):
            accelerator = Accelerator(cpu=True)
            accelerator.clip_grad_norm_ = lambda *args: returned
            return clip(accelerator, last, **NORM)[1].total_norm

        return norm_of

    @pytest.mark.parametrize(
        "returned",
        [
            *(7, Fraction(7), np.float32(7), torch.tensor([[7]])),
            torch.tensor(7.0, dtype=torch.bfloat16),
            torch.nn.Parameter(torch.tensor([7.0])),
            torch.tensor([7.0]).as_subclass(torch.nn.Buffer),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_a_number_or_one_element(self, norm_of, returned):
        assert_plain(norm_of(returned), 7)

    @pytest.mark.parametrize(
        "returned",
        [
            *(None, "7.0", (7.0,), True, 7j, 10**400),
            *(np.array([7.0, 8.0]), torch.tensor([7.0, 8.0])),
            *(torch.empty(0), torch.Tensor),
            torch.sparse_coo_tensor([[0]], [7.0], (1,), check_invariants=True),
        ],
        ids=lambda value: type(value).__name__,
    )
    @pytest.mark.parametrize("last", [None, torch.tensor(3.0)])
    def test_anything_else_leaves_it_as_it_was(self, norm_of, returned, last):
        assert norm_of(returned, last) is last

    @pytest.mark.parametrize(
        "placement", [Replicate(), Partial(), Shard(0), None]
    )
    def test_a_dtensor_or_a_reduction_on_its_way(self, norm_of, placement):
        dist.init_process_group(
            "gloo", store=dist.HashStore(), rank=0, world_size=1
        )
        try:
            mesh, norm = init_device_mesh("cpu", (1,)), torch.tensor([7.0])
            if placement is None:
                returned = all_reduce(norm, "sum", mesh)
            else:
                returned = DTensor.from_local(norm, mesh, [placement])
            assert type(returned) is not torch.Tensor
            assert_plain(norm_of(returned), 7)
        finally:
            dist.destroy_process_group()


def assert_plain(found, expected):
    assert type(found) is torch.Tensor and found.shape == ()
    assert not found.requires_grad
    assert found.item() == pytest.approx(expected, nan_ok=True)


def test_a_step_that_takes_no_norm_leaves_the_last_one(ours):
    accelerator = Accelerator(cpu=True)
    param = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([param], lr=1)
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
            run(ours, hook, accelerator, optimizer)
        finally:
            accelerator.gradient_state._set_sync_gradients(True)
        assert_plain(hook.total_norm, 5)


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
        hook = lib.GradientClippingHookConfig(**MODES[mode])()
        for step in ("theirs", "own", "theirs"):
            params = two_params()
            optimizer = torch.optim.SGD(params)
            with monkeypatch.context() as patch:
                if step == "own":
                    replacement = replacing(getattr(owner, name), own)
                    patch.setattr(owner, name, replacement)
                run(lib, hook, Accelerator(cpu=True), optimizer)
            assert (params[0].grad.count_nonzero() == 0) == (step == "own")

    @pytest.mark.parametrize("mode", MODES)
    def test_by_this_package(self, clip, calls, mode, monkeypatch):
        name = f"clip_grad_{mode}_"
        own = getattr(robo_orchard_fasthooks, name)
        monkeypatch.setattr(torch.nn.utils, name, own)
        clip(Accelerator(cpu=True), **MODES[mode])
        assert calls == []

    def test_error_if_nonfinite_is_refused(self, clip, monkeypatch):
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", mock.Mock())
        with pytest.raises(ValueError, match="in place of torch's"):
            clip(Accelerator(cpu=True), **NORM, error_if_nonfinite=True)
        torch.nn.utils.clip_grad_norm_.assert_not_called()
