"""What clipping would have a GPU do, next to torch's functions with foreach.

Nothing here runs on a GPU: `helpers.cuda_trace` records ops on fake tensors
and counts launches, bytes and waits by a model of torch's CUDA code.
"""

import re
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.distributed.fake_pg import FakeStore

import robo_orchard_fasthooks
from helpers.cuda_trace import (
    CUDA_12,
    CUDA_13,
    Limits,
    multi_tensor_apply,
    recorded,
)
from helpers.gradients import NORM_TYPES, assert_same_gradients, same_bits
from robo_orchard_fasthooks import clip
from robo_orchard_fasthooks._clipping.mesh import _Mask

F32, BF16 = torch.float32, torch.bfloat16
LIMITS = pytest.mark.parametrize(
    "limits", [CUDA_12, CUDA_13], ids=["12", "13"]
)
# Below and above what real gradients would come to.
BOUNDS = (1e-3, 1e12)


def alternating(shapes, *dtypes):
    """A gradient of each shape, with each of the dtypes in turn."""
    return [(s, dtypes[i % len(dtypes)]) for i, s in enumerate(shapes)]


SMALL = [(64,)] * 1000
CASES = {
    "1,000 small": alternating(SMALL, F32),
    "1,000 small, mixed": alternating(SMALL, F32, BF16),
    "60 of 16.8M, bf16": alternating([(4096, 4096)] * 60, BF16),
    "200 of 262,144": alternating([(512, 512)] * 200, F32),
    "300 of different shapes, mixed": alternating(
        [(64 + i,) for i in range(300)], F32, BF16
    ),
    "some of them empty": alternating(
        [(0,) if i % 3 else (64,) for i in range(60)], F32, BF16
    ),
    "0-dim of another dtype": [
        *alternating([(64,)] * 100, F32, BF16),
        *alternating([()] * 20, BF16),
    ],
    "four": alternating([(64,)] * 4, F32, BF16),
    "four of three dtypes": alternating([(64,)] * 4, F32, BF16, torch.float16),
    "complex and real": alternating([(64,)] * 40, F32, torch.complex64),
}
MIXTURES = ["1,000 small, mixed", "300 of different shapes, mixed"]
ALL = pytest.mark.parametrize("case", CASES)
REAL = pytest.mark.parametrize("case", list(CASES)[:-1])


def parameters(gradients, device="cuda"):
    """Parameters with gradients of these shapes and dtypes."""
    params = []
    for shape, dtype in gradients:
        value = torch.zeros((), dtype=dtype, device=device).expand(shape)
        params.append(torch.nn.Parameter(value))
        params[-1].grad = torch.empty(shape, dtype=dtype, device=device)
    return params


@pytest.fixture
def fake():
    with FakeTensorMode() as mode:
        yield mode


def by_norm(module, params, bound, **foreach):
    return module.clip_grad_norm_(params, bound, **foreach)


def by_value(module, params, bound, **foreach):
    module.clip_grad_value_(params, bound, **foreach)


def norm_only(module, params, bound, **foreach):
    return module.get_total_norm([p.grad for p in params], **foreach)


def with_norm(module, params, bound, **foreach):
    # It may have another dtype than the gradients.
    total_norm = torch.full((), 2.0, device=params[0].device)
    module.clip_grads_with_norm_(params, bound, total_norm, **foreach)


FUNCTIONS = [by_norm, by_value, norm_only, with_norm]


def of_ours(call, params, bound):
    with recorded() as ops:
        call(clip, params, bound)
    return ops


def of_torch(call, params, bound):
    # Of its own accord it does not use foreach kernels for fake tensors.
    with recorded() as ops:
        call(torch.nn.utils, params, bound, foreach=True)
    return ops


