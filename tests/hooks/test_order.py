"""The warning that an OptimizerHook stepped before clipping."""

import gc
import inspect
import warnings
import weakref
from dataclasses import dataclass
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

import robo_orchard_fasthooks as ours
import upstream
from robo_orchard_fasthooks import HookContext, HookProfiler
from robo_orchard_fasthooks._dispatch import running_phases

pytestmark = pytest.mark.contract("F8")

OPTIMIZER_HOOKS = {
    "ours": ours.OptimizerHookConfig,
    "upstream": upstream.optimizer.OptimizerHookConfig,
}


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def make_optimizer(cls=torch.optim.SGD):
    return cls([torch.nn.Parameter(torch.zeros(2))], lr=1)


def param_of(optimizer):
    return optimizer.param_groups[0]["params"][0]


def give_gradient(optimizer):
    param_of(optimizer).grad = torch.tensor([3.0, 4.0])


def make_args(accelerator, optimizer):
    scheduler = mock.create_autospec(torch.optim.lr_scheduler.StepLR)
    return ours.PipelineHookArgs(
        accelerator, optimizer=optimizer, lr_scheduler=scheduler
    )


def run(hooks, args, gradient=True):
    if gradient:
        give_gradient(args.optimizer)
    with hooks.begin("on_step", args):
        pass


def clipping(cls=ours.GradientClippingHook):
    config = ours.GradientClippingHookConfig(clip_mode="norm", max_norm=1)
    return cls(config)


def message(clips, steps, channel="on_step"):
    return (
        f"GradientClippingHook is at position {clips} of {channel!r}, after "
        f"OptimizerHook at position {steps}: the optimizer steps on unclipped "
        "gradients. Register GradientClippingHook first (with "
        "HookBasedTrainer: pass it as grad_clip=)"
    )


@pytest.fixture
def args(accelerator):
    return make_args(accelerator, make_optimizer())


@pytest.fixture(params=OPTIMIZER_HOOKS)
def make_stepping(request):
    """Makes OptimizerHooks of either implementation."""
    return OPTIMIZER_HOOKS[request.param]()


@pytest.fixture
def stepping(make_stepping):
    return make_stepping()


def by_merging(hooks, added):
    hooks += added


def by_register_pipeline_hooks(hooks, added):
    hooks.register_pipeline_hooks(added)


def by_register_hook(hooks, added):
    hooks.register_hook("on_step", added.hooks["on_step"][0])


def by_the_channel(hooks, added):
    hooks.hooks["on_step"].register(added.hooks["on_step"][0])


def by_adding_to_the_channel(hooks, added):
    channel = hooks.hooks["on_step"]
    channel += added.hooks["on_step"][0]


def by_adding_a_channel(hooks, added):
    channel = hooks.hooks["on_step"]
    channel += added.hooks["on_step"]


@pytest.mark.parametrize(
    "register",
    [
        by_merging,
        by_register_pipeline_hooks,
        by_register_hook,
        by_the_channel,
        by_adding_to_the_channel,
        by_adding_a_channel,
    ],
)
def test_however_it_is_registered(args, stepping, hook, register):
    hooks = ours.PipelineHooks()
    hooks.register_hook("on_step", hook("a"))
    hooks += stepping
    hooks.register_hook("on_step", hook("b"))
    clips = clipping()
    register(hooks, clips)
    give_gradient(args.optimizer)
    with pytest.warns(UserWarning) as caught:
        with hooks.begin("on_step", args):
            line = inspect.currentframe().f_lineno - 1
    assert [str(each.message) for each in caught] == [message(3, 1)]
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)
    # Once for each hook, wherever it runs. A warning would be an error.
    run(hooks, args)
    run(ours.PipelineHooks.from_hooks([stepping, clips]), args)
    with pytest.warns(UserWarning, match="at position 1 of"):
        run(ours.PipelineHooks.from_hooks([stepping, clipping()]), args)


def test_the_right_order(args, stepping):
    hooks = ours.PipelineHooks.from_hooks([clipping(), stepping])
    for gradient in (True, True, False, False, True):
        run(hooks, args, gradient)
    assert not torch.equal(param_of(args.optimizer), torch.zeros(2))


def test_clipping_alone(args):
    for gradient in (True, False):
        run(clipping(), args, gradient)


def test_an_order_that_becomes_wrong(args, stepping):
    clips = clipping()
    hooks = ours.PipelineHooks()
    handle = hooks.register_pipeline_hooks(clips)
    hooks += stepping
    run(hooks, args)
    run(hooks, args, gradient=False)
    handle()
    hooks += clips
    with pytest.warns(UserWarning) as caught:
        run(hooks, args)
    assert [str(each.message) for each in caught] == [message(1, 0)]


def test_of_subclasses(args):
    class Steps(ours.OptimizerHook):
        pass

    class Clips(ours.GradientClippingHook):
        def _gradient_clipping(self, hook_args):
            super()._gradient_clipping(hook_args)

    hooks = ours.PipelineHooks.from_hooks([Steps(), clipping(Clips)])
    with pytest.warns(UserWarning, match="at position 1 of"):
        run(hooks, args)


