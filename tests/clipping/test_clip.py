"""clip_grad_norm_ and clip_grad_value_ against torch's own, bit for bit."""

import inspect
import math
import random
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
    Case,
    Run,
    assert_clips_like,
    assert_same_gradients,
    attempt,
    bounds,
    build,
    cases,
    max_norm_of,
    parameter,
    random_lists,
    same_bits,
    without_races,
)
from robo_orchard_fasthooks._clipping import local
from robo_orchard_fasthooks.clip import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)

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
        (clip_grad_norm_, TORCH.clip_grad_norm_),
        (clip_grad_value_, TORCH.clip_grad_value_),
    ],
    ids=["norm", "value"],
)
ON_DEVICES = pytest.mark.parametrize("device", DEVICES)
KINDS = (*REAL, torch.complex64)
norm_types = st.just(2.0) | st.sampled_from(NORM_TYPES)
packs = st.sampled_from([list, tuple, iter])
foreachs = st.sampled_from([None, None, True, False])
norm_like_torch = partial(
    assert_clips_like, clip_grad_norm_, TORCH.clip_grad_norm_
)
value_like_torch = partial(
    assert_clips_like, clip_grad_value_, TORCH.clip_grad_value_
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


def repeated(count, shape, dtype=torch.float32, **kwargs):
    return Case((Run(count, shape, dtype, **kwargs),))


def list_of_two_dtypes():
    runs = Run(5, (64,), torch.float32), Run(5, (64,), torch.bfloat16)
    return build(Case(runs, mixed=True))


def gradients(params):
    return [param.grad for param in params if param.grad is not None]


@pytest.mark.parametrize("name", ours.clip.__all__)
def test_signatures(name):
    """torch's, and keywords of our own."""
    mine, theirs = (
        [
            (each.name, each.default, each.kind)
            for each in inspect.signature(function).parameters.values()
            if each.kind != each.KEYWORD_ONLY
        ]
        for function in (getattr(ours, name), getattr(TORCH, name))
    )
    assert mine == theirs


@ON_DEVICES
@given(
    threads=st.integers(1, 2),
    case=cases(KINDS),
    bound=bounds,
    norm_type=norm_types,
    error_if_nonfinite=st.booleans(),
    foreach=foreachs,
    pack=packs,
)
@random_lists
def test_norm(device, threads, case, bound, norm_type, pack, **settings):
    if device == "cuda":
        case = without_races(case)
    with with_threads(threads):
        max_norm = max_norm_of(build(case, device), bound, norm_type)
        make = partial(build, case, device)
        norm_like_torch(make, max_norm, norm_type, pack=pack, **settings)


@ON_DEVICES
@given(
    threads=st.integers(1, 2),
    case=cases().filter(lambda case: case.runs),
    clip_value=st.sampled_from(CLIP_VALUES),
    foreach=foreachs,
    pack=packs,
)
@random_lists
def test_value(device, threads, case, clip_value, foreach, pack):
    if device == "cuda":
        case = without_races(case)
    make = partial(build, case, device)
    with with_threads(threads):
        value_like_torch(make, clip_value, foreach=foreach, pack=pack)


@given(
    case=cases(KINDS),
    norm_type=norm_types,
    error_if_nonfinite=st.booleans(),
    foreach=foreachs,
    pack=packs,
)
@random_lists
def test_total_norm(case, pack, **settings):
    tensors = gradients(build(case))
    expected, refusal = attempt(
        TORCH.get_total_norm, pack(tensors), **settings
    )
    found, error = attempt(get_total_norm, pack(tensors), **settings)
    assert type(error) is type(refusal), (error, refusal)
    if error is None:
        assert same_bits(found, expected), (found, expected)
        assert found.grad_fn is None


@given(
    case=cases(KINDS),
    bound=bounds,
    factor=st.sampled_from([0.0, 0.5, 1.0, 2.0, math.inf, math.nan, -1.0]),
    dtype=st.sampled_from(REAL),
    foreach=foreachs,
    pack=packs,
)
@random_lists
def test_scaling(case, bound, factor, dtype, foreach, pack):
    assert_clips_like(
        clip_grads_with_norm_,
        TORCH.clip_grads_with_norm_,
        partial(build, case),
        max_norm_of(build(case), bound),
        torch.tensor(factor, dtype=dtype),
        foreach,
        pack=pack,
    )


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("devices", ["cpu cuda", "cuda cpu"])
def test_a_norm_on_another_device(devices):
    of_norm, of_gradients = devices.split()
    total = torch.tensor(1.0, device=of_norm)
    assert_clips_like(
        clip_grads_with_norm_,
        TORCH.clip_grads_with_norm_,
        partial(build, repeated(9, (8, 8)), of_gradients),
        *(0.5, total),
    )


@ON_DEVICES
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_where_clipping_begins(dtype, device):
    """Scaling by the largest number below 1 changes bits; by 1 it does not."""
    make = partial(build, repeated(20, (64,), dtype), device)
    for ulps in range(-2, 3):
        for norm_type in NORM_TYPES:
            max_norm = max_norm_of(make(), ("ulps", ulps), norm_type)
            norm_like_torch(make, max_norm, norm_type)


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
def test_many_of_one_shape(runs, dtype):
    for count, numel in runs:
        make = partial(build, repeated(count, (numel,), dtype))
        for threads in (1, 2):
            with with_threads(threads):
                norm_like_torch(make, max_norm_of(make(), ("factor", 0.5)))


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("numel", [1, 7, 4097, 12287, 12288])
def test_values_of_every_size(numel, dtype):
    fills = "all special", "zero", "wide", "subnormal"
    case = Case(tuple(Run(1, (numel,), dtype, fill=fill) for fill in fills))
    for clip_value in CLIP_VALUES:
        value_like_torch(partial(build, case), clip_value)


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


@pytest.mark.parametrize(
    ("norm_type", "guards"), [(2.0, True), (math.inf, True), (2.0, False)]
)
def test_what_was_planned_for_other_gradients(norm_type, guards, monkeypatch):
    """Plans are kept by the length of the list: twelve follow another."""
    if not guards:  # As in a torch that does not have these.
        monkeypatch.setattr(local, "_TensorGuards", None)
    choose = random.Random(0)
    for seed, runs in enumerate(choose.choices(TWELVE, k=400)):
        case = Case(runs, seed, mixed=choose.random() < 0.5)
        norm_like_torch(partial(build, case), 0.5, norm_type)


class TestWhatIsPassed:
    @BOTH
    def test_one_tensor(self, function, reference):
        make = partial(build, repeated(1, (64,)))
        assert_clips_like(function, reference, make, 0.5, pack=lambda p: p[0])

    @BOTH
    @pytest.mark.parametrize("params", [[], [parameter(None)]])
    def test_no_gradients(self, function, reference, params):
        got = function(params, 1.0)
        norm = function is clip_grad_norm_
        assert same_bits(got, torch.tensor(0.0)) if norm else got is None

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
        for clip in (clip_grad_norm_, TORCH.clip_grad_norm_):
            with pytest.warns() as caught:
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
            *(("1",), (True,), (torch.tensor(0.5),)),
            *((0.5, torch.tensor(3.0)), (0.5, "3")),
            *(("some",), (None,), (0.5, None), (1 + 1j,)),  # Refused by both.
        ],
        ids=repr,
    )
    def test_what_stands_for_a_number(self, args):
        norm_like_torch(list_of_two_dtypes, *args)
        if len(args) == 1:
            value_like_torch(list_of_two_dtypes, *args)

    def test_a_norm_that_is_no_tensor(self):
        """torch's own error, and nothing has changed."""
        _, error = assert_clips_like(
            clip_grads_with_norm_,
            TORCH.clip_grads_with_norm_,
            list_of_two_dtypes,
            *(0.5, 5.0),
        )
        assert type(error) is TypeError


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