def of_hook(mode, params, bound):
    """Of GradientClippingHook, at a step of an optimizer."""
    config = robo_orchard_fasthooks.GradientClippingHookConfig(
        clip_mode=mode, max_norm=bound, clip_value=bound
    )
    args = robo_orchard_fasthooks.PipelineHookArgs(
        Accelerator(cpu=True), optimizer=torch.optim.SGD(params, lr=1)
    )
    with recorded() as ops, config().begin("on_step", args):
        pass
    return ops


def assert_no_more(ours, theirs):
    for limits in (CUDA_12, CUDA_13):
        mine, reference = ours.launches(limits), theirs.launches(limits)
        assert mine <= reference, (limits, ours.names, theirs.names)
    assert ours.bytes <= theirs.bytes, (ours.names, theirs.names)
    assert ours.waits == []
    assert ours.ops


@ALL
def test_norm(fake, case):
    params = parameters(CASES[case])
    theirs = of_torch(by_norm, params, 1.0)
    for bound in BOUNDS:
        assert_no_more(of_ours(by_norm, params, bound), theirs)


@REAL
def test_value(fake, case):
    params = parameters(CASES[case])
    theirs = of_torch(by_value, params, 1.0)
    for bound in BOUNDS:
        assert_no_more(of_ours(by_value, params, bound), theirs)


@pytest.mark.parametrize("call", [norm_only, with_norm])
@ALL
def test_halves(fake, case, call):
    params = parameters(CASES[case])
    ours = of_ours(call, params, 1.0)
    assert_no_more(ours, of_torch(call, params, 1.0))


@pytest.mark.parametrize(
    ("mode", "call"), [("norm", by_norm), ("value", by_value)]
)
@REAL
def test_hook(fake, case, mode, call):
    params = parameters(CASES[case])
    theirs = of_torch(call, params, 1.0)
    for bound in BOUNDS:
        assert_no_more(of_hook(mode, params, bound), theirs)


@pytest.mark.parametrize("call", FUNCTIONS)
@pytest.mark.parametrize("dtypes", [(F32,), (F32, BF16)], ids=str)
def test_no_op_is_called_for_each_gradient(fake, call, dtypes):
    """Not even a view, which costs the host as much as a kernel."""
    ours = [
        of_ours(call, parameters(alternating(SMALL[:count], *dtypes)), 1.0)
        for count in (20, 100)
    ]
    assert ours[0].calls == ours[1].calls > 0
    assert ours[0].names == ours[1].names


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("case", ["four", "0-dim of another dtype"])
def test_norm_types(fake, case, norm_type):
    params = parameters(CASES[case])
    with recorded() as ours:
        clip.clip_grad_norm_(params, 1.0, norm_type)
    with recorded() as theirs:
        torch.nn.utils.clip_grad_norm_(params, 1.0, norm_type, foreach=True)
    assert_no_more(ours, theirs)


@LIMITS
@pytest.mark.parametrize("case", MIXTURES)
def test_mixtures_take_a_tenth(fake, case, limits):
    """torch multiplies, and copies norms, one by one where dtypes differ."""
    params = parameters(CASES[case])
    theirs = of_torch(by_norm, params, 1.0).launches(limits)
    for ours in (
        of_ours(by_norm, params, 1.0),
        of_hook("norm", params, 1.0),
    ):
        assert ours.launches(limits) <= theirs / 10


@pytest.mark.parametrize(
    "dtype", [BF16, torch.float16, torch.float64], ids=str
)
def test_a_norm_of_another_dtype_is_cast_once(fake, dtype):
    """clip_grads_with_norm_ of gradients that all have one dtype."""
    params = parameters(alternating(SMALL, dtype))
    theirs = of_torch(with_norm, params, 1.0).launches(CUDA_12)
    assert of_ours(with_norm, params, 1.0).launches(CUDA_12) <= theirs / 10


@st.composite
def lists(draw, dtypes):
    """Four gradients or more, some of them not dense."""
    runs = draw(
        st.lists(
            st.tuples(
                st.integers(1, 8),
                st.sampled_from([(), (0,), (64,), (3, 5), (300, 300)]),
                st.sampled_from(dtypes),
                st.sampled_from(["own", "own", "transposed", "strided"]),
            ),
            min_size=1,
            max_size=4,
        )
    )
    found = [run[1:] for run in runs for _ in range(run[0])]
    found += [found[-1]] * (4 - len(found))
    return draw(st.permutations(found))


