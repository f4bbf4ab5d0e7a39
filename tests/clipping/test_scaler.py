"""A step that fails under a GradScaler changes nothing, and the next works."""

import math
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.amp.grad_scaler import OptState
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.experimental import implicit_replication

import robo_orchard_fasthooks as ours
from helpers.fp16 import FP16
from helpers.gradients import attempt

NORM = {"clip_mode": "norm", "max_norm": 1.0}
BELOW = {"clip_mode": "norm", "max_norm": 1e9}
VALUE = {"clip_mode": "value", "clip_value": 1.0}
SCALE = 8.0

SPARSE = torch.sparse_coo_tensor(
    [[1, 1]], [9.0, 1.0], (3,), check_invariants=True
)
EXPANDED = torch.tensor(5.0).expand(3)
COMPLEX = torch.full((3,), 3 + 4j)
HALF = torch.tensor([3.0, -3.0, 0.0], dtype=torch.float16)
with torch.inference_mode():
    INFERENCE = torch.full((3,), 5.0)
AS_THEY_ARE = EXPANDED, INFERENCE  # A clone would have no fault.


CASES = {
    "sparse by value": (SPARSE, VALUE, "is sparse .*cannot be clipped"),
    "expanded by norm": (EXPANDED, NORM, "has elements that share memory"),
    "expanded below": (EXPANDED, BELOW, "has elements that share memory"),
    "expanded by value": (EXPANDED, VALUE, "has elements that share memory"),
    "complex by value": (COMPLEX, VALUE, "is complex .*by value"),
    "complex by norm": (COMPLEX, NORM, "is complex .* unscaled"),
    "half by value": (HALF, {**VALUE, "clip_value": 1e5}, "is too large"),
    "inference by norm": (INFERENCE, NORM, r"inference_mode\(\)"),
    "inference below": (INFERENCE, BELOW, r"inference_mode\(\)"),
    "inference by value": (INFERENCE, VALUE, r"inference_mode\(\)"),
}
if attempt(torch.linalg.vector_norm, SPARSE)[1]:  # It has one from 2.14 on.
    CASES["sparse by norm"] = (SPARSE, NORM, "is sparse")


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def make_param(like, grad):
    param = torch.nn.Parameter(torch.zeros(3, dtype=like.dtype))
    param.grad = grad
    return param


def run(hook, accelerator, optimizer):
    args = ours.PipelineHookArgs(accelerator, optimizer=optimizer)
    with hook.begin("on_step", args):
        pass


def assert_refused(hook, accelerator, optimizer, index, message):
    message = f"^the gradient of parameter {index} of group 0 .*{message}"
    with pytest.raises(NotImplementedError, match=message):
        run(hook, accelerator, optimizer)


def assert_same(found, expected):
    assert found.layout == expected.layout
    if found.layout != torch.strided:
        found, expected = found.to_dense(), expected.to_dense()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def accelerator():
    made = FP16()
    made.scaler.scale(torch.zeros(1))  # Its scale is made by the first use.
    return made


@pytest.fixture(params=[False, True])
def prepare(request, accelerator):
    """Makes an optimizer of parameters, prepared by accelerate or not."""

    def make(*params):
        made = torch.optim.SGD(params, lr=1)
        if request.param:
            made = accelerator.prepare_optimizer(made)
        accelerator._optimizers = [made]
        return made

    return make


def assert_next_step_works(hook, accelerator, optimizer):
    """Two optimizer steps, clipped as by torch on unscaled gradients."""
    raw = getattr(optimizer, "optimizer", optimizer)
    params = params_of(optimizer)
    for _ in range(2):
        before = [param.detach().clone() for param in params]
        for param in params:
            param.grad = torch.full_like(param, 3.0 * SCALE)
        run(hook, accelerator, optimizer)
        accelerator.scaler.step(raw)
        accelerator.scaler.update()
        expected = [torch.nn.Parameter(each) for each in before]
        for param in expected:
            param.grad = torch.full_like(param, 3.0)
        if hook.clip_mode == "norm":
            torch.nn.utils.clip_grad_norm_(expected, hook.max_norm)
        else:
            torch.nn.utils.clip_grad_value_(expected, hook.clip_value)
        for param, start, oracle in zip(params, before, expected, strict=True):
            torch.testing.assert_close(param, start - oracle.grad)
        assert accelerator.scaler.get_scale() == SCALE


