"""clip_grad_norm_ and clip_grad_value_ against torch's own, bit for bit."""

import math
import re
import warnings
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import robo_orchard_fasthooks as ours
from helpers.gradients import (
    BOUNDS,
    CLIP_VALUES,
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
    bounds,
    build,
    cases,
    give,
    has_gradients,
    parameter,
    rounds,
    same_bits,
    storages,
)
from robo_orchard_fasthooks._clipping.algorithm import (
    clip_by_norm,
    clip_by_value,
)
from robo_orchard_fasthooks._clipping.local import LocalGradients
from robo_orchard_fasthooks.clip import (
    clip_grad_norm_,
    clip_grad_value_,
)

thorough = settings(
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
pytestmark = pytest.mark.filterwarnings(
    # torch's own norm of complex gradients, once in a process.
    "ignore:Casting complex values to real"
)


def generator(params):
    yield from params


BOTH = pytest.mark.parametrize(
    ("function", "reference"),
    [
        (clip_grad_norm_, torch.nn.utils.clip_grad_norm_),
        (clip_grad_value_, torch.nn.utils.clip_grad_value_),
    ],
    ids=["norm", "value"],
)


packs = st.sampled_from(
    [list, tuple, iter, lambda params: (p for p in params)]
)
foreachs = st.sampled_from([None, None, True, False])


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


def norm_like_torch(make, max_norm, *args, **kwargs):
    return assert_clips_like(
        clip_grad_norm_,
        torch.nn.utils.clip_grad_norm_,
        make,
        max_norm,
        *args,
        **kwargs,
    )


def value_like_torch(make, clip_value, **kwargs):
    return assert_clips_like(
        clip_grad_value_,
        torch.nn.utils.clip_grad_value_,
        make,
        clip_value,
        **kwargs,
    )


def repeated(count, shape, dtype=torch.float32, **kwargs):
    return Case((Run(count, shape, dtype, **kwargs),))


@given(
    threads=st.integers(1, 2),
    case=cases((*REAL, torch.complex64)),
    bound=bounds,
    norm_type=st.just(2.0) | st.sampled_from(NORM_TYPES),
    error_if_nonfinite=st.booleans(),
    foreach=foreachs,
    pack=packs,
)
@settings(thorough, max_examples=1500)
def test_norm(
    threads, case, bound, norm_type, error_if_nonfinite, foreach, pack
):
    with with_threads(threads):
        norm_like_torch(
            lambda: build(case),
            bound.max_norm(build(case), norm_type),
            norm_type,
            error_if_nonfinite,
            foreach,
            pack=pack,
        )


@given(
    threads=st.integers(1, 2),
    case=cases().filter(has_gradients),
    clip_value=st.sampled_from(CLIP_VALUES),
    foreach=foreachs,
    pack=packs,
)
@settings(thorough, max_examples=500)
def test_value(threads, case, clip_value, foreach, pack):
    with with_threads(threads):
        value_like_torch(
            lambda: build(case), clip_value, foreach=foreach, pack=pack
        )


@pytest.mark.parametrize("dtype", [*REAL, torch.complex64], ids=str)
@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("ulps", range(-3, 4))
def test_where_clipping_begins(ulps, norm_type, dtype):
    """Scaling by the largest number below 1 changes bits; by 1 it does not."""
    case = repeated(20, (64,), dtype)
    max_norm = Bound(ulps=ulps).max_norm(build(case), norm_type)
    norm_like_torch(lambda: build(case), max_norm, norm_type)


@pytest.mark.parametrize("fill", ["normal", "small", math.nan, math.inf, 0.0])
@pytest.mark.parametrize("max_norm", BOUNDS)
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_bounds(max_norm, norm_type, fill):
    case = repeated(9, (8, 8), fill=fill)
    norm_like_torch(lambda: build(case), max_norm, norm_type)


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize(
    ("count", "numel"),
    [
        # Around the sizes at which gradients are put together, and not.
        *((count, 4096) for count in (1, 2, 7, 8, 9, 17)),
        *((count, 2048) for count in (3, 4, 15, 16, 17)),
        *((count, 2049) for count in (4, 16)),
        *((count, 4097) for count in (2, 8)),
        *((count, 64) for count in (510, 511, 512, 513, 1024, 1100)),
        *((count, 1024) for count in (31, 32, 33, 65)),
        *((count, 1) for count in (2, 3000)),
        (700, 0),
    ],
)
def test_many_of_one_shape(threads, count, numel, dtype):
    case = repeated(count, (numel,), dtype)
    for factor in (0.5, 2.0):
        max_norm = Bound(factor).max_norm(build(case), 2.0)
        norm_like_torch(lambda: build(case), max_norm)


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("clip_value", CLIP_VALUES)
@pytest.mark.parametrize("numel", [1, 7, 4097, 12287, 12288, 70001])
def test_values_of_every_size(threads, numel, clip_value, dtype):
    kinds = ("all special", "zero", "negative zero", "wide", "subnormal")
    case = Case(tuple(Run(2, (numel,), dtype, fill=fill) for fill in kinds))
    value_like_torch(lambda: build(case), clip_value)


def test_every_position_counts(threads):
    """A NaN in any one gradient reaches the norm, and all of them."""
    for at in range(0, 600, 7):
        params = build(repeated(600, (64,)))
        params[at].grad[at % 64] = math.nan
        assert clip_grad_norm_(params, 1.0).isnan()
        assert params[0].grad.isnan().all() and params[-1].grad.isnan().all()


def total_norm_of(*args):
    return clip_by_norm(*args).total_norm


@pytest.mark.parametrize("kept", [False, True])
@BOTH
def test_rounds_on_the_same_parameters(function, reference, kept):
    """Whatever is kept between calls, the gradients of this one count."""

    @given(rounds(), st.sampled_from(NORM_TYPES), st.booleans())
    @settings(thorough, max_examples=100)
    def check(cases, norm_type, swap):
        args = (0.5, norm_type) if function is clip_grad_norm_ else (0.5,)
        clip = function
        if kept:
            plain = total_norm_of if args[1:] else clip_by_value
            clip = partial(plain, LocalGradients())
        ours, theirs = [], []
        for case in cases:
            pools = iter([ours, theirs])

            def make(case=case, pools=pools):
                return install(case, next(pools, []), swap)

            assert_clips_like(clip, reference, make, *args)

    check()


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
@pytest.mark.parametrize("mixed", [False, True])
def test_what_was_planned_for_other_gradients(mixed, norm_type):
    """Each list of twelve after each other one."""
    for before, after in permutations(TWELVE, 2):
        stored = LocalGradients()
        first, second = Case(before), Case(after, seed=3, mixed=mixed)
        with suppress(RuntimeError):  # Of empty gradients.
            clip_by_norm(stored, build(first), 0.5, norm_type)
        assert_clips_like(
            partial(total_norm_of, stored),
            torch.nn.utils.clip_grad_norm_,
            partial(build, second),
            0.5,
            norm_type,
        )


def install(case, pool, swap):
    """Gives the parameters of the last round the gradients of this one."""
    params = build(replace(case, twice=0))
    for index, param in enumerate(params):
        if index == len(pool):
            pool.append(torch.nn.Parameter(torch.zeros(0)))
        old, grad = pool[index], param.grad
        if swap or (old.shape, old.dtype) != (param.shape, param.dtype):
            old.grad = None
            old.data = param.data
        give(old, grad)
    return [*pool[: len(params)], *pool[: min(case.twice, len(params))]]


class TestWhatIsPassed:
    @BOTH
    def test_one_tensor(self, function, reference):
        results = []
        for clip in (function, reference):
            params = build(repeated(1, (64,)))
            results.append((clip(params[0], 0.5), params))
        (got, ours), (expected, theirs) = results
        assert expected is None or same_bits(got, expected)
        assert_same_gradients(ours, theirs)
        assert not same_bits(ours[0].grad, build(repeated(1, (64,)))[0].grad)

    @BOTH
    def test_no_parameter_has_a_gradient(self, function, reference):
        for params in ([], [torch.nn.Parameter(torch.zeros(2))]):
            got = function(params, 1.0)
            if reference is torch.nn.utils.clip_grad_norm_:
                assert same_bits(got, torch.tensor(0.0))
            else:
                assert got is None

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
    def test_the_norm_of_nothing_is_of_the_defaults(self, dtype):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device("meta"):
                got = clip_grad_norm_([], 1.0)
        finally:
            torch.set_default_dtype(before)
        assert (got.dtype, got.device.type) == (dtype, "meta")

    @BOTH
    def test_an_empty_generator(self, function, reference):
        heard = []
        for clip in (function, reference):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                attempted(clip, (param for param in ()), 1.0)
            heard.append(
                [(each.category, str(each.message)) for each in caught]
            )
            # It points at the caller.
            assert {each.filename for each in caught} <= {__file__}
        assert heard[0] == heard[1]

    @BOTH
    def test_anything_that_has_a_gradient(self, function, reference):
        """Frozen ones too: torch does not ask for requires_grad."""

        def make():
            params = build(repeated(4, (64,)))
            params[1].requires_grad_(False)
            params[2] = SimpleNamespace(grad=params[2].grad)
            return params

        assert_clips_like(function, reference, make, 0.5)

    @BOTH
    def test_keywords(self, function, reference):
        ours, theirs = build(repeated(4, (64,))), build(repeated(4, (64,)))
        name = "max_norm" if function is clip_grad_norm_ else "clip_value"
        for clip, params in ((function, ours), (reference, theirs)):
            clip(parameters=params, foreach=None, **{name: 0.5})
        assert_same_gradients(ours, theirs)

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
            (0.5, "some"),
            (1 + 1j,),
        ],
        ids=repr,
    )
    def test_what_stands_for_a_number(self, args):
        make = list_of_two_dtypes
        norm_like_torch(make, *args)
        if len(args) == 1:
            value_like_torch(make, *args)

    @BOTH
    @pytest.mark.parametrize(
        "parameters", [None, 3, [None], ["some"], [1.5]], ids=repr
    )
    def test_no_parameters_at_all(self, function, reference, parameters):
        with pytest.raises(Exception) as expected:
            reference(parameters, 1.0)
        with pytest.raises(expected.type):
            function(parameters, 1.0)


