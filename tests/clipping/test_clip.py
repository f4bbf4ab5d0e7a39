"""clip_grad_norm_ and clip_grad_value_ against torch's own, bit for bit."""

import math
import random
import re
import warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import robo_orchard_fasthooks as ours
from helpers.gradients import (
    CLIP_VALUES,
    DEVICES,
    LAYOUTS,
    NORM_TYPES,
    REAL,
    SHAPES,
    Bound,
    Case,
    Run,
    assert_clips_like,
    assert_same_gradients,
    assert_treats_sparse_like,
    attempt,
    bounds,
    build,
    cases,
    has_gradients,
    parameter,
    random_lists,
    same_bits,
    without_races,
)
from robo_orchard_fasthooks.clip import clip_grad_norm_, clip_grad_value_

pytestmark = pytest.mark.filterwarnings(
    # torch's own norm of complex gradients, once in a process.
    "ignore:Casting complex values to real"
)
TORCH = SimpleNamespace(
    **{name: getattr(torch.nn.utils, name) for name in ours.clip.__all__}
)
BOTH = pytest.mark.parametrize(
    ("function", "reference"),
    [
        (clip_grad_norm_, torch.nn.utils.clip_grad_norm_),
        (clip_grad_value_, torch.nn.utils.clip_grad_value_),
    ],
    ids=["norm", "value"],
)
packs = st.sampled_from([list, tuple, iter])
foreachs = st.sampled_from([None, None, True, False])
norm_like_torch = partial(
    assert_clips_like, clip_grad_norm_, torch.nn.utils.clip_grad_norm_
)
value_like_torch = partial(
    assert_clips_like, clip_grad_value_, torch.nn.utils.clip_grad_value_
)