def build(gradients):
    params = parameters([each[:2] for each in gradients])
    for param, (shape, _, layout) in zip(params, gradients, strict=True):
        if layout == "transposed":
            other = param.grad.new_empty(shape[::-1])
            param.grad = other.permute(tuple(reversed(range(len(shape)))))
        elif layout == "strided":
            wide = torch.empty((*shape, 2), dtype=param.dtype, device="cuda")
            param.grad = wide.select(-1, 0)
    return params


@given(gradients=lists([F32, BF16, torch.float16, torch.float64]))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_any_list(gradients):
    with FakeTensorMode():
        params = build(gradients)
        for call in FUNCTIONS:
            ours = of_ours(call, params, 1.0)
            theirs = of_torch(call, params, 1.0)
            if theirs.ops:
                assert_no_more(ours, theirs)


@pytest.mark.parametrize("call", [by_norm, norm_only])
def test_only_an_error_waits(fake, call):
    """To raise an error if the norm is not finite, the host has to know it."""
    params = parameters(CASES["four"])
    with recorded() as ops, pytest.raises(DataDependentOutputException):
        call(clip, params, 1.0, error_if_nonfinite=True)
    assert ops.waits == ["aten._local_scalar_dense"]
    # Nothing has been scaled by then.
    assert "aten._foreach_mul_" not in ops.names


def test_0_dim_gradients_take_the_coefficient_unrounded(fake):
    """As in torch, where dtypes that both have no dimension are promoted."""
    params = parameters([((), BF16)] * 8 + [((64,), F32)] * 8)
    ours, theirs = (of(by_norm, params, 1.0) for of in (of_ours, of_torch))
    assert "aten._to_copy" not in ours.names + theirs.names


# Gradients that are sharded, on the first of two ranks.