def attempted(function, *args):
    """torch's own raises for value clipping of nothing."""
    try:
        function(*args)
    except RuntimeError:
        pass


def list_of_two_dtypes():
    return build(
        Case(
            (
                Run(5, (64,), torch.float32),
                Run(5, (64,), torch.bfloat16),
            ),
            mixed=True,
        )
    )


class Plain(torch.Tensor):
    """A subclass that changes nothing."""


class Doubled(torch.Tensor):
    """A subclass whose norms are twice as large and whose limits half."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        made = super().__torch_function__(func, types, args, kwargs or {})
        if func is torch.linalg.vector_norm:
            return made * 2
        if func in (torch.Tensor.mul_, torch.Tensor.clamp_):
            return made.add_(1)
        return made


class TestGradientsOfOtherClasses:
    @BOTH
    @pytest.mark.parametrize("foreach", [None, True, False])
    @pytest.mark.parametrize(
        "cls", [Plain, Doubled, torch.nn.Parameter, torch.nn.Buffer]
    )
    @pytest.mark.parametrize("places", [range(10), [3], [9]], ids=str)
    @pytest.mark.parametrize("bound", [0.5, 1e9])
    def test_subclasses(
        self, function, reference, cls, places, bound, foreach
    ):
        def make():
            params = list_of_two_dtypes()
            for index in places:
                grad = params[index].grad
                params[index].grad = (
                    grad.as_subclass(cls)
                    if cls in (Plain, Doubled)
                    else cls(grad)
                )
            return params

        assert_clips_like(function, reference, make, bound, foreach=foreach)

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
            made.append([(grad, grad.grad_fn) for grad in grads])
            lists.append(params)
            return params

        made, lists = [], []
        assert_clips_like(function, reference, make, bound)
        second = []
        for grads, params in zip(made, lists, strict=True):
            assert all(grad.grad_fn is node for grad, node in grads)
            total = sum(grad.sum() for grad, _ in grads)
            second.append(torch.autograd.grad(total, params))
        for got, expected in zip(*second, strict=True):
            assert same_bits(got, expected)

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
    @pytest.mark.parametrize("whole", [True, False])
    def test_torch_jit_trace(self, whole):
        """The trace holds for other values."""

        def traced(module):
            def total_norm(*grads):
                return module.get_total_norm(grads)

            def clipped(*grads):
                params = build(repeated(2, (3,)))
                for param, grad in zip(params, grads, strict=True):
                    param.grad = grad.clone()
                module.clip_grad_norm_(params, 0.5)
                return params[0].grad

            example = torch.ones(3), torch.ones(3)
            return torch.jit.trace(clipped if whole else total_norm, example)

        others = torch.full((3,), 9.0), torch.full((3,), -7.0)
        found, expected = (
            traced(module)(*others) for module in (ours, torch.nn.utils)
        )
        assert same_bits(found, expected)

    @pytest.mark.parametrize("default", ["meta", "cpu"])
    def test_torch_s_default_device(self, default):
        """Shapes of which some are stacked, in another order."""
        tensors = [torch.randn(4000), *(torch.randn(3) for _ in range(4))]
        with torch.device(default):
            found = ours.get_total_norm(tensors)
        assert same_bits(found, torch.nn.utils.get_total_norm(tensors))

    @BOTH
    @pytest.mark.parametrize("bound", [0.5, 1e9])
    def test_meta(self, function, reference, bound):
        for clip in (function, reference):
            params = build(repeated(3, (4,)), "meta")
            got = clip(params, bound)
            if got is not None:
                assert got.device.type == "meta" and got.shape == ()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
    @pytest.mark.parametrize("bound", [0.5, math.inf])
    def test_lazily_negated_or_conjugated(self, dtype, bound):
        """torch refuses to multiply the negated; ours need not when it skips.

        Either way they stay, or become, what their values say.
        """

        def make():
            params = build(repeated(5, (64,), dtype))
            lazy = torch.conj if dtype.is_complex else torch._neg_view
            for param in params:
                param.grad = lazy(param.grad)
            return params

        params = make()
        clip = torch.nn.utils.clip_grad_norm_
        if refusal(clip, make(), bound) is None or bound == 0.5:
            norm_like_torch(make, bound)
        elif refusal(clip_grad_norm_, params, bound) is None:
            assert same_bits(clip_grad_norm_(params, bound), total_of(params))
            assert_same_gradients(params, make())

    @BOTH
    @pytest.mark.parametrize("bound", [0.5, 1e9])
    @pytest.mark.parametrize("foreach", [None, False])
    def test_expanded(self, function, reference, bound, foreach):
        """torch refuses to write to them, having written to others."""

        def make():
            params = build(repeated(5, (8,)))
            params[4].grad = torch.ones(()).expand(8)
            return params

        with pytest.raises(RuntimeError):
            reference(make(), bound, foreach=foreach)
        params = make()
        error = refusal(function, params, bound, foreach=foreach)
        if foreach is None:
            assert_same_gradients(params, make())
        # Where there is nothing to scale, there is nothing to refuse.
        if function is clip_grad_value_ or bound == 0.5:
            assert isinstance(error, RuntimeError)


def total_of(params):
    return torch.nn.utils.get_total_norm([param.grad for param in params])


def refusal(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except RuntimeError as error:
        return error


class TestRefused:
    """What cannot be clipped is named, and nothing has changed."""

    @pytest.mark.parametrize(
        ("dtype", "value", "match"),
        [
            (torch.float16, 1e5, "float16, for which 100000.0 is too large"),
            (torch.float32, 1e300, "float32, for which 1e\\+300 is too large"),
            (torch.float16, -1e5, "float16, for which -100000.0 is too large"),
            (torch.int32, 1.0, "of torch.int32 and cannot be clipped"),
            (torch.bool, 1.0, "of torch.bool and cannot be clipped"),
            (torch.float8_e5m2, 1.0, "of torch.float8_e5m2 and cannot be"),
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

    def test_a_bound_that_is_infinite(self):
        params = [torch.nn.Parameter(torch.zeros(4).half())]
        params[0].grad = torch.full((4,), 3.0).half()
        clip_grad_value_(params, math.inf)
        assert params[0].grad.tolist() == [3.0] * 4

    @BOTH
    @pytest.mark.parametrize("foreach", [None, False])
    @pytest.mark.parametrize("kind", [torch.Tensor, Plain])
    def test_inference_tensors(self, function, reference, foreach, kind):
        """torch scales them and raises then; the error names one."""
        params = build(repeated(3, (4,)))
        with torch.inference_mode():
            params[1].grad = torch.ones(4).as_subclass(kind)
        with pytest.raises(RuntimeError, match="inference"):
            reference(params, 0.5, foreach=foreach)
        with pytest.raises(
            NotImplementedError, match="^the gradient of parameter 1 was made"
        ):
            function(params, 0.5, foreach=foreach)

    def refused(self, make, function, error, match, *args, **kwargs):
        params = make()
        with pytest.raises(error, match=match):
            function(params, *args, **kwargs)
        assert_same_gradients(params, make())

    @staticmethod
    def with_odd_one(odd):
        """Number 3 is the odd one; number 1 has no gradient."""

        def make():
            params = list_of_two_dtypes()
            params[1].grad = None
            params[3] = parameter(odd())
            return params

        return make

    @BOTH
    @pytest.mark.parametrize("foreach", [None, True, False])
    @pytest.mark.parametrize("limit", [0.5, 1e9])
    def test_sparse(self, function, reference, limit, foreach):
        """Where torch refuses: by value, and before torch 2.14 by norm."""
        make = self.with_odd_one(lambda: torch.eye(3).to_sparse())
        assert_treats_sparse_like(
            function, reference, make, limit, 3, foreach=foreach
        )

    @BOTH
    @pytest.mark.parametrize("limit", [0.5, 1e9])
    @pytest.mark.parametrize("shape", [(3, 3), (128, 128)], ids=str)
    def test_one_that_becomes_sparse(self, function, reference, limit, shape):
        """What is kept of dense ones does not let it pass for one."""

        def make():
            return build(repeated(7, shape))

        def with_sparse():
            params = make()
            params[4].grad = torch.eye(shape[0]).to_sparse()
            return params

        function(make(), limit)
        assert_treats_sparse_like(function, reference, with_sparse, limit, 4)

    @BOTH
    def test_sparse_alone(self, function, reference):
        def make():
            return [parameter(torch.eye(3).to_sparse())]

        assert_treats_sparse_like(function, reference, make, 0.5, 0)

    @pytest.mark.parametrize("foreach", [None, True, False])
    def test_complex_values(self, foreach):
        make = self.with_odd_one(lambda: torch.ones(3, dtype=torch.complex64))
        self.refused(
            make,
            clip_grad_value_,
            NotImplementedError,
            r"parameter 3\b",
            0.5,
            foreach=foreach,
        )
        params = make()
        with pytest.raises(RuntimeError):
            torch.nn.utils.clip_grad_value_(params, 0.5, foreach=foreach)

    @BOTH
    def test_foreach_where_there_is_none(self, function, reference):
        messages = []
        for clip in (function, reference):
            params = build(repeated(3, (4,)), "meta")
            with pytest.raises(RuntimeError) as error:
                clip(params, 0.5, foreach=True)
            messages.append(str(error.value))
        assert messages[0] == messages[1]

    @pytest.mark.parametrize("foreach", [None, True, False])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("first", [0, 2, 3, 6, 9, 499])
    def test_not_finite(self, first, value, foreach):
        def make():
            params = list_of_two_dtypes() + build(repeated(490, (8,)))
            params[1].grad = None
            for at in {first, 9, 499}:
                if at >= first:
                    params[at].grad[2] = value
            return params

        self.refused(
            make,
            clip_grad_norm_,
            RuntimeError,
            # The loop is torch's own, which does not say which.
            None if foreach is False else rf"parameter {first}\b",
            0.5,
            error_if_nonfinite=True,
            foreach=foreach,
        )

    @pytest.mark.parametrize("foreach", [None, True, False])
    def test_only_the_total_is_not_finite(self, foreach):
        limit = torch.finfo(torch.float32).max

        def make():
            return [parameter(torch.tensor([limit])) for _ in range(3)]

        params = make()
        # The sum of three such numbers.
        with pytest.raises(RuntimeError) as error:
            clip_grad_norm_(params, 0.5, 1.0, True, foreach)
        assert not re.search(r"parameter \d", str(error.value))
        assert "total" in str(error.value)
        assert_same_gradients(params, make())

    @pytest.mark.parametrize("norm_type", [math.inf, -math.inf, -1.0])
    @pytest.mark.parametrize("count", [1, 5, 600])
    def test_norms_that_nothing_has(self, count, norm_type):
        case = Case(
            (Run(3, (64,), torch.float32), Run(count, (0,), torch.float32))
        )
        _, error = norm_like_torch(lambda: build(case), 0.5, norm_type)
        assert type(error) is RuntimeError


def test_the_generator_makes_one_list_twice():
    """Or a difference of the two copies would pass for one of results."""
    kinds = set()

    @given(cases((*REAL, torch.complex64)))
    @settings(thorough, max_examples=200)
    def check(case):
        first, second = build(case), build(case)
        assert_same_gradients(first, second)
        ours = {each.data_ptr() for each in storages(first) if each.numel()}
        assert ours.isdisjoint(
            each.data_ptr() for each in storages(second) if each.numel()
        )
        kinds.update((run.dtype, run.layout) for run in case.runs)

    check()
    assert len(kinds) > 30


@pytest.mark.parametrize(
    "spoil",
    [
        lambda grad: grad.view(torch.int32)[3].bitwise_xor_(1),
        lambda grad: grad[2].copy_(torch.tensor(0.0)),
        # Between two of its elements.
        lambda grad: torch.as_strided(grad, (1,), (1,), 1).fill_(0),
    ],
)
def test_bits_are_compared(spoil):
    case = repeated(3, (64,), fill="negative zero", layout="strided")

    def clip(params, max_norm):
        norm = torch.nn.utils.clip_grad_norm_(params, max_norm)
        spoil(params[1].grad)
        return norm

    with pytest.raises(AssertionError):
        assert_clips_like(
            clip, torch.nn.utils.clip_grad_norm_, lambda: build(case), 1.0
        )