def test_of_a_subclass_that_steps_by_itself(args):
    class Steps(ours.OptimizerHook):
        def _optimizer_step(self, hook_args):
            hook_args.optimizer.step()
            hook_args.optimizer.zero_grad()

    hooks = ours.PipelineHooks.from_hooks([Steps(), clipping()])
    with pytest.warns(UserWarning, match="at position 1 of"):
        run(hooks, args)


@pytest.mark.parametrize("prepared", ["both", "clipped", "stepped"])
def test_a_prepared_optimizer(accelerator, prepared):
    raw = make_optimizer()
    wrapped = accelerator.prepare_optimizer(raw)
    args = make_args(accelerator, raw if prepared == "clipped" else wrapped)
    hooks = ours.OptimizerHook()
    if prepared != "both":
        other = wrapped if prepared == "clipped" else raw
        hooks.register_hook(
            "on_step",
            HookContext.from_callable(
                after=lambda args: setattr(args, "optimizer", other)
            ),
        )
    hooks += clipping()
    with pytest.warns(UserWarning) as caught:
        run(hooks, args)
    (warning,) = caught
    assert str(warning.message) == message(len(hooks.hooks["on_step"]) - 1, 0)


@pytest.mark.parametrize("every", [1, 3])
class TestTwoOptimizers:
    """As of a GAN: one of them has gradients in every third step only."""

    @pytest.fixture
    def pair(self):
        return make_optimizer(), make_optimizer()

    def test_with_arguments_of_their_own(
        self, accelerator, stepping, pair, every
    ):
        hooks = ours.PipelineHooks.from_hooks([clipping(), stepping])
        for step in range(7):
            for optimizer, gradient in zip(
                pair, (True, step % every == 0), strict=True
            ):
                run(hooks, make_args(accelerator, optimizer), gradient)

    def test_in_one_phase(self, accelerator, pair, every, make_stepping):
        hooks = ours.PipelineHooks()
        for optimizer in pair:
            hooks.register_hook(
                "on_step",
                HookContext.from_callable(
                    after=lambda args, o=optimizer: setattr(
                        args, "optimizer", o
                    )
                ),
            )
            hooks += clipping()
            hooks += make_stepping()
        for step in range(7):
            if step % every == 0:
                give_gradient(pair[1])
            run(hooks, make_args(accelerator, pair[0]))
        # Each of their steps was clipped to a norm of 1.
        taken = 7, len(range(0, 7, every))
        for optimizer, steps in zip(pair, taken, strict=True):
            norm = param_of(optimizer).norm().item()
            assert norm == pytest.approx(steps, rel=1e-5)

    def test_one_that_no_hook_steps(self, accelerator, pair, every):
        """It is clipped after the hook has stepped the other one."""
        hooks = ours.OptimizerHook()
        hooks.register_hook(
            "on_step",
            HookContext.from_callable(
                after=lambda args: setattr(args, "optimizer", pair[1])
            ),
        )
        hooks += clipping()
        for step in range(7):
            if step % every == 0:
                give_gradient(pair[1])
            run(hooks, make_args(accelerator, pair[0]))
            pair[1].step()
            pair[1].zero_grad()

    def test_the_wrong_order_of_one(self, accelerator, pair, every):
        hooks = ours.PipelineHooks.from_hooks([clipping()])
        hooks += ours.OptimizerHook()
        hooks.register_hook(
            "on_step",
            HookContext.from_callable(
                after=lambda args: setattr(args, "optimizer", pair[1])
            ),
        )
        hooks += ours.OptimizerHook()
        hooks += clipping()
        with pytest.warns(UserWarning) as caught:
            for step in range(7):
                if step % every == 0:
                    give_gradient(pair[1])
                run(hooks, make_args(accelerator, pair[0]))
        assert [str(each.message) for each in caught] == [message(4, 3)]


def test_a_failed_step(args, stepping):
    hooks = ours.PipelineHooks.from_hooks([stepping, clipping()])
    give_gradient(args.optimizer)
    with pytest.raises(ZeroDivisionError):
        with hooks.begin("on_step", args):
            raise ZeroDivisionError


def test_while_gradients_accumulate(args):
    hooks = ours.PipelineHooks.from_hooks([ours.OptimizerHook(), clipping()])
    state = args.accelerator.gradient_state
    args.optimizer = args.accelerator.prepare_optimizer(args.optimizer)
    state._set_sync_gradients(False)
    try:
        run(hooks, args)
        run(hooks, args, gradient=False)
    finally:
        state._set_sync_gradients(True)
    with pytest.warns(UserWarning, match="at position 1 of"):
        run(hooks, args)


@pytest.mark.parametrize("kind", ["DEEPSPEED", "MEGATRON_LM"])
def test_where_the_backend_clips(args, kind):
    class StandIn(Accelerator):
        """Says it is of that type, and returns the norm of its engine."""

        distributed_type = DistributedType[kind]

        def clip_grad_norm_(self, *args):
            return 5.0

    args.accelerator = StandIn(cpu=True)
    run(
        ours.PipelineHooks.from_hooks([ours.OptimizerHook(), clipping()]), args
    )