@pytest.fixture
def mesh():
    """Over torch's own stand-in for a process group, which reduces nothing."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield init_device_mesh("cuda", (2,))
    dist.destroy_process_group()


def sharded(mesh, gradients):
    params = []
    for index, (shape, dtype) in enumerate(gradients):
        placements = [Replicate() if index % 3 == 0 else Shard(0)]
        param, grad = (
            DTensor.from_local(
                torch.empty(shape, dtype=dtype, device="cuda"),
                mesh,
                placements,
                run_check=False,
            )
            for _ in range(2)
        )
        params.append(torch.nn.Parameter(param))
        params[-1].grad = grad
    return params


SHARDED = alternating([(64,)] * 40, F32, BF16)


@pytest.mark.parametrize("call", FUNCTIONS)
@pytest.mark.parametrize("dtypes", [(F32,), (F32, BF16)], ids=str)
def test_sharded(mesh, fake, call, dtypes):
    """One all-reduce for all, and no launch for a gradient by itself."""
    launches = []
    for count in (40, 100):
        params = sharded(mesh, alternating([(64,)] * count, *dtypes))
        ours = of_ours(call, params, 1.0)
        # A mask of those that are whole is copied, but nobody waits for it.
        assert ours.waits == []
        reductions = ours.names.count("c10d.allreduce_")
        assert reductions == (call in (by_norm, norm_only))
        launches.append(ours.launches(CUDA_12))
    assert launches[0] == launches[1] > 0


def test_a_sharded_gradient_that_this_rank_lacks(mesh, fake):
    """Which ones some rank has is known to the device alone."""
    params = sharded(mesh, SHARDED)
    params[1].grad = None
    with recorded() as ops, pytest.raises(DynamicOutputShapeException):
        by_norm(clip, params, 1.0)
    assert ops.waits == ["aten.masked_select"]
    assert "aten._foreach_mul_" not in ops.names


def test_a_mask_is_copied_once():
    norms = torch.zeros(3)
    mask = _Mask([True, False, True])
    for _ in range(2):
        with FakeTensorMode():
            assert type(mask.of(torch.zeros(3, device="cuda"))) is FakeTensor
        kept = mask.of(norms)
        assert kept.tolist() == [True, False, True]
        assert mask.of(norms) is kept
    assert mask.of(norms, [True, False, True]) is kept
    assert mask.of(norms, [True, True, False]).tolist() == [True, True, False]


# The two ways in which a fake tensor and a real one could meet.


def real_gradients():
    """On CPU, where what is planned for these includes a tensor."""
    generator = torch.Generator().manual_seed(0)
    params = parameters(MIXED, "cpu")
    for param in params:
        values = torch.randn(param.shape, generator=generator)
        param.grad = values.to(param.grad)
    return params


MIXED = alternating([(64,), (65,), (64,), (64,), (64,), (64,)] * 5, F32, BF16)


def test_real_ones_follow_fake_ones():
    """What was planned for fake gradients is of no use for real ones."""
    for _ in range(2):
        with FakeTensorMode():
            for call in FUNCTIONS:
                of_ours(call, parameters(MIXED), 1.0)
                of_ours(call, parameters(MIXED, "cpu"), 1.0)
        ours, theirs = real_gradients(), real_gradients()
        got = clip.clip_grad_norm_(ours, 1.0)
        assert same_bits(got, torch.nn.utils.clip_grad_norm_(theirs, 1.0))
        assert_same_gradients(ours, theirs)
        clip.clip_grad_value_(ours, 0.01)
        torch.nn.utils.clip_grad_value_(theirs, 0.01)
        assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("call", FUNCTIONS)
def test_fake_ones_follow_real_ones(call):
    """Nor the other way round; and two modes do not meet either."""
    clip._kept.cache_clear()
    with FakeTensorMode():
        fresh = of_ours(call, parameters(MIXED), 1.0).names
    call(clip, real_gradients(), 1.0)
    for _ in range(2):
        with FakeTensorMode():
            assert of_ours(call, parameters(MIXED), 1.0).names == fresh
    assert fresh


def test_a_plan_for_fake_gradients_is_not_kept():
    params = real_gradients()
    clip.clip_grad_norm_(params, 1.0)
    kept = clip._gradients(params)
    plan = kept._plan
    assert plan is not None
    with FakeTensorMode():
        of_ours(by_norm, parameters(MIXED), 1.0)
    assert clip._gradients(params) is kept
    assert kept._plan is plan


@pytest.mark.parametrize("call", [by_norm, by_value, norm_only])
def test_fake_gradients_on_the_cpu_are_left_to_torch(fake, call):
    """Clipping on CPU reads numbers, which these do not have."""
    params = parameters(CASES["four"], "cpu")
    assert all(type(param.grad) is FakeTensor for param in params)
    result = call(clip, params, 1.0)
    assert result is None or result.device.type == "cpu"


class Other(FakeTensor):
    """Of it, nothing is known but that it is of another class."""


def test_a_subclass_on_a_gpu_is_left_to_torch(fake):
    params = parameters(CASES["four"])
    expected = of_torch(by_norm, params, 1.0).names
    for param in params:
        param.grad.__class__ = Other
    found = of_ours(by_norm, params, 1.0).names
    assert "aten._foreach_norm" in expected
    assert "aten._foreach_norm" not in found


# make_fx records what is called on tensors that stand for others.


def clipped(module, call):
    def function(*grads):
        params = []
        for grad in grads:
            params.append(torch.nn.Parameter(torch.zeros_like(grad)))
            params[-1].grad = grad.clone()
        total_norm = call(module, params, 0.5)
        found = [param.grad for param in params]
        return found if total_norm is None else [total_norm, *found]

    return function


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("call", FUNCTIONS)
@pytest.mark.parametrize("count", [1, 6])
def test_make_fx(call, mode, count):
    """What it records clips other gradients than those it was shown."""

    def gradients(factor):
        generator = torch.Generator().manual_seed(count)
        return [
            factor * torch.randn(64, generator=generator) for _ in range(count)
        ]

    graph = make_fx(clipped(clip, call), tracing_mode=mode)(*gradients(1.0))
    for factor in (1e-3, 1.0, 1e3):
        got = graph(*gradients(factor))
        expected = clipped(torch.nn.utils, call)(*gradients(factor))
        assert all(map(same_bits, got, expected))
        assert len(got) == len(expected)


@pytest.mark.parametrize("call", FUNCTIONS)
def test_make_fx_of_gradients_on_a_gpu(fake, call):
    grads = [param.grad for param in parameters(CASES["four"])]
    ours, theirs = (
        make_fx(clipped(module, call))(*grads).code
        for module in (clip, torch.nn.utils)
    )
    assert ours == theirs


# The model itself.


def constants(name):
    """A row of numbers in torch's header, for CUDA 13 and for others."""
    header = Path(torch.__file__).parent.joinpath(
        "include/ATen/native/cuda/MultiTensorApply.cuh"
    )
    rows = re.findall(rf"{name}\[5\] =\s*{{(\d+)", header.read_text())
    return [int(first) for first in rows]


