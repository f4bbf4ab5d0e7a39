"""The warning that an OptimizerHook stepped before clipping."""

import gc
import inspect
import weakref
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

import robo_orchard_fasthooks as ours
from helpers.implementations import IMPLEMENTATIONS, OURS, UPSTREAM
from robo_orchard_fasthooks import HookContext

pytestmark = pytest.mark.contract("F8")
NORM = {"clip_mode": "norm", "max_norm": 1}
MESSAGE = "Register GradientClippingHook before OptimizerHook"


def make_optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1)


def make_args(optimizer, cls=ours.PipelineHookArgs):
    scheduler = mock.create_autospec(torch.optim.lr_scheduler.StepLR)
    return cls(
        Accelerator(cpu=True), optimizer=optimizer, lr_scheduler=scheduler
    )


def run(hooks, args, gradient=True):
    if gradient:
        param = args.optimizer.param_groups[0]["params"][0]
        param.grad = torch.tensor([3.0, 4.0])
    with hooks.begin("on_step", args):
        pass


def clipping():
    return ours.GradientClippingHookConfig(**NORM)()


def wrong():
    return ours.PipelineHooks.from_hooks([ours.OptimizerHook(), clipping()])


def right():
    return ours.PipelineHooks.from_hooks([clipping(), ours.OptimizerHook()])


def taking(optimizer):
    """A hook that puts that optimizer into the arguments."""
    return HookContext.from_callable(
        after=lambda args: setattr(args, "optimizer", optimizer)
    )


@pytest.fixture
def args():
    return make_args(make_optimizer())


def test_the_wrong_order_warns_once(args):
    hooks = wrong()
    args.optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    with pytest.warns(UserWarning, match=MESSAGE) as caught:
        with hooks.begin("on_step", args):
            line = inspect.currentframe().f_lineno - 1
    assert len(caught) == 1
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)
    # A warning would be an error; arguments of their own, as in a loop.
    for _ in range(2):
        run(hooks, args)
        run(hooks, make_args(args.optimizer))


@pytest.mark.parametrize("stepping", [OURS, UPSTREAM], ids=lambda x: x.name)
@pytest.mark.parametrize("clipping", [OURS, UPSTREAM], ids=lambda x: x.name)
@pytest.mark.parametrize("right", [False, True])
def test_in_place_also_of_robo_orchard_lab_s_own(clipping, stepping, right):
    configs = [
        clipping.GradientClippingHookConfig(**NORM),
        stepping.OptimizerHookConfig(),
    ]
    if not right:
        configs.reverse()
    optimizer = Accelerator(cpu=True).prepare_optimizer(make_optimizer())
    with IMPLEMENTATIONS["installed"]() as lab:
        hooks = lab.PipelineHooks.from_hooks(configs)
        args = make_args(optimizer, lab.PipelineHookArgs)
        if right:
            run(hooks, args)
        else:
            with pytest.warns(UserWarning, match=MESSAGE) as caught:
                run(hooks, args)
            assert [each.filename for each in caught] == [__file__]
        for gradient in (False, True, True):
            run(hooks, args, gradient)
    norm = optimizer.param_groups[0]["params"][0].norm().item()
    assert norm == pytest.approx(3 if right else 15)


def test_the_right_order(args):
    """Also on arguments used again, in a step without gradients."""
    hooks = right()
    for gradient in (True, True, False, False, True):
        run(hooks, args, gradient)
    assert not torch.equal(
        args.optimizer.param_groups[0]["params"][0], torch.zeros(2)
    )


@pytest.mark.parametrize("wrapped", ["both", "clipped", "stepped"])
def test_a_prepared_optimizer(wrapped):
    raw = make_optimizer()
    prepared = Accelerator(cpu=True).prepare_optimizer(raw)
    hooks = ours.OptimizerHook()
    hooks.register_hook(
        "on_step", taking(raw if wrapped == "stepped" else prepared)
    )
    hooks += clipping()
    with pytest.warns(UserWarning, match=MESSAGE):
        run(hooks, make_args(raw if wrapped == "clipped" else prepared))


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("shared", [False, True])
def test_two_optimizers_in_turn(every, shared):
    """As of a GAN: one of them has gradients in every third step only."""
    pair = make_optimizer(), make_optimizer()
    hooks, args = right(), make_args(pair[0])
    for step in range(7):
        for optimizer, gradient in zip(
            pair, (True, step % every == 0), strict=True
        ):
            each = args if shared else make_args(optimizer)
            each.optimizer = optimizer
            run(hooks, each, gradient)


def test_the_wrong_order_of_one_of_two_optimizers():
    first, second = make_optimizer(), make_optimizer()
    hooks = right()
    hooks.register_hook("on_step", taking(second))
    hooks += wrong()
    second.param_groups[0]["params"][0].grad = torch.ones(2)
    with pytest.warns(UserWarning, match=MESSAGE) as caught:
        run(hooks, make_args(first))
    assert len(caught) == 1


def test_a_failed_step(args):
    with pytest.raises(ZeroDivisionError):
        with wrong().begin("on_step", args):
            raise ZeroDivisionError


@pytest.mark.parametrize("kind", ["DEEPSPEED", "MEGATRON_LM"])
def test_where_the_backend_clips(args, kind):
    class StandIn(Accelerator):
        distributed_type = DistributedType[kind]

        def clip_grad_norm_(self, *args):
            return 5.0

    args.accelerator = StandIn(cpu=True)
    run(wrong(), args)


def test_that_is_made_an_error(args):
    """It names the hook (F7), and the step has been taken."""
    with pytest.raises(UserWarning, match=MESSAGE):  # As all in the tests.
        run(wrong(), args)
    assert args.optimizer.param_groups[0]["params"][0][0] == -3


def test_arguments_without_weak_references():
    """They can leave no mark: no warning, and no error."""

    class Slots:
        __slots__ = ("accelerator", "optimizer", "lr_scheduler", "exception")

    args, full = Slots(), make_args(make_optimizer())
    for name in Slots.__slots__:
        setattr(args, name, getattr(full, name))
    run(wrong(), args)


def test_an_optimizer_that_is_none_of_torch_s():
    class Own:
        param_groups = make_optimizer().param_groups

        def step(self):
            self.param_groups[0]["params"][0].grad = None

        zero_grad = step

    with pytest.warns(UserWarning, match=MESSAGE):
        run(wrong(), make_args(Own()))


def test_nothing_is_kept_alive():
    args = make_args(make_optimizer())
    hooks = [wrong(), right()]
    run(hooks[1], args)
    with pytest.warns(UserWarning):
        run(hooks[0], args)
    refs = [weakref.ref(each) for each in (*hooks, args.optimizer, args)]
    del hooks, args
    gc.collect()
    assert [each() for each in refs] == [None] * len(refs)