SPARSE = torch.sparse_coo_tensor([[1]], [9.0], (3,), check_invariants=True)
EXPANDED = torch.tensor(5.0).expand(3)
with torch.inference_mode():
    INFERENCE = torch.full((3,), 5.0)


@pytest.mark.parametrize(
    ("grad", "function", "bound", "message"),
    [
        (SPARSE, clip_grad_value_, 0.1, "is sparse"),
        (torch.ones(3).cfloat(), clip_grad_value_, 0.1, "is complex"),
        (EXPANDED, clip_grad_norm_, 0.1, "has elements that share memory"),
        (EXPANDED, clip_grad_value_, 0.1, "has elements that share memory"),
        (INFERENCE, clip_grad_norm_, 0.1, "was made in torch.inference_mode"),
        (INFERENCE, clip_grad_value_, 0.1, "was made in torch.inference_mo"),
        (torch.ones(3).half(), clip_grad_value_, -1e5, "float16, for .* -100"),
        (torch.ones(3), clip_grad_value_, -1e300, r"float32, for .* -1e\+300"),
    ],
)
def test_refused(grad, function, bound, message):
    """By its index, where torch finds out after it has changed others."""
    make = partial(build, repeated(5, (8,), torch.float64))
    params = [*make(), parameter(None), SimpleNamespace(grad=grad)]
    before = (grad.to_dense() if grad.is_sparse else grad).tolist()
    message = f"^the gradient of parameter 6 .*{message}"
    with pytest.raises(NotImplementedError, match=message):
        function(params, bound)
    assert_same_gradients(params[:5], make())
    assert params[6].grad is grad and grad.to_dense().tolist() == before


