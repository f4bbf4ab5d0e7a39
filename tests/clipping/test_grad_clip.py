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

import robo_orchard_fasthooks
from helpers.implementations import INSTALLED
from robo_orchard_fasthooks._clipping import norms


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
@pytest.mark.also_on(*INSTALLED)
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


@pytest.mark.also_on(*INSTALLED)
def test_value(lib, step):
    hook = lib.GradientClippingHookConfig(clip_mode="value", clip_value=2)()
    before, after = step(lib, hook)
    expected = clipped_by_torch(before, torch.nn.utils.clip_grad_value_, 2.0)
    assert same(after, expected) and not same(before, after)


@pytest.mark.also_on(*INSTALLED)
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


@pytest.mark.also_on("installed")  # 0.5 counts micro-steps by itself.
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


@pytest.mark.contract("F3")
def test_nothing_after_a_failure(ours, theirs, step):
    for lib in (ours, theirs):
        hook = lib.GradientClippingHookConfig(clip_mode="norm", max_norm=1)()
        before, after = step(lib, hook, error=ValueError())
        assert same(before, after) == (lib is ours)


@pytest.mark.contract("F10")
def test_a_parameter_held_twice_is_clipped_once(ours, theirs, accelerator):
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


@pytest.mark.also_on(*INSTALLED)
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


@pytest.fixture
def clip(accelerator):
    """Runs a hook of the given settings on an optimizer or on parameters."""

    def run(lib, optimizer, *, model=None, hook=None, **settings):
        if isinstance(optimizer, list):
            optimizer = torch.optim.SGD(optimizer, lr=1)
        if hook is None:
            hook = lib.GradientClippingHookConfig(**settings)()
        args = lib.PipelineHookArgs(
            accelerator, optimizer=optimizer, model=model
        )
        with hook.begin("on_step", args):
            pass
        return hook

    return run


def parameter(grad):
    grad = torch.as_tensor(grad)
    param = torch.nn.Parameter(torch.zeros_like(grad))
    param.grad = grad
    return param


NORM = {"clip_mode": "norm", "max_norm": 1.0}
VALUE = {"clip_mode": "value", "clip_value": 1.0}


def test_total_norm_is_that_before_clipping(ours, clip):
    param = parameter([3.0, 4.0])
    hook = ours.GradientClippingHookConfig(**NORM)()
    assert hook.total_norm is None
    for expected in (5.0, 1.0):
        clip(ours, [param], hook=hook)
        assert hook.total_norm.item() == pytest.approx(expected, rel=1e-6)
    assert hook.total_norm.shape == () and not hook.total_norm.requires_grad
    param.grad = None
    clip(ours, [param], hook=hook)
    assert hook.total_norm.item() == pytest.approx(1.0, rel=1e-6)
    hook.clip_mode, hook.clip_value = "value", 0.5
    param.grad = torch.tensor([3.0, 4.0])
    clip(ours, [param], hook=hook)
    assert hook.total_norm.item() == pytest.approx(1.0, rel=1e-6)


