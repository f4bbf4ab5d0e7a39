"""Clipping under a GradScaler.

A step that fails changes nothing, and the next one works.
"""

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


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def raw(optimizer):
    """What a prepared optimizer wraps."""
    return getattr(optimizer, "optimizer", optimizer)


def make_param(like, grad):
    param = torch.nn.Parameter(torch.zeros(3, dtype=like.dtype))
    param.grad = grad
    return param


def filled(*values):
    """A parameter of three elements with this gradient."""
    return make_param(torch.zeros(3), torch.tensor(values).expand(3).clone())


def run(hook, accelerator, optimizer):
    args = ours.PipelineHookArgs(accelerator, optimizer=optimizer)
    with hook.begin("on_step", args):
        pass


def make_hook(**settings):
    return ours.GradientClippingHookConfig(**settings)()


def clip_by_torch(hook, params):
    if hook.clip_mode == "norm":
        torch.nn.utils.clip_grad_norm_(params, hook.max_norm)
    else:
        torch.nn.utils.clip_grad_value_(params, hook.clip_value)


def assert_refused(hook, accelerator, optimizer, index, message):
    message = f"^the gradient of parameter {index} of group 0 .*{message}"
    with pytest.raises(NotImplementedError, match=message):
        run(hook, accelerator, optimizer)


def assert_same(found, expected):
    assert found.layout == expected.layout
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


@pytest.mark.parametrize("mode", [NORM, VALUE], ids=["norm", "value"])
@pytest.mark.parametrize("first", [3.0, math.inf, math.nan])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_step(accelerator, prepare, mode, first, wrapped):
    """Of two optimizers, in turn or in a wrapper, against steps by hand.

    An overflow skips the step of its optimizer and lowers the scale.
    """
    grads = torch.tensor([first, -4.0, 0]), torch.tensor([50.0, 0, -120.0])
    given = [make_param(g, g * SCALE) for g in (*grads, grads[0])]
    optimizers = [prepare(param) for param in given]
    accelerator._optimizers = optimizers
    for optimizer in optimizers:  # Two groups are unscaled once.
        group = {"params": [torch.nn.Parameter(torch.zeros(1))]}
        raw(optimizer).add_param_group(group)
    hook = make_hook(**mode)
    expected = [make_param(g, g.clone()) for g in grads]
    groups = sum((each.param_groups for each in optimizers[:2]), [])
    clipped = [SimpleNamespace(param_groups=groups)]
    norms, lists = [], [expected] if wrapped else [[p] for p in expected]
    for each in clipped if wrapped else optimizers[:2]:
        run(hook, accelerator, each)
        norms.append(hook.total_norm)
    for params in lists:
        clip_by_torch(hook, params)
    if mode is NORM and first == 3 and not wrapped:
        assert norms == [5, 130]  # Without the scale.
    # Another one stays as it was.
    assert_same(given[2].grad, grads[0] * SCALE)
    for optimizer, param, oracle in zip(
        optimizers[:2], given[:2], expected, strict=True
    ):
        assert_same(param.grad, oracle.grad)
        accelerator.scaler.step(raw(optimizer))
        overflows = not math.isfinite(first) and param is given[0]
        assert_same(
            param.detach(),
            torch.zeros(3) if overflows else -oracle.grad,
        )
    accelerator.scaler.update()
    scale = SCALE if math.isfinite(first) else SCALE / 2
    assert accelerator.scaler.get_scale() == scale


def assert_next_step_works(hook, accelerator, optimizer):
    """Two optimizer steps, clipped as by torch on unscaled gradients."""
    params = params_of(optimizer)
    for _ in range(2):
        before = [param.detach().clone() for param in params]
        expected = [torch.nn.Parameter(each) for each in before]
        for param, oracle in zip(params, expected, strict=True):
            param.grad = torch.full_like(param, 3.0 * SCALE)
            oracle.grad = torch.full_like(oracle, 3.0)
        run(hook, accelerator, optimizer)
        accelerator.scaler.step(raw(optimizer))
        accelerator.scaler.update()
        clip_by_torch(hook, expected)
        for param, start, oracle in zip(params, before, expected, strict=True):
            torch.testing.assert_close(param, start - oracle.grad)
        assert accelerator.scaler.get_scale() == SCALE


