"""The unreleased 0.5, on the stand-in that is in lab_standin."""

import sys
import warnings
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DistributedType
from robo_orchard_core.utils.hook import HookContext

import robo_orchard_fasthooks
import upstream
from helpers.lab import HOOKS, NAMES
from robo_orchard_fasthooks import _dispatch, lab

FOLDER = Path(__file__).parents[1].joinpath("helpers/lab_standin")
TRAINER = "robo_orchard_lab.pipeline.training.hook_based_trainer"
FUNCTION = "_clip_optimizer_gradients"
REPLACED = [
    *NAMES[:-1],
    f"{HOOKS}.grad_clip.{FUNCTION}",
    f"{TRAINER}.{FUNCTION}",
]


@pytest.fixture(autouse=True)
def without_the_real_one(monkeypatch):
    for name in list(sys.modules):
        if name.split(".")[0] == "robo_orchard_lab":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(FOLDER)
    yield
    installed = lab.status().installed
    lab.uninstall()  # That other tests do not fail too.
    assert not installed
    for name in list(sys.modules):
        if name.split(".")[0] == "robo_orchard_lab":
            del sys.modules[name]
    monkeypatch.undo()
    assert sys.modules[f"{HOOKS}.mixin"] is upstream.mixin


@pytest.fixture
def standin():
    return SimpleNamespace(
        **vars(import_module(f"{HOOKS}.mixin")),
        GradientClippingHookConfig=import_module(
            f"{HOOKS}.grad_clip"
        ).GradientClippingHookConfig,
        HookBasedTrainer=import_module(TRAINER).HookBasedTrainer,
        grad_clip=import_module(f"{HOOKS}.grad_clip"),
        trainer=import_module(TRAINER),
    )


def same_installed(call):
    off = call()
    with lab.install():
        assert call() == off
    return off


def test_all_of_it_is_replaced_and_put_back(standin):
    originals = [
        vars(module)[FUNCTION]
        for module in (standin.grad_clip, standin.trainer)
    ]
    begin = vars(standin.PipelineHooks)["begin"]
    with lab.install():
        assert lab.status().names == dict.fromkeys(REPLACED, "replaced")
        hooks = standin.PipelineHooks()
        assert list(hooks.hooks)[6] == "on_optimizer_step"
        for channel in hooks.hooks.values():
            assert type(channel) is _dispatch.LabChannel
    assert vars(standin.PipelineHooks)["begin"] is begin
    for module in (standin.grad_clip, standin.trainer):
        assert vars(module)[FUNCTION] is originals[0]


def test_a_trainer_that_install_imports():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with lab.install():
            names = lab.status().names
    assert names == dict.fromkeys(REPLACED, "replaced")
    trainer = import_module(TRAINER)
    assert getattr(trainer, FUNCTION).__module__ == f"{HOOKS}.grad_clip"


class Watcher:
    """A hook on every channel."""

    def __init__(self, standin, log):
        self.hooks = standin.PipelineHooks()
        for name in self.hooks.hooks:
            self.hooks.register_hook(
                name,
                HookContext.from_callable(
                    before=partial(self.note, log, f"before {name}"),
                    after=partial(self.note, log, f"after {name}"),
                ),
            )

    def note(self, log, event, args):
        log.append(
            (
                *(event, args.step_id, args.micro_step, type(args.exception)),
                args.is_optimizer_step_boundary,
                args.is_optimizer_step_committed,
            )
        )