class Twins:
    """An optimizer and its copy, which change alike at random."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.torch = torch.Generator().manual_seed(seed)
        self.pairs = []
        first = [self.parameter() for _ in range(20)]
        self.optimizers = [
            torch.optim.SGD(params, lr=1)
            for params in zip(*first, strict=True)
        ]

    def parameter(self):
        shape = self.random.choice([(3,), (3,), (3,), (2, 3), (), (5000,)])
        pair = [torch.nn.Parameter(torch.zeros(shape)) for _ in range(2)]
        self.pairs.append(pair)
        return pair

    def each(self, function):
        for optimizer in self.optimizers:
            function(optimizer)

    def change(self):
        groups = len(self.optimizers[0].param_groups)
        group = self.random.randrange(groups)
        size = len(self.optimizers[0].param_groups[group]["params"])
        place = self.random.randrange(max(size, 1))
        pair = self.random.choice(self.pairs)
        new = self.parameter()
        self.random.choice(
            [
                lambda: None,
                lambda: [
                    optimizer.add_param_group({"params": [param]})
                    for optimizer, param in zip(
                        self.optimizers, new, strict=True
                    )
                ],
                lambda: [
                    optimizer.param_groups[group]["params"].__setitem__(
                        slice(place, place + 1), [param]
                    )
                    for optimizer, param in zip(
                        self.optimizers, new, strict=True
                    )
                ],
                lambda: self.each(
                    lambda o: o.param_groups[group]["params"].reverse()
                ),
                lambda: self.each(
                    lambda o: o.param_groups[group]["params"].__delitem__(
                        slice(place, place + 1)
                    )
                ),
                lambda: self.each(lambda o: o.load_state_dict(o.state_dict())),
                lambda: [
                    param.requires_grad_(not param.requires_grad)
                    for param in pair
                ],
                lambda: self.set_data(pair, lambda old: old.bfloat16()),
                lambda: self.set_data(pair, lambda old: old.double()),
                lambda: self.set_data(pair, lambda old: torch.zeros(7)),
            ]
        )()

    def set_data(self, pair, change):
        for param in pair:
            param.grad = None
            param.data = change(param.data)

    def make_gradients(self):
        for pair in self.pairs:
            noise = torch.randn(pair[0].shape, generator=self.torch)
            absent = self.random.random() < 0.1
            turned = noise.ndim == 2 and self.random.random() < 0.5
            for param in pair:
                grad = noise.to(param.dtype)
                if turned:
                    grad = grad.t().contiguous().t()
                param.grad = None if absent else grad.clone()


@pytest.mark.parametrize("seed", range(4))
def test_changes_of_the_optimizer_count(ours, theirs, clip, seed):
    twins = Twins(seed)
    settings = {"clip_mode": "norm", "max_norm": 2.0}
    hooks = [
        lib.GradientClippingHookConfig(**settings)() for lib in (ours, theirs)
    ]
    for step in range(150):
        twins.change()
        twins.make_gradients()
        for lib, hook, optimizer in zip(
            (ours, theirs), hooks, twins.optimizers, strict=True
        ):
            hook.max_norm = 2.0 if step % 2 else 1e6
            clip(lib, optimizer, hook=hook)
        for mine, other in twins.pairs:
            assert (mine.grad is None) == (other.grad is None)
            assert mine.grad is None or torch.equal(mine.grad, other.grad)


def test_optimizers_do_not_share_what_is_kept(ours, theirs, clip):
    results = []
    for lib in (ours, theirs):
        generator = torch.Generator().manual_seed(1)
        sets = [
            [torch.nn.Parameter(torch.zeros(size)) for _ in range(9)]
            for size in (4, 5)
        ]
        optimizers = [torch.optim.SGD(params, lr=1) for params in sets]
        hook = lib.GradientClippingHookConfig(**NORM)()
        for _ in range(3):
            for params, optimizer in zip(sets, optimizers, strict=True):
                for param in params:
                    param.grad = torch.randn(param.shape, generator=generator)
                clip(lib, optimizer, hook=hook)
        results.append([p.grad for params in sets for p in params])
    assert same(*results)


@pytest.mark.parametrize("mode", [NORM, VALUE])
def test_a_dead_optimizer_is_freed(ours, clip, mode):
    param = parameter([3.0, 4.0])
    optimizer = torch.optim.SGD([param], lr=1)
    param.stepped_by = optimizer
    hook = clip(ours, optimizer, **mode)
    refs = [weakref.ref(optimizer), weakref.ref(param)]
    del optimizer, param
    gc.collect()
    assert [ref() for ref in refs] == [None, None]
    assert hook.clip_mode == mode["clip_mode"]


@pytest.mark.contract("F10")
def test_a_parameter_that_comes_to_be_held_twice(ours, clip):
    params = [parameter([3.0, 4.0]), parameter([1.0, 0.0])]
    optimizer = torch.optim.SGD(params, lr=1)
    clip(ours, optimizer, clip_mode="norm", max_norm=100.0)
    optimizer.param_groups[0]["params"] = [params[0]] * 2
    clip(ours, optimizer, **NORM)
    torch.testing.assert_close(params[0].grad, torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("mode", [NORM, VALUE])
def test_parameters_can_still_be_swapped(ours, clip, mode):
    """torch does so in `model.to`, unless a tensor is referred to weakly."""
    param = parameter([3.0, 4.0])
    clip(ours, [param], **mode)
    param.grad = None
    torch.utils.swap_tensors(param, torch.nn.Parameter(torch.ones(5)))
    assert param.shape == (5,)


class Doubled(torch.Tensor):
    """Norms are twice what they are."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs)
        return result * 2 if "norm" in function.__name__ else result