@contextmanager
def with_threads(count):
    """torch splits large tensors among its threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(params=[1, 2])
def threads(request):
    with with_threads(request.param):
        yield


def repeated(count, shape, dtype=torch.float32, **kwargs):
    return Case((Run(count, shape, dtype, **kwargs),))


def list_of_two_dtypes():
    runs = Run(5, (64,), torch.float32), Run(5, (64,), torch.bfloat16)
    return build(Case(runs, mixed=True))


@pytest.mark.parametrize("device", DEVICES)
@given(
    threads=st.integers(1, 2),
    case=cases((*REAL, torch.complex64)),
    bound=bounds,
    norm_type=st.just(2.0) | st.sampled_from(NORM_TYPES),
    error_if_nonfinite=st.booleans(),
    foreach=foreachs,
    pack=packs,
)
@random_lists
def test_norm(
    device,
    threads,
    case,
    bound,
    norm_type,
    error_if_nonfinite,
    foreach,
    pack,
):
    if device == "cuda":
        case = without_races(case)
    with with_threads(threads):
        norm_like_torch(
            lambda: build(case, device),
            bound.max_norm(build(case, device), norm_type),
            norm_type,
            error_if_nonfinite,
            foreach,
            pack=pack,
        )


@pytest.mark.parametrize("device", DEVICES)
@given(
    threads=st.integers(1, 2),
    case=cases().filter(has_gradients),
    clip_value=st.sampled_from(CLIP_VALUES),
    foreach=foreachs,
    pack=packs,
)
@random_lists
def test_value(device, threads, case, clip_value, foreach, pack):
    if device == "cuda":
        case = without_races(case)
    with with_threads(threads):
        value_like_torch(
            lambda: build(case, device), clip_value, foreach=foreach, pack=pack
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [*REAL, torch.complex64], ids=str)
@pytest.mark.parametrize("ulps", range(-2, 3))
def test_where_clipping_begins(ulps, dtype, device):
    """Scaling by the largest number below 1 changes bits; by 1 it does not."""
    case = repeated(20, (64,), dtype)
    for norm_type in NORM_TYPES:
        max_norm = Bound(ulps=ulps).max_norm(build(case, device), norm_type)
        norm_like_torch(lambda: build(case, device), max_norm, norm_type)


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize(
    "runs",
    [
        # Around the sizes at which gradients are put together, and not.
        [(count, 4096) for count in (1, 2, 7, 8, 9, 17)],
        [(count, 2048) for count in (3, 4, 15, 16, 17)],
        [(4, 2049), (16, 2049), (2, 4097), (8, 4097), (700, 0), (3000, 1)],
        [(count, 64) for count in (510, 511, 512, 513, 1100)],
        [(count, 1024) for count in (31, 32, 33, 65)],
    ],
    ids=str,
)
def test_many_of_one_shape(threads, runs, dtype):
    for count, numel in runs:
        case = repeated(count, (numel,), dtype)
        max_norm = Bound(0.5).max_norm(build(case), 2.0)
        norm_like_torch(lambda case=case: build(case), max_norm)


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("numel", [1, 7, 4097, 12287, 12288, 70001])
def test_values_of_every_size(numel, dtype):
    kinds = ("all special", "zero", "negative zero", "wide", "subnormal")
    case = Case(tuple(Run(1, (numel,), dtype, fill=fill) for fill in kinds))
    for clip_value in CLIP_VALUES:
        value_like_torch(lambda: build(case), clip_value)


def test_every_position_counts(threads):
    """A NaN in any one gradient reaches the norm, and all of them."""
    for at in range(0, 600, 23):
        params = build(repeated(600, (64,)))
        params[at].grad[at % 64] = math.nan
        assert clip_grad_norm_(params, 1.0).isnan()
        assert params[0].grad.isnan().all() and params[-1].grad.isnan().all()


SQUARE = Run(12, (8, 8), torch.float32)
HALF = replace(SQUARE, count=6)
TWELVE = [
    *((replace(SQUARE, layout=layout),) for layout in LAYOUTS),
    *((replace(SQUARE, dtype=dtype),) for dtype in (*REAL, torch.complex64)),
    *((replace(SQUARE, shape=shape),) for shape in (*SHAPES, (4097,))),
    *((HALF, replace(HALF, dtype=dtype)) for dtype in REAL),
    *((replace(HALF, dtype=dtype), HALF) for dtype in REAL),
    *((HALF, replace(HALF, layout=layout)) for layout in LAYOUTS),
]


@pytest.mark.parametrize("norm_type", [2.0, math.inf])
def test_what_was_planned_for_other_gradients(norm_type):
    """Plans are kept by the length of the list: twelve follow another."""
    choose = random.Random(0)
    for seed, runs in enumerate(choose.choices(TWELVE, k=400)):
        case = Case(runs, seed, mixed=choose.random() < 0.5)
        norm_like_torch(partial(build, case), 0.5, norm_type)


class TestWhatIsPassed:
    @BOTH
    def test_one_tensor(self, function, reference):
        ours, theirs = (build(repeated(1, (64,))) for _ in range(2))
        got, expected = function(ours[0], 0.5), reference(theirs[0], 0.5)
        assert expected is None or same_bits(got, expected)
        assert_same_gradients(ours, theirs)

    @BOTH
    def test_no_parameter_has_a_gradient(self, function, reference):
        for params in ([], [torch.nn.Parameter(torch.zeros(2))]):
            got = function(params, 1.0)
            if function is clip_grad_norm_:
                assert same_bits(got, torch.tensor(0.0))
            else:
                assert got is None

    def test_the_norm_of_nothing_is_of_the_defaults(self):
        torch.set_default_dtype(torch.float64)
        try:
            with torch.device("meta"):
                got = clip_grad_norm_([], 1.0)
        finally:
            torch.set_default_dtype(torch.float32)
        assert (got.dtype, got.device.type) == (torch.float64, "meta")

    def test_an_empty_generator(self):
        heard = []
        for clip in (clip_grad_norm_, torch.nn.utils.clip_grad_norm_):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                clip((param for param in ()), 1.0)
            heard += [(each.category, str(each.message)) for each in caught]
            assert caught[0].filename == __file__  # It points at the caller.
        assert heard[0] == heard[1]

    @BOTH
    def test_anything_that_has_a_gradient(self, function, reference):
        """Frozen ones too: torch does not look at requires_grad."""

        def make():
            params = build(repeated(4, (64,)))
            params[1].requires_grad_(False)
            params[2] = SimpleNamespace(grad=params[2].grad)
            return params

        assert_clips_like(function, reference, make, 0.5)

    @pytest.mark.parametrize(
        "args",
        [
            ("1",),
            (True,),
            (torch.tensor(0.5),),
            (0.5, torch.tensor(3.0)),
            (0.5, "3"),
            # Refused by both.
            ("some",),
            (None,),
            (0.5, None),
            (1 + 1j,),
        ],
        ids=repr,
    )
    def test_what_stands_for_a_number(self, args):
        norm_like_torch(list_of_two_dtypes, *args)
        if len(args) == 1:
            value_like_torch(list_of_two_dtypes, *args)


class Doubled(torch.Tensor):
    """A subclass whose norms are twice as large and whose limits differ."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        made = super().__torch_function__(func, types, args, kwargs or {})
        if func is torch.linalg.vector_norm:
            return made * 2
        if func in (torch.Tensor.mul_, torch.Tensor.clamp_):
            return made.add_(1)
        return made