def test_limits_are_those_of_torch_s_header():
    tensors = constants("depth_to_max_tensors")
    blocks = constants("depth_to_max_blocks")
    known = [(limits.tensors, limits.blocks) for limits in (CUDA_13, CUDA_12)]
    assert (
        list(zip(tensors, blocks, strict=True))[-2:] == known[-len(tensors) :]
    )


@pytest.mark.parametrize(
    ("numels", "launches"),
    [
        ([], 0),
        ([0, 0], 0),
        ([1] * 3, 1),
        ([1] * 4, 2),
        ([0, 1, 0, 1, 1], 1),
        ([65536 * 5], 1),
        ([65536 * 5 + 1], 2),
        # Two whole launches, and what is left of the second tensor.
        ([65536 * 4, 65536 * 7], 3),
        # The first launch ends within a tensor, which counts in the next.
        ([65536 * 6, 1, 1, 1], 3),
    ],
)
def test_multi_tensor_apply(numels, launches):
    """Three tensors and five blocks of 65,536 elements a launch."""
    assert multi_tensor_apply(numels, Limits(3, 5, 400)) == launches


# Some methods ask for a driver before any op is dispatched.
aten = torch.ops.aten


@pytest.mark.parametrize(
    "function",
    [
        lambda v: v.select(0, 0).item(),
        lambda v: bool(v.select(0, 0)),
        lambda v: v.tolist(),
        lambda v: aten.nonzero(v),
        lambda v: aten.masked_select(v, v > 0),
        lambda v: aten.index(v, [v > 0]),
        lambda v: aten.index(v, [torch.tensor([1, 0])]),
        lambda v: v.cpu(),
        lambda v: torch.tensor([1.0, 2.0], device="cuda"),
        lambda v: aten.copy_(v, torch.zeros(4)),
    ],
)
def test_waits_are_noticed(fake, function):
    vector = torch.zeros(4, device="cuda")
    # What a fake tensor does not have, nobody can wait for.
    with recorded() as ops, suppress(Exception):
        function(vector)
    assert len(ops.waits) == 1


def test_other_ops_do_not_wait(fake):
    vector = torch.zeros(4, device="cuda")
    with recorded() as ops:
        vector.to(BF16).mul_(vector).clamp_(max=1)
        torch.zeros(4).to(vector.device, non_blocking=True)
        aten.index(vector, [vector.new_zeros(2, dtype=torch.int64)])
    assert ops.waits == []
    assert len(ops.ops) == 6


def test_an_unknown_op_is_an_error(fake):
    vector = torch.zeros(4, device="cuda")
    with recorded(), pytest.raises(NotImplementedError, match=r"aten\.sin"):
        vector.sin()