def test_gradients_that_become_a_subclass(ours, theirs, clip):
    results = []
    for lib in (ours, theirs):
        params = [parameter([3.0, 4.0]) for _ in range(2)]
        optimizer = torch.optim.SGD(params, lr=1)
        clip(lib, optimizer, **NORM)
        for param in params:
            grad = torch.tensor([3.0, 4.0])
            param.grad = grad.as_subclass(Doubled)
        clip(lib, optimizer, **NORM)
        results.append([p.grad.as_subclass(torch.Tensor) for p in params])
    assert same(*results)


@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_"])
def test_compiled_whole(ours, name):
    results = []
    for module in (ours, torch.nn.utils):
        function = getattr(module, name)
        params = [parameter([3.0, 4.0]) for _ in range(5)]

        @torch.compile(backend="eager", fullgraph=True)
        def clip(params, function=function):
            function(params, 1.0)

        clip(params)
        results.append([param.grad for param in params])
    assert same(*results) and results[0][0][1] < 4


def test_an_optimizer_may_be_anything_with_groups(lib, clip):
    param = parameter([3.0, 4.0])
    clip(lib, SimpleNamespace(param_groups=[{"params": [param]}]), **NORM)
    torch.testing.assert_close(param.grad, torch.tensor([0.6, 0.8]))


class Model(torch.nn.Module):
    def __init__(self, *params):
        super().__init__()
        self.first, self.second, self.third = params