def test_that_is_made_an_error(args):
    """Each step raises, names the hook (F7) and leaves the next one to run."""
    clips = clipping()
    hooks = ours.PipelineHooks.from_hooks([ours.OptimizerHook(), clips])
    for steps in (1, 2):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            with pytest.raises(UserWarning, match="at position 1 of"):
                run(hooks, args)
        assert param_of(args.optimizer)[0] == -3 * steps
    with pytest.warns(UserWarning):
        run(hooks, args)


def test_while_it_is_profiled(args):
    hooks = ours.PipelineHooks.from_hooks([ours.OptimizerHook(), clipping()])
    with HookProfiler(hooks), pytest.warns(UserWarning) as caught:
        run(hooks, args)
    assert [str(each.message) for each in caught] == [message(1, 0)]


def test_in_a_scope_within_a_scope_on_the_same_argument(args, hook):
    """The positions are those of the scope that the hook runs in."""
    hooks = ours.PipelineHooks()
    for name in "abc":
        hooks.register_hook("on_batch", hook(name))
    hooks += ours.OptimizerHook()
    hooks += clipping()

    def inner(args):
        with hooks.begin("on_step", args):
            pass

    hooks.register_hook("on_batch", HookContext.from_callable(after=inner))
    give_gradient(args.optimizer)
    with pytest.warns(UserWarning) as caught:
        with hooks.begin("on_batch", args):
            pass
    assert [str(each.message) for each in caught] == [message(1, 0)]


def test_on_another_channel(args):
    hooks = ours.OptimizerHook()
    hooks.hooks["on_batch"].register(hooks.hooks["on_step"][0])
    hooks.hooks["on_batch"].register(clipping().hooks["on_step"][0])
    give_gradient(args.optimizer)
    with pytest.warns(UserWarning) as caught:
        with hooks.begin("on_batch", args):
            pass
    assert [str(each.message) for each in caught] == [
        message(1, 0, "on_batch")
    ]


def test_called_by_another_hook(args):
    """It has no position; the objects are looked through once."""
    hooks, clips = ours.OptimizerHook(), clipping()
    hooks.register_hook(
        "on_step",
        HookContext.from_callable(after=lambda a: clips._gradient_clipping(a)),
    )
    with mock.patch.object(gc, "get_objects", wraps=gc.get_objects) as looked:
        run(hooks, args)
        run(hooks, args)
    assert looked.call_count == 1


def test_the_objects_are_looked_through_once_at_most(args):
    hooks = ours.PipelineHooks.from_hooks([clipping(), ours.OptimizerHook()])
    with mock.patch.object(gc, "get_objects", wraps=gc.get_objects) as looked:
        run(hooks, args)
        assert looked.call_count == 0
        for _ in range(3):
            run(hooks, args, gradient=False)
    assert looked.call_count == 1


def test_a_hook_that_cannot_be_hashed(args):
    @dataclass
    class Clips(ours.GradientClippingHook):
        cfg: object

        def __post_init__(self):
            super().__init__(self.cfg)

    hooks = ours.PipelineHooks.from_hooks([ours.OptimizerHook()])
    hooks += clipping(Clips)
    run(hooks, args)  # Nothing can be kept of it, so it is not warned of.


def test_an_optimizer_that_is_none_of_torch_s(accelerator):
    param = torch.nn.Parameter(torch.zeros(2))
    groups = [{"params": [param]}]

    def zero_grad():
        param.grad = None

    optimizer = SimpleNamespace(
        param_groups=groups, step=lambda: None, zero_grad=zero_grad
    )
    args = make_args(accelerator, optimizer)
    hooks = ours.PipelineHooks.from_hooks([ours.OptimizerHook(), clipping()])
    with pytest.warns(UserWarning, match="at position 1 of"):
        run(hooks, args)


def test_nothing_is_kept_alive(accelerator):
    args = make_args(accelerator, make_optimizer())
    hooks = ours.PipelineHooks.from_hooks([ours.OptimizerHook(), clipping()])
    with pytest.warns(UserWarning):
        run(hooks, args)
    right = ours.PipelineHooks.from_hooks([clipping(), ours.OptimizerHook()])
    run(right, args, gradient=False)
    refs = [
        *map(weakref.ref, (hooks.hooks["on_step"], args.optimizer, args)),
        *map(weakref.ref, hooks.hooks["on_step"]._context_handlers),
        *map(weakref.ref, right.hooks["on_step"]._context_handlers),
    ]
    del hooks, right, args
    gc.collect()
    assert [each() for each in refs] == [None] * len(refs)


def test_a_scope_that_failed_is_not_running():
    """Its exception may keep it, and with it the place of a hook."""

    def fail(args):
        raise ZeroDivisionError

    hooks, args = ours.PipelineHooks(), ours.PipelineHookArgs(None)
    hooks.register_hook("on_step", HookContext.from_callable(after=fail))
    scope = hooks.begin("on_step", args)
    with pytest.raises(ZeroDivisionError), scope:
        pass
    assert running_phases(args) == []