def with_subclass(cls, places=range(10)):
    params = list_of_two_dtypes()
    for index in places:
        grad = params[index].grad
        params[index].grad = (
            grad.as_subclass(cls) if cls is Doubled else cls(grad)
        )
    return params


class TestGradientsOfOtherKinds:
    @BOTH
    @pytest.mark.parametrize("foreach", [None, False])
    @pytest.mark.parametrize(
        "cls", [Doubled, torch.nn.Parameter, torch.nn.Buffer]
    )
    @pytest.mark.parametrize("places", [range(10), [9]], ids=str)
    def test_subclasses(self, function, reference, cls, places, foreach):
        make = partial(with_subclass, cls, places)
        for bound in (0.5, 1e9):
            assert_clips_like(
                function, reference, make, bound, foreach=foreach
            )

    @BOTH
    @pytest.mark.parametrize("bound", [0.01, 1e9])
    def test_of_the_second_order(self, function, reference, bound):
        def make():
            params = build(repeated(5, (64,)))
            for param in params:
                param.data = torch.linspace(-1, 1, 64)
            loss = sum((param**3).sum() for param in params)
            grads = torch.autograd.grad(loss, params, create_graph=True)
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
            lists.append((params, [(grad, grad.grad_fn) for grad in grads]))
            return params

        lists = []
        assert_clips_like(function, reference, make, bound)
        second = []
        for params, grads in lists:
            assert all(grad.grad_fn is node for grad, node in grads)
            total = sum(grad.sum() for grad, _ in grads)
            second.append(torch.autograd.grad(total, params))
        assert all(map(same_bits, *second))

    @BOTH
    @pytest.mark.parametrize("enabled", [True, False])
    @pytest.mark.parametrize(
        "mode",
        [torch.set_grad_enabled, torch.inference_mode],
        ids=["grad", "inference"],
    )
    def test_under_autograd_modes(self, function, reference, mode, enabled):
        case = repeated(5, (64,), layout="requires grad")
        with mode(enabled):
            before = torch.is_grad_enabled()
            got, _ = assert_clips_like(
                function, reference, lambda: build(case), 0.5
            )
            assert torch.is_grad_enabled() == before
            assert got is None or not got.requires_grad

    @pytest.mark.filterwarnings("ignore:.*jit.trace")
    def test_torch_jit_trace(self):
        """The trace holds for other values."""

        def traced(module):
            def clipped(*grads):
                params = build(repeated(2, (3,)))
                for param, grad in zip(params, grads, strict=True):
                    param.grad = grad.clone()
                module.clip_grad_norm_(params, 0.5)
                return params[0].grad, module.get_total_norm(grads)

            example = torch.ones(3), torch.ones(3)
            return torch.jit.trace(clipped, example)

        others = torch.full((3,), 9.0), torch.full((3,), -7.0)
        found, expected = (
            traced(module)(*others) for module in (ours, torch.nn.utils)
        )
        assert all(map(same_bits, found, expected))

    @pytest.mark.parametrize("default", ["meta", "cpu"])
    def test_torch_s_default_device(self, default):
        """Shapes of which some are stacked, in another order."""
        tensors = [torch.randn(4000), *(torch.randn(3) for _ in range(4))]
        with torch.device(default):
            found = ours.get_total_norm(tensors)
        assert same_bits(found, torch.nn.utils.get_total_norm(tensors))

    @pytest.mark.parametrize(
        ("lazy", "dtype", "bound"),
        [
            (torch.conj, torch.complex64, 0.5),
            (torch.conj, torch.complex64, math.inf),
            (torch._neg_view, torch.float32, 0.5),  # torch refuses it.
        ],
    )
    def test_lazily_negated_or_conjugated(self, lazy, dtype, bound):
        def make():
            params = build(repeated(5, (64,), dtype))
            for param in params:
                param.grad = lazy(param.grad)
            return params

        norm_like_torch(make, bound)