@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_one_that_becomes_sparse(max_norm):
    """What is kept of dense ones does not let it pass for one."""

    def make():
        params = build(repeated(7, (128, 128)))
        clip_grad_norm_(params, 1e9)
        params[4].grad = params[4].grad.to_sparse()
        return params

    params, theirs = make(), make()
    expected, refusal = attempt(TORCH.clip_grad_norm_, theirs, max_norm)
    if refusal is None:  # From torch 2.14 on.
        assert same_bits(clip_grad_norm_(params, max_norm), expected)
    else:
        with pytest.raises(NotImplementedError, match="tensor 4 is sparse"):
            get_total_norm(gradients(params))
        match = "the gradient of parameter 4 is sparse"
        with pytest.raises(NotImplementedError, match=match):
            clip_grad_norm_(params, max_norm)
        theirs = make()
    for each in (params, theirs):
        each[4].grad = each[4].grad.to_dense()
    assert_same_gradients(params, theirs)


@BOTH
def test_foreach_where_there_is_none(function, reference):
    make = partial(build, repeated(3, (4,)), "meta")
    errors = [
        attempt(clip, make(), 0.5, foreach=True)[1]
        for clip in (function, reference)
    ]
    assert str(errors[0]) == str(errors[1])
    assert type(errors[0]) is type(errors[1]) is RuntimeError


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("first", [0, 6, 499])
@ON_DEVICES
def test_not_finite(first, value, device):
    def make():
        params = build(repeated(500, (8,)), device)
        params[1].grad = None
        for at in {first, 9, 499}:
            if at >= first:
                params[at].grad[2] = value
        return params

    params = make()
    with pytest.raises(RuntimeError, match=rf"parameter {first}\b"):
        clip_grad_norm_(params, 0.5, 2.0, True)
    assert_same_gradients(params, make())
    match = rf"finite, nor is that of tensor {max(first - 1, 0)}$"
    with pytest.raises(RuntimeError, match=match):
        get_total_norm(gradients(params), error_if_nonfinite=True)


def test_only_the_total_is_not_finite():
    limit = torch.finfo(torch.float32).max
    params = [parameter(torch.tensor([limit])) for _ in range(3)]
    match = "is not finite, although that of each gradient is"
    with pytest.raises(RuntimeError, match=match):
        clip_grad_norm_(params, 0.5, 1.0, True)
    assert all(param.grad == limit for param in params)