@pytest.mark.parametrize(
    ("grad", "settings", "message"),
    [
        (SPARSE, VALUE, "is sparse .*cannot be clipped"),
        (SPARSE, NORM, "is sparse"),
        (EXPANDED, NORM, "has elements that share memory"),
        (EXPANDED, BELOW, "has elements that share memory"),
        (EXPANDED, VALUE, "has elements that share memory"),
        (COMPLEX, VALUE, "is complex .*by value"),
        (COMPLEX, NORM, "is complex .* unscaled"),
        (HALF, {**VALUE, "clip_value": 1e5}, "is too large"),
        (INFERENCE, NORM, r"inference_mode\(\)"),
        (INFERENCE, BELOW, r"inference_mode\(\)"),
        (INFERENCE, VALUE, r"inference_mode\(\)"),
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_refusal_changes_nothing(
    accelerator, prepare, grad, settings, message, frozen
):
    """A frozen parameter is unscaled, too."""
    if grad is SPARSE and settings is NORM:
        if not attempt(torch.linalg.vector_norm, SPARSE)[1]:
            pytest.skip("torch 2.14 clips sparse gradients by norm")
    if frozen and (grad is SPARSE or grad is HALF):
        pytest.skip("can be unscaled, and is not clipped")
    message = message.replace("by value", "") if frozen else message
    good, bad = filled(24.0, 32.0, 0.0), make_param(grad, grad)
    before = grad.clone()
    bad.requires_grad_(not frozen)
    optimizer, hook = prepare(good, bad), make_hook(**settings)
    for _ in range(2):
        assert_refused(hook, accelerator, optimizer, 1, message)
        assert_same(good.grad, torch.tensor([24.0, 32.0, 0.0]))
        assert bad.grad is grad
        assert_same(bad.grad, before)
        assert hook.total_norm is None
    optimizer.param_groups[0]["params"][1] = make_param(good, None)
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
    hook = make_hook(**settings)
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
        run(make_hook(**BELOW), accelerator, prepare(*reversed(params)))
    assert params[0].grad.tolist() == [3.0] * 3
    assert params[1].grad.full_tensor().tolist() == [4.0] * 3


def test_a_parameter_of_an_unknown_fsdp_module(accelerator, prepare):
    optimizer, hook = prepare(param := filled(8.0)), make_hook(**NORM)
    param._fsdp_flattened = True
    with pytest.raises(RuntimeError, match="its module is unknown"):
        run(hook, accelerator, optimizer)
    assert_same(param.grad, torch.full((3,), 8.0))
    param._fsdp_flattened = False
    assert_next_step_works(hook, accelerator, optimizer)


@pytest.mark.parametrize("scaler", ["none", "disabled"])
def test_without_a_scaler_what_is_not_scaled_is_not_refused(
    accelerator, scaler
):
    """Below the bound an expanded gradient is left alone, as it was."""
    accelerator.scaler = None
    if scaler == "disabled":
        accelerator.scaler = torch.amp.GradScaler("cpu", enabled=False)
    accelerator.native_amp = accelerator.scaler is not None
    param, hook = make_param(EXPANDED, EXPANDED), make_hook(**BELOW)
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
        return make_hook(**NORM, error_if_nonfinite=True)

    def fails(self, hook, accelerator, optimizer, match="is not finite"):
        before = [param.grad.clone() for param in params_of(optimizer)]
        with pytest.raises(RuntimeError, match=match) as raised:
            run(hook, accelerator, optimizer)
        assert hook.total_norm is None
        for param, grad in zip(params_of(optimizer), before, strict=True):
            assert_same(param.grad, grad)
        return raised.value

    def test_the_gradients_stay_and_the_next_step_works(
        self, hook, accelerator, prepare, grads
    ):
        optimizer = prepare(*(filled(*grad) for grad in grads))
        for _ in range(2):
            error = self.fails(hook, accelerator, optimizer)
        if sys.version_info >= (3, 11):
            overflowed = not math.isfinite(sum(sum(grads, [])))
            notes = " ".join(error.__notes__)
            assert ("accelerator.scaler.update()" in notes) == overflowed
        assert_next_step_works(hook, accelerator, optimizer)

    def test_another_optimizer_keeps_its_state(
        self, hook, accelerator, prepare, grads
    ):
        other = prepare(filled(8.0))
        run(make_hook(**NORM), accelerator, other)
        clipped = params_of(other)[0].grad.clone()
        optimizer = prepare(*(filled(*grad) for grad in grads))
        self.fails(hook, accelerator, optimizer)
        accelerator.scaler.step(raw(other))
        assert_same(params_of(other)[0].detach(), -clipped)

    def test_an_optimizer_that_the_user_unscaled_stays_so(
        self, hook, accelerator, prepare, grads
    ):
        """As upstream: it was unscaled outside of the hook."""
        optimizer = prepare(*(filled(*grad) for grad in grads))
        accelerator.scaler.unscale_(raw(optimizer))
        self.fails(hook, accelerator, optimizer, "already been called")
        states = accelerator.scaler._per_optimizer_states
        assert states[id(raw(optimizer))]["stage"] is OptState.UNSCALED

    @pytest.mark.parametrize("own", [False, True])
    def test_a_wrapper_of_several(self, hook, grads, own):
        """Also where the accelerator has an unscale_gradients of its own."""

        class Own(FP16):
            def unscale_gradients(self):
                super().unscale_gradients()

        accelerator = Own() if own else FP16()
        accelerator.scaler.scale(torch.zeros(1))
        optimizers = [torch.optim.SGD([filled(*grad)]) for grad in grads]
        accelerator._optimizers = optimizers
        groups = [each.param_groups[0] for each in optimizers]
        for _ in range(2):
            wrapper = SimpleNamespace(param_groups=groups)
            self.fails(hook, accelerator, wrapper)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("scales_again", [True, False])
def test_any_other_failure(accelerator, prepare, error, scales_again):
    """The next step works, even if gradients cannot be scaled again."""
    optimizer, hook = prepare(param := filled(8.0)), make_hook(**NORM)
    failing = mock.Mock(side_effect=error)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(error):
        patch.setattr(torch.linalg, "vector_norm", failing)
        if not scales_again:
            patch.setattr(accelerator.scaler, "get_scale", failing)
        run(hook, accelerator, optimizer)
    if scales_again:
        assert_same(param.grad, torch.full((3,), 8.0))
    assert_next_step_works(hook, accelerator, optimizer)