class TestInTorchsPlace:
    """People put ours in the place of torch's, which must not call them."""

    @pytest.fixture(autouse=True)
    def in_place(self, monkeypatch):
        for name in ours.clip.__all__:
            monkeypatch.setattr(torch.nn.utils, name, getattr(ours, name))

    @pytest.mark.parametrize("call", ["norm", "value", "halves"])
    @pytest.mark.parametrize(
        ("make", "foreach"),
        [
            (list_of_two_dtypes, False),
            (partial(with_subclass, Doubled), None),
            (partial(with_subclass, torch.nn.Parameter, [9]), None),
            (partial(build, repeated(3, (4,)), "meta"), None),
        ],
        ids=["foreach", "subclass", "one subclass", "meta"],
    )
    def test_left_to_torch(self, call, make, foreach):
        def clip(module, params):
            if call == "norm":
                return module.clip_grad_norm_(params, 0.5, foreach=foreach)
            if call == "value":
                return module.clip_grad_value_(params, 0.5, foreach=foreach)
            grads = [param.grad for param in params]
            total = module.get_total_norm(grads, foreach=foreach)
            module.clip_grads_with_norm_(params, 0.5, total, foreach)
            return total

        params, theirs = make(), make()
        got, expected = clip(ours, params), clip(TORCH, theirs)
        if params[0].grad.device.type == "meta":
            return
        assert expected is None or same_bits(got, expected)
        assert_same_gradients(params, theirs)

    @pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_"])
    def test_compiled_into_one_graph(self, name):
        """Which has no place for plans, nor for numbers that are read."""
        lists = build(repeated(5, (8,))), build(repeated(5, (8,)))
        compiled = torch.compile(
            getattr(ours, name), backend="eager", fullgraph=True
        )
        compiled(lists[0], 0.1)
        getattr(TORCH, name)(lists[1], 0.1)
        assert_same_gradients(*lists)