class TestErrors:
    """Each names the parameter, and leaves every gradient as it was."""

    @pytest.fixture
    def refuses(self, ours, clip):
        def run(bad, error, message, *, model=False, named=False, **settings):
            params = [parameter([3.0, 4.0]) for _ in range(2)]
            params.append(bad)
            first, second = params[:1], params[1:]
            if named:
                first, second = [("a", params[0])], [("b", params[1])]
                second.append(("c", bad))
            optimizer = torch.optim.SGD(first, lr=1)
            optimizer.add_param_group({"params": second})
            hook = ours.GradientClippingHookConfig(**settings)()
            before = [param.grad.clone() for param in params]
            with pytest.raises(error, match=message):
                clip(
                    ours,
                    optimizer,
                    hook=hook,
                    model=Model(*params) if model else None,
                )
            for param, grad in zip(params, before, strict=True):
                torch.testing.assert_close(
                    param.grad, grad, rtol=0, atol=0, equal_nan=True
                )
            assert hook.total_norm is None

        return run

    @pytest.fixture
    def sparse(self):
        param = torch.nn.Parameter(torch.zeros(3))
        param.grad = torch.sparse_coo_tensor(
            [[1]], [9.0], (3,), check_invariants=True
        )
        return param

    def test_sparse(self, refuses, sparse):
        message = "^the gradient of parameter 1 of group 1 is sparse .*dense"
        refuses(sparse, NotImplementedError, message, **VALUE)

    def test_sparse_by_norm(self, lib, clip, sparse):
        """As torch treats it: it refuses it before 2.14, and clips it since.

        Ours and upstream's hook are held to torch alike.
        """
        params = [parameter([3.0, 4.0]), sparse]
        theirs = [parameter([3.0, 4.0]), torch.nn.Parameter(torch.zeros(3))]
        theirs[1].grad = sparse.grad.clone()
        try:
            torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        except NotImplementedError:
            message = "of group 0 is sparse" if lib.name == "ours" else None
            with pytest.raises(NotImplementedError, match=message):
                clip(lib, params, **NORM)
        else:
            clip(lib, params, **NORM)
        for one, other in zip(params, theirs, strict=True):
            assert torch.equal(one.grad.to_dense(), other.grad.to_dense())

    def test_sparse_by_the_model_s_name(self, refuses, sparse):
        message = r"parameter 1 of group 1 \('third'\) is sparse"
        refuses(sparse, NotImplementedError, message, model=True, **VALUE)

    def test_sparse_by_the_optimizer_s_name(self, refuses, sparse):
        message = r"parameter 1 of group 1 \('c'\) is sparse"
        refuses(
            sparse,
            NotImplementedError,
            message,
            model=True,
            named=True,
            **VALUE,
        )

    def test_sparse_without_a_name(self, ours, clip, sparse):
        optimizer = torch.optim.SGD([("first", parameter([3.0]))], lr=1)
        optimizer.param_groups[0]["params"].append(sparse)
        with pytest.raises(NotImplementedError, match="group 0 is sparse"):
            clip(ours, optimizer, **VALUE)

    def test_a_gradient_that_becomes_sparse(self, ours, clip, sparse):
        params = [parameter([3.0, 4.0, 0.0]) for _ in range(9)]
        optimizer = torch.optim.SGD(params, lr=1)
        clip(ours, optimizer, **VALUE)
        params[4].grad = sparse.grad
        with pytest.raises(NotImplementedError, match="parameter 4 of group"):
            clip(ours, optimizer, **VALUE)

    def test_complex_by_value(self, refuses):
        bad = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
        bad.grad = torch.full((2,), 3 + 4j)
        message = "parameter 1 of group 1 is complex .* by norm"
        refuses(bad, NotImplementedError, message, **VALUE)

    @pytest.mark.parametrize("mode", [NORM, VALUE])
    def test_shared_memory(self, refuses, mode):
        bad = parameter(torch.tensor(5.0).expand(3))
        message = "parameter 1 of group 1 has elements that share memory"
        refuses(bad, NotImplementedError, message, **mode)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_norm_that_is_not_finite(self, refuses, value):
        message = (
            "^the total norm of order 2.0 of the gradients is not finite, nor "
            "is that of parameter 1 of group 1"
        )
        bad = parameter([1.0, value])
        refuses(bad, RuntimeError, message, error_if_nonfinite=True, **NORM)

    def test_a_total_that_overflows(self, ours, clip):
        params = [
            parameter(torch.tensor([6e4], dtype=torch.half)) for _ in range(2)
        ]
        message = "is not finite, although that of each gradient is"
        with pytest.raises(RuntimeError, match=message):
            clip(ours, params, error_if_nonfinite=True, **NORM)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_none_of_ours(lib, clip, value):
    param = parameter([1.0, value])
    clip(lib, [param], **NORM)
    assert math.isnan(param.grad[1].item())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_mode": "nrom"}, "clip_mode must be 'norm' or 'value', not"),
        ({"max_norm": None}, "max_norm must be specified when clip_mode is"),
        ({"clip_mode": "value"}, "clip_value must be specified when"),
        ({"max_norm": -1.0}, "max_norm must be non-negative when .* not -1"),
        ({"max_norm": math.nan}, "max_norm must be non-negative when"),
        ({"max_norm": "much"}, "max_norm must be a number, not 'much'"),
        ({"max_norm": 1j}, "max_norm must be a number, not 1j"),
        ({"max_norm": torch.ones(2)}, "max_norm must be a number, not tensor"),
        ({"norm_type": math.nan}, "norm_type must not be NaN"),
        ({"norm_type": None}, "norm_type must be a number, not None"),
        (
            {"clip_mode": "value", "clip_value": -0.5},
            "clip_value must be non-negative when .* not -0.5",
        ),
    ],
)
def test_a_schedule_that_sets_what_cannot_be(ours, clip, change, message):
    hook = ours.GradientClippingHookConfig(**NORM)()
    vars(hook).update(change)
    param = parameter([3.0, 4.0])
    with pytest.raises(ValueError, match=f"GradientClippingHook: {message}"):
        clip(ours, [param], hook=hook)
    assert torch.equal(param.grad, torch.tensor([3.0, 4.0]))


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("mode", [NORM, VALUE])
def test_foreach(ours, clip, foreach, mode):
    params = [parameter([3.0, -4.0]) for _ in range(9)]
    with (
        mock.patch.object(
            norms, "get_total_norm", wraps=torch.nn.utils.get_total_norm
        ) as norm,
        mock.patch.object(
            torch.nn.utils,
            "clip_grad_value_",
            wraps=torch.nn.utils.clip_grad_value_,
        ) as value,
    ):
        clip(ours, params, foreach=foreach, **mode)
    assert norm.called + value.called == (foreach is False)
    expected = clipped_by_torch(
        [torch.tensor([3.0, -4.0])] * 9,
        *(
            (torch.nn.utils.clip_grad_norm_, 1.0)
            if mode is NORM
            else (torch.nn.utils.clip_grad_value_, 1.0)
        ),
    )
    assert same([param.grad for param in params], expected)


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
    @pytest.mark.contract("F9")
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