def program(standin, hooks=(), fail_at=None, **clipping):
    """Trains on the stand-in; returns all that can be seen."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    log = []

    def fail(module, inputs):
        if log[-1][1] == fail_at:
            raise ZeroDivisionError

    model.register_forward_pre_hook(fail)
    trainer = standin.HookBasedTrainer(
        *(Accelerator(cpu=True), model, optimizer),
        [*hooks, Watcher(standin, log).hooks],
        **clipping,
    )
    try:
        trainer.train(10 * torch.randn(6, 8, 4))
    except ZeroDivisionError:
        log.append("failed")
    return log, [param.tolist() for param in model.parameters()]


NORM = {"clip_mode": "norm", "max_norm": 0.3}
NORM_1 = {**NORM, "norm_type": 1.0}
VALUE = {"clip_mode": "value", "clip_value": 0.2}


@pytest.mark.parametrize("clipping", [{}, NORM, NORM_1, VALUE])
def test_a_program_gives_the_same(standin, clipping):
    log, _ = same_installed(lambda: program(standin, **clipping))
    assert len(log) == 6 * 2 * 3 + 3 * 2


@pytest.mark.parametrize("clipping", [NORM, NORM_1, VALUE])
def test_its_clipping_hook_gives_the_same(standin, clipping):
    config = standin.GradientClippingHookConfig(**clipping)
    clipped = same_installed(lambda: program(standin, [config()]))
    assert clipped[1] == program(standin, **clipping)[1]
    assert clipped[1] != program(standin)[1]


def test_clipping_is_ours(standin, monkeypatch):
    expected = program(standin, **NORM)[1]
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", None)
    config = standin.GradientClippingHookConfig(**NORM)
    with lab.install():
        assert program(standin, **NORM)[1] == expected
        assert program(standin, [config()])[1] == expected


def test_a_failing_body_is_seen_by_afters_and_stays(standin):
    log, _ = same_installed(lambda: program(standin, fail_at=3))
    (after,) = (e for e in log if e[:2] == ("after on_step", 3))
    assert after[3] is ZeroDivisionError

    def stays():
        args = standin.PipelineHookArgs(accelerator=1)
        error = KeyError()
        hooks = standin.PipelineHooks()
        with pytest.raises(KeyError), hooks.begin("on_step", args):
            raise error
        with hooks.begin("on_step", args):
            pass
        return args.exception is error

    assert same_installed(stays)


@pytest.mark.parametrize("exception", [None, KeyError("earlier")])
def test_a_good_body_leaves_the_exception_as_it_is(standin, exception):
    def call():
        args = standin.PipelineHookArgs(1, exception=exception)
        seen = []
        hooks = standin.PipelineHooks()
        hooks.register_hook(
            "on_step",
            HookContext.from_callable(
                after=lambda args: seen.append(args.exception)
            ),
        )
        with hooks.begin("on_step", args):
            pass
        return seen, args.exception

    assert same_installed(call) == ([exception], exception)


def test_reduce_loss_is_not_read(standin):
    def call():
        args = standin.PipelineHookArgs(accelerator=1)
        copied = args.copy_with_updates(batch=1)
        with pytest.raises(RuntimeError, match="reduce_loss is gone"):
            args.copy_with_updates(reduce_loss=1)
        return list(vars(copied).items()), repr(copied)

    same_installed(call)


def test_the_hook_refuses_deepspeed(standin):
    def call():
        hook = standin.GradientClippingHookConfig(**NORM)()
        args = standin.PipelineHookArgs(
            SimpleNamespace(distributed_type=DistributedType.DEEPSPEED),
            is_optimizer_step_boundary=True,
        )
        with pytest.raises(RuntimeError, match="^DeepSpeed") as raised:
            with hook.begin("on_step", args):
                pass
        return str(raised.value)

    same_installed(call)


def test_ours_clip_at_its_boundaries_and_leave_the_step_to_it(standin):
    ours = [
        robo_orchard_fasthooks.GradientClippingHookConfig(**NORM),
        robo_orchard_fasthooks.OptimizerHookConfig(),
    ]
    with lab.install():
        assert program(standin, ours) == program(standin, **NORM)


def test_a_function_that_takes_something_else_is_left(standin):
    exec(f"def {FUNCTION}(params): pass", vars(standin.grad_clip))
    name = f"{HOOKS}.grad_clip.{FUNCTION}"
    with pytest.warns(UserWarning, match="its parameters are .params."):
        lab.install()
    with lab.install():
        assert lab.status().names == {
            **dict.fromkeys(REPLACED, "replaced"),
            name: "original: its parameters are (params)",
        }
    lab.uninstall()


def test_without_its_trainer_one_warning_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, TRAINER, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with lab.install():
            names = lab.status().names
    assert names[f"{TRAINER}.{FUNCTION}"] == (
        "original: there is no such module"
    )
    (warning,) = caught
    assert f"{TRAINER}.{FUNCTION}: there is no" in str(warning.message)
    assert warning.filename == __file__