@pytest.mark.parametrize("case", CASES)
def test_a_refusal_changes_nothing(accelerator, prepare, case):
    grad, settings, message = CASES[case]
    good = make_param(torch.zeros(3), torch.tensor([24.0, 32.0, 0.0]))
    as_it_is = any(grad is each for each in AS_THEY_ARE)
    bad = make_param(grad, grad if as_it_is else grad.clone())
    before, stays = grad.clone(), bad.grad
    optimizer = prepare(good, bad)
    hook = ours.GradientClippingHookConfig(**settings)()
    for _ in range(2):
        assert_refused(hook, accelerator, optimizer, 1, message)
        assert_same(good.grad, torch.tensor([24.0, 32.0, 0.0]))
        assert bad.grad is stays
        assert_same(bad.grad, before)
        assert hook.total_norm is None
    optimizer.param_groups[0]["params"][1] = make_param(torch.zeros(3), None)
    assert_next_step_works(hook, accelerator, optimizer)


@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (EXPANDED, "share memory"),
        (COMPLEX, "is complex"),
        (INFERENCE, "inference"),
    ],
    ids=["expanded", "complex", "inference"],
)
def test_a_frozen_parameter_is_unscaled_too(
    accelerator, prepare, grad, message
):
    good = make_param(torch.zeros(3), torch.tensor([24.0, 32.0, 0.0]))
    frozen = make_param(grad, grad).requires_grad_(False)
    optimizer = prepare(good, frozen)
    hook = ours.GradientClippingHookConfig(**NORM)()
    for _ in range(2):
        assert_refused(hook, accelerator, optimizer, 1, message)
        assert_same(good.grad, torch.tensor([24.0, 32.0, 0.0]))
    optimizer.param_groups[0]["params"].pop()
    assert_next_step_works(hook, accelerator, optimizer)


@pytest.fixture
def mesh():
    dist.init_process_group(
        "gloo", store=dist.HashStore(), rank=0, world_size=1
    )
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("settings", [NORM, VALUE], ids=["norm", "value"])
@pytest.mark.parametrize(
    ("order", "message"),
    [
        (["plain", "DTensor"], "is a DTensor and another one is plain, which"),
        (["DTensor", "plain"], "is plain and another one is a DTensor, which"),
    ],
    ids="-".join,
)
def test_plain_beside_dtensor(
    accelerator, prepare, mesh, order, message, settings
):
    """torch raises when it has unscaled the first gradient, of fp64."""
    plain = torch.full((3,), 24.0)
    both = {
        "plain": plain,
        "DTensor": DTensor.from_local(plain, mesh, [Shard(0)]),
    }
    grads = [plain.double(), *(both[kind].clone() for kind in order)]
    params = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer = prepare(*params)
    hook = ours.GradientClippingHookConfig(**settings)()
    for _ in range(2):
        assert_refused(hook, accelerator, optimizer, 2, message)
        for param in params:
            local = getattr(param.grad, "_local_tensor", param.grad)
            assert_same(local.float(), plain)
    del optimizer.param_groups[0]["params"][2]
    if order[0] == "plain":
        assert_next_step_works(hook, accelerator, optimizer)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_plain_beside_dtensor_where_torch_unscales(
    accelerator, prepare, mesh, dtype
):
    """Those of another dtype; all of them where DTensor replicates."""
    sharded = DTensor.from_local(torch.zeros(3), mesh, [Shard(0)])
    params = [
        make_param(torch.zeros(3, dtype=dtype), None),
        torch.nn.Parameter(sharded),
    ]
    params[0].grad = torch.full((3,), 24.0, dtype=dtype)
    params[1].grad = torch.full_like(params[1], 32.0)
    replicates = dtype == torch.float32
    with implicit_replication() if replicates else nullcontext():
        hook = ours.GradientClippingHookConfig(**BELOW)()
        run(hook, accelerator, prepare(*reversed(params)))
    assert params[0].grad.tolist() == [3.0] * 3
    assert params[1].grad.full_tensor().tolist() == [4.0] * 3


def test_a_parameter_of_an_unknown_fsdp_module(accelerator, prepare):
    params = [make_param(torch.zeros(3), torch.full((3,), 8.0))]
    params[0]._fsdp_flattened = True
    optimizer = prepare(*params)
    hook = ours.GradientClippingHookConfig(**NORM)()
    with pytest.raises(RuntimeError, match="its module is unknown"):
        run(hook, accelerator, optimizer)
    assert_same(params[0].grad, torch.full((3,), 8.0))
    params[0]._fsdp_flattened = False
    assert_next_step_works(hook, accelerator, optimizer)


def test_without_a_scaler_what_is_not_scaled_is_not_refused():
    """Below the bound an expanded gradient is left alone, as it was."""
    hook = ours.GradientClippingHookConfig(**BELOW)()
    param = make_param(EXPANDED, EXPANDED)
    accelerator = FP16()
    accelerator.scaler = None
    accelerator.native_amp = False
    run(hook, accelerator, torch.optim.SGD([param]))
    assert param.grad is EXPANDED
    assert hook.total_norm.item() == pytest.approx(75**0.5)