class TestRefused:
    """What cannot be clipped is named, and nothing has changed."""

    def refused(self, make, function, error, match, *args, **kwargs):
        params = make()
        with pytest.raises(error, match=match):
            function(params, *args, **kwargs)
        assert_same_gradients(params, make())

    @pytest.mark.parametrize(
        ("dtype", "value", "match"),
        [
            (torch.float16, 1e5, "float16, for which 100000.0 is too large"),
            (torch.float32, -1e300, "float32, for which -1e\\+300 is too"),
        ],
    )
    def test_dtypes_by_value(self, dtype, value, match):
        """torch finds out after it has clamped others."""
        params = [torch.nn.Parameter(torch.zeros(4).double())]
        params[0].grad = torch.full((4,), 1e306, dtype=torch.float64)
        other = torch.ones(4).to(dtype)
        params.append(torch.nn.Parameter(other, requires_grad=False))
        params[1].grad = other.clone()
        with pytest.raises(
            NotImplementedError,
            match=f"^the gradient of parameter 1 .*{match}",
        ):
            clip_grad_value_(params, value)
        assert params[0].grad.tolist() == [1e306] * 4
        if dtype == torch.float16:
            clip_grad_value_(params, math.inf)

    def test_complex_values(self):
        def make():
            params = list_of_two_dtypes()
            params[1].grad = None
            params[3] = parameter(torch.ones(3, dtype=torch.complex64))
            return params

        match = r"parameter 3\b"
        self.refused(make, clip_grad_value_, NotImplementedError, match, 0.5)
        with pytest.raises(RuntimeError):
            torch.nn.utils.clip_grad_value_(make(), 0.5)

    @BOTH
    def test_inference_tensors(self, function, reference):
        """torch scales others and raises then; the error names one."""
        params = build(repeated(3, (4,)))
        with torch.inference_mode():
            params[1].grad = torch.ones(4)
        with pytest.raises(RuntimeError, match="inference"):
            reference(params, 0.5)
        with pytest.raises(
            NotImplementedError, match="^the gradient of parameter 1 was made"
        ):
            function(params, 0.5)

    @BOTH
    def test_expanded(self, function, reference):
        """torch refuses to write to them, having written to others."""

        def make():
            params = build(repeated(5, (8,)))
            params[4].grad = torch.ones(()).expand(8)
            return params

        match = "parameter 4 has elements that share memory"
        self.refused(make, function, NotImplementedError, match, 0.5)
        with pytest.raises(RuntimeError):
            reference(make(), 0.5)
        # Where there is nothing to scale, there is nothing to refuse.
        if function is clip_grad_norm_:
            function(make(), 1e9)

    @BOTH
    @pytest.mark.parametrize("limit", [0.5, 1e9])
    @pytest.mark.parametrize("device", DEVICES)
    def test_one_that_becomes_sparse(self, function, reference, limit, device):
        """What is kept of dense ones does not let it pass for one."""
        dense = partial(build, repeated(7, (128, 128)), device)

        def with_sparse():
            params = dense()
            params[4].grad = params[4].grad.to_sparse()
            return params

        function(dense(), limit)
        assert_treats_sparse_like(function, reference, with_sparse, limit, 4)

    @BOTH
    def test_foreach_where_there_is_none(self, function, reference):
        errors = [
            attempt(clip, build(repeated(3, (4,)), "meta"), 0.5, foreach=True)
            for clip in (function, reference)
        ]
        assert str(errors[0][1]) == str(errors[1][1])
        assert type(errors[0][1]) is type(errors[1][1]) is RuntimeError

    @pytest.mark.parametrize("value", [math.nan, -math.inf])
    @pytest.mark.parametrize("first", [0, 6, 499])
    @pytest.mark.parametrize("device", DEVICES)
    def test_not_finite(self, first, value, device):
        def make():
            params = build(repeated(500, (8,)), device)
            params[1].grad = None
            for at in {first, 9, 499}:
                if at >= first:
                    params[at].grad[2] = value
            return params

        match = rf"parameter {first}\b"
        args = RuntimeError, match, 0.5, 2.0, True
        self.refused(make, clip_grad_norm_, *args)

    def test_only_the_total_is_not_finite(self):
        limit = torch.finfo(torch.float32).max
        params = [parameter(torch.tensor([limit])) for _ in range(3)]
        with pytest.raises(RuntimeError, match="total") as error:
            clip_grad_norm_(params, 0.5, 1.0, True)
        assert not re.search(r"parameter \d", str(error.value))
        assert all(param.grad == limit for param in params)