@pytest.mark.parametrize(
    "grads",
    [
        [[24.0, math.inf, 1.0], [8.0, 8.0, 8.0]],
        [[24.0, 0.0, 1.0], [8.0, math.nan, 8.0]],
        # Finite, but for their squares.
        [[1e30, 0.0, 1.0], [8.0, 8.0, 8.0]],
    ],
)
class TestErrorIfNonfinite:
    @pytest.fixture
    def hook(self):
        return ours.GradientClippingHookConfig(
            **NORM, error_if_nonfinite=True
        )()

    @pytest.fixture
    def params(self, grads):
        return [make_param(torch.zeros(3), torch.tensor(g)) for g in grads]

    def fails(self, hook, accelerator, optimizer):
        with pytest.raises(RuntimeError, match="is not finite") as raised:
            run(hook, accelerator, optimizer)
        assert hook.total_norm is None
        return raised.value

    def test_the_gradients_stay_and_the_next_step_works(
        self, hook, accelerator, prepare, params, grads
    ):
        optimizer = prepare(*params)
        for _ in range(2):
            error = self.fails(hook, accelerator, optimizer)
            for param, grad in zip(params, grads, strict=True):
                assert_same(param.grad, torch.tensor(grad))
        if sys.version_info >= (3, 11):
            overflowed = not math.isfinite(sum(sum(grads, [])))
            notes = " ".join(error.__notes__)
            assert ("accelerator.scaler.update()" in notes) == overflowed
        assert_next_step_works(hook, accelerator, optimizer)

    def test_another_optimizer_keeps_its_state(
        self, hook, accelerator, prepare, params
    ):
        other = prepare(make_param(torch.zeros(3), torch.full((3,), 8.0)))
        run(ours.GradientClippingHookConfig(**NORM)(), accelerator, other)
        clipped = params_of(other)[0].grad.clone()
        self.fails(hook, accelerator, prepare(*params))
        raw = getattr(other, "optimizer", other)
        accelerator.scaler.step(raw)
        assert torch.equal(params_of(other)[0].detach(), -clipped)

    def test_an_optimizer_that_the_user_unscaled_stays_so(
        self, hook, accelerator, prepare, params
    ):
        """As upstream: it was unscaled outside of the hook."""
        optimizer = prepare(*params)
        raw = getattr(optimizer, "optimizer", optimizer)
        accelerator.scaler.unscale_(raw)
        grads = [param.grad.clone() for param in params]
        with pytest.raises(RuntimeError, match="already been called"):
            run(hook, accelerator, optimizer)
        for param, grad in zip(params, grads, strict=True):
            assert_same(param.grad, grad)
        states = accelerator.scaler._per_optimizer_states
        assert states[id(raw)]["stage"] is OptState.UNSCALED

    @pytest.mark.parametrize("own", [False, True])
    def test_a_wrapper_of_several(self, hook, params, grads, own):
        """Also where the accelerator has an unscale_gradients of its own."""

        class Own(FP16):
            def unscale_gradients(self):
                super().unscale_gradients()

        accelerator = Own() if own else FP16()
        accelerator.scaler.scale(torch.zeros(1))
        optimizers = [torch.optim.SGD([param], lr=1) for param in params]
        accelerator._optimizers = optimizers
        groups = [each.param_groups[0] for each in optimizers]
        wrapper = SimpleNamespace(param_groups=groups)
        for _ in range(2):
            self.fails(hook, accelerator, wrapper)
            for param, grad in zip(params, grads, strict=True):
                assert_same(param.grad, torch.tensor(grad))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("scales_again", [True, False])
def test_any_other_failure(accelerator, prepare, error, scales_again):
    """The next step works, even if gradients cannot be scaled again."""
    optimizer = prepare(make_param(torch.zeros(3), torch.full((3,), 8.0)))
    hook = ours.GradientClippingHookConfig(**NORM)()
    failing = mock.Mock(side_effect=error)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(error):
        patch.setattr(torch.linalg, "vector_norm", failing)
        if not scales_again:
            patch.setattr(accelerator.scaler, "get_scale", failing)
        run(hook, accelerator, optimizer)
    if scales_again:
        assert_same(params_of(optimizer)[0].grad, torch.full((3,), 8.0))
    assert_next_step_works(hook, accelerator, optimizer)


def test_a_scaler_that_is_disabled(accelerator):
    accelerator.scaler = torch.amp.GradScaler("cpu", enabled=False)
    param = make_param(EXPANDED, EXPANDED)
    hook = ours.GradientClippingHookConfig(**BELOW)()
    run(hook, accelerator, torch.optim.SGD([param]))
    assert param.grad is EXPANDED
