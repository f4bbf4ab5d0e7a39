"""RoboOrchardLab 0.5, which is not published: on the stand-in in benchmarks.

Where a call is compared, the oracle is the stand-in without install.
"""

import itertools
import math
import re
import sys
import warnings
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from accelerate import Accelerator, DistributedType
from robo_orchard_core.utils.hook import HookContext

import standin
from helpers.lab import assert_same_installed, outcome, run
from robo_orchard_fasthooks import _dispatch, lab

FUNCTION = "_clip_optimizer_gradients"
REPLACED = [
    f"{standin.MIXIN}.PipelineHooks.__init__",
    f"{standin.MIXIN}.PipelineHooks.begin",
    f"{standin.MIXIN}.PipelineHooks.register_hook",
    f"{standin.MIXIN}.PipelineHooks.register_pipeline_hooks",
    f"{standin.MIXIN}.PipelineHooks.from_hooks",
    f"{standin.MIXIN}.PipelineHookArgs.__init__",
    f"{standin.MIXIN}.PipelineHookArgs.copy_with_updates",
    f"{standin.GRAD_CLIP}.{FUNCTION}",
    f"{standin.TRAINER}.{FUNCTION}",
    f"{standin.TRAINER}._split_gradient_clipping_config",
    f"{standin.TRAINER}.HookBasedTrainer._run_gradient_clipping",
]
CHANNELS = (
    *("on_loop", "on_epoch", "on_step", "on_batch"),
    *("on_model_forward", "on_model_backward", "on_optimizer_step"),
)
NORM = {"clip_mode": "norm", "max_norm": 0.3}
NORM_1 = {**NORM, "norm_type": 1.0}
VALUE = {"clip_mode": "value", "clip_value": 0.2}
STEPS, MICRO_STEPS = 3, 2


@pytest.fixture(autouse=True)
def theirs():
    with standin.imported() as library:
        yield library


def without_warnings(make, *args, **kwargs):
    """Makes a hook that 0.5 warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args, **kwargs)


def watching(theirs, log):
    """Hooks before and after each channel, which note all that they see."""

    def note(event, args):
        seen = vars(args).items()
        shown = {n: re.sub(" at 0x.*", "", repr(value)) for n, value in seen}
        log.append((event, shown))

    hooks = theirs.PipelineHooks()
    for name in hooks.hooks:
        before, after = partial(note, f"before {name}"), partial(note, name)
        hook = HookContext.from_callable(before=before, after=after)
        hooks.register_hook(name, hook)
    return hooks


def program(theirs, hooks=(), fail_at=None, scale=10.0, **options):
    """Trains; returns all that hooks can see, and the parameters."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    log = []

    def forward(model, batch):
        if log[-1][1]["micro_step"].count(f"global_step_id={fail_at},"):
            raise ZeroDivisionError
        loss = model(batch).square().mean()
        return {"loss": loss}, loss

    watchers = watching(theirs, log)
    trainer = theirs.HookBasedTrainer(
        accelerator=Accelerator(
            cpu=True, gradient_accumulation_steps=MICRO_STEPS
        ),
        model=model,
        dataloader=torch.utils.data.DataLoader(
            scale * torch.randn(STEPS * MICRO_STEPS * 8, 4), batch_size=8
        ),
        batch_processor=theirs.StepProcessorFromCallable(forward),
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 2),
        hooks=hooks,
        max_epoch=1,
        **options,
    )
    trainer.hooks += watchers
    try:
        trainer()
    except (ZeroDivisionError, RuntimeError) as error:
        log.append(type(error))
    return log, [param.tolist() for param in model.parameters()]


class TestInstall:
    def test_replaces_all_of_it_and_puts_it_back(self, theirs):
        owners = theirs.PipelineHooks, theirs.PipelineHookArgs, theirs.trainer
        before = [dict(vars(each)) for each in owners]
        with lab.install():  # A warning would be an error.
            assert lab.status().names == dict.fromkeys(REPLACED, "replaced")
            hooks = theirs.PipelineHooks()
            assert tuple(hooks.hooks) == CHANNELS
            for channel in hooks.hooks.values():
                assert type(channel) is _dispatch.LabChannel
        assert [dict(vars(each)) for each in owners] == before

    def test_imports_the_trainer_before_it_replaces_anything(self):
        with standin.importable():
            with lab.install():
                names = lab.status().names
            trainer = import_module(standin.TRAINER)
        assert names == dict.fromkeys(REPLACED, "replaced")
        assert getattr(trainer, FUNCTION).__module__ == standin.GRAD_CLIP

    def test_leaves_a_trainer_alone_that_lists_hooks_otherwise(self, theirs):
        del theirs.trainer._normalize_hook_inputs
        with pytest.warns(UserWarning, match="has no _normalize_hook_inputs"):
            lab.install()
        lab.uninstall()

    def test_names_a_trainer_that_is_missing_in_one_warning(self, monkeypatch):
        monkeypatch.setitem(sys.modules, standin.TRAINER, None)
        match = f"{standin.TRAINER}.{FUNCTION}: there is no"
        with pytest.warns(UserWarning, match=match) as caught:
            with lab.install():
                names = lab.status().names
        for name in REPLACED[-3:]:
            assert names[name] == "original: there is no such module"
        assert [each.filename for each in caught] == [__file__]


@pytest.mark.parametrize(
    ("version", "support"),
    [
        ("0.4.0", "supported, and tested with the published package"),
        ("0.5.1", "not one of the tested versions (0.4.0, 0.5.0); what "),
        ("0.5.0", "supported; its public repository of August 2026 was "),
        ("0.5.0+abc123", "supported; its public repository"),
        ("main", "not one of the tested versions"),
    ],
)
def test_status_says_what_a_version_means(
    theirs, monkeypatch, version, support
):
    package = sys.modules[standin.PACKAGE]
    monkeypatch.setattr(package, "__version__", version)
    status = lab.status()
    assert status.support.startswith(support)
    assert f"\n  robo_orchard_lab {version}: {support}" in str(status)


def test_status_without_roboorchardlab(monkeypatch):
    monkeypatch.setattr(lab, "_version", lambda package: None)
    status = lab.status()
    assert status.support == "not installed"
    assert str(status).count("\n") == 1


def clipped_by(form, library, clipping):
    """The options that have a trainer clip."""
    config = library.GradientClippingHookConfig(**clipping)
    return {
        "grad_clip": lambda: {"grad_clip": config},
        "config": lambda: {"hooks": [config]},
        "single config": lambda: {"hooks": config},
        "generator": lambda: {"hooks": (each for each in [config])},
        "hook": lambda: {"hooks": [without_warnings(config)]},
        "single hook": lambda: {"hooks": without_warnings(config)},
    }[form]()


FORMS = (
    *("grad_clip", "config", "single config", "generator"),
    *("hook", "single hook"),
)


class TestTrainer:
    @pytest.mark.parametrize(
        ("form", "family", "clipping"),
        [
            *((form, "ours", NORM) for form in FORMS),
            *((form, "theirs", NORM) for form in FORMS),
            ("grad_clip", "theirs", NORM_1),
            ("grad_clip", "theirs", VALUE),
        ],
    )
    def test_clips_by_this_package_with_the_same_bits(
        self, request, theirs, form, family, clipping
    ):
        # Without install, the trainer takes no hooks of this package.
        their_form = "hook" if "hook" in form else "grad_clip"
        expected = program(theirs, **clipped_by(their_form, theirs, clipping))
        library = request.getfixturevalue(family)
        with (
            lab.install(),
            mock.patch("torch.nn.utils.clip_grad._get_total_norm", None),
        ):
            clipped = program(theirs, **clipped_by(form, library, clipping))
        assert clipped == expected

    def test_gives_the_same_without_clipping(self, theirs, ours):
        log, params = assert_same_installed(lambda: program(theirs))
        clipped = program(theirs, **clipped_by("grad_clip", theirs, NORM))[1]
        assert log and params != clipped
        with lab.install():
            hooks = [ours.OptimizerHookConfig(), ours.OptimizerHook()]
            assert program(theirs, hooks) == (log, params)

    @pytest.mark.contract("F8")
    @pytest.mark.parametrize("first", ["ours", "theirs"])
    @pytest.mark.parametrize("second", ["ours", "theirs"])
    def test_steps_after_clipping_in_any_order(
        self, request, theirs, first, second
    ):
        """An OptimizerHook before the clipping is no reason to warn: it does
        nothing, and the trainer steps when on_step has been left."""
        first, second = map(request.getfixturevalue, (first, second))
        expected = program(theirs, **clipped_by("hook", theirs, NORM))
        with lab.install():
            hooks = [
                without_warnings(first.OptimizerHook, None),
                *clipped_by("hook", second, NORM)["hooks"],
            ]
            assert program(theirs, hooks) == expected

    def test_raises_where_this_package_s_config_asks_for_it(
        self, theirs, ours
    ):
        config = ours.GradientClippingHookConfig(
            **NORM, error_if_nonfinite=True
        )
        _, start = program(theirs, fail_at=0)
        with lab.install():
            for options in ({"grad_clip": config}, {"hooks": [config]}):
                log, params = program(theirs, scale=math.inf, **options)
                assert log[-1] is RuntimeError and params == start

    @pytest.mark.parametrize("given", [1, "on_step", {1}, [int]])
    def test_refuses_what_is_no_hooks_as_before(self, theirs, given):
        def call():
            with pytest.raises(TypeError) as raised:
                program(theirs, hooks=given)
            return str(raised.value).partition(" but got")[0]

        assert assert_same_installed(call).startswith("Expected PipelineHooks")


def config(library):
    return library.GradientClippingHookConfig(**NORM)


def hook(library):
    return without_warnings(config(library))


class TestSplitting:
    """What the trainer makes of clipping beside other clipping."""

    @pytest.mark.parametrize(
        "families", [("ours", "ours"), ("ours", "theirs"), ("theirs", "ours")]
    )
    def test_is_the_same_for_both_families(self, request, theirs, families):
        def split(libraries, makes, grad_clip, is_deepspeed):
            given = [
                make(library)
                for make, library in zip(makes, libraries, strict=True)
                if make
            ]
            clip = grad_clip and grad_clip(libraries[0])
            try:
                hooks, found = theirs.trainer._split_gradient_clipping_config(
                    hooks=[*given, theirs.PipelineHooks()],
                    grad_clip=clip,
                    is_deepspeed=is_deepspeed,
                )
            except ValueError as error:
                return str(error)
            known = [*map(id, given), id(clip)]
            return (
                [known.index(id(each)) for each in hooks[:-1]],
                found and known.index(id(found)),
            )

        cases = list(
            itertools.product(
                itertools.product((config, hook, None), repeat=2),
                (config, None),
                (False, True),
            )
        )
        expected = [split((theirs, theirs), *case) for case in cases]
        libraries = tuple(map(request.getfixturevalue, families))
        with lab.install():
            assert [split(libraries, *case) for case in cases] == expected
            theirs_now = [split((theirs, theirs), *case) for case in cases]
            assert theirs_now == expected

    def test_of_an_error_that_deepspeed_does_not_give(self, theirs, ours):
        own = ours.GradientClippingHookConfig(**NORM, error_if_nonfinite=True)
        with lab.install():
            for options in (
                {"hooks": [own], "grad_clip": None},
                {"hooks": [], "grad_clip": own},
            ):
                with pytest.raises(ValueError, match="^GradientClippingHookC"):
                    theirs.trainer._split_gradient_clipping_config(
                        **options, is_deepspeed=True
                    )


class TestException:
    def test_of_a_failing_body_is_seen_and_stays(self, theirs):
        clipping = clipped_by("grad_clip", theirs, NORM)
        log, _ = assert_same_installed(
            lambda: program(theirs, fail_at=3, **clipping)
        )
        assert log[-1] is ZeroDivisionError
        failed = [
            event
            for event, args in log[:-1]
            if args["exception"] == "ZeroDivisionError()"
        ]
        assert failed == [
            *("on_model_forward", "on_batch", "on_step", "on_epoch"),
            "on_loop",
        ]

    def test_of_a_failing_before_is_told_too(self, theirs):
        """Without install it is not, and hooks that run after the failure
        take the step for a good one (F3)."""

        def call():
            args, seen = theirs.PipelineHookArgs(accelerator=1), []
            hooks = theirs.PipelineHooks()
            hooks.register_hook(
                "on_step",
                HookContext.from_callable(
                    before=lambda args: 1 / 0,
                    after=lambda args: seen.append(type(args.exception)),
                ),
            )
            with pytest.raises(ZeroDivisionError):
                run(hooks, args)
            return seen

        assert call() == [type(None)]
        with lab.install():
            assert call() == [ZeroDivisionError]


class TestTheirHooks:
    @pytest.mark.parametrize(
        ("name", "category"),
        [
            ("GradientClippingHook", FutureWarning),
            ("OptimizerHook", DeprecationWarning),
        ],
    )
    def test_still_warns_where_it_is_made(self, theirs, name, category):
        with lab.install(), pytest.warns(category) as caught:
            getattr(theirs, name)(config(theirs))
        assert [each.filename for each in caught] == [__file__]

    def test_still_refuses_deepspeed(self, theirs):
        args = theirs.PipelineHookArgs(
            SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
        )

        off = assert_same_installed(lambda: run(hook(theirs), args))
        assert off[0] is RuntimeError and "DeepSpeed is act" in off[1]

    @pytest.mark.parametrize(
        "updates", [{"exception": KeyError()}, {"optimizer": None}]
    )
    def test_still_looks_at_the_arguments_first(self, theirs, updates):
        def call():
            param = torch.nn.Parameter(torch.zeros(2))
            param.grad = torch.tensor([3.0, 4.0])
            args = theirs.PipelineHookArgs(
                Accelerator(cpu=True),
                **{"optimizer": torch.optim.SGD([param], lr=1), **updates},
            )
            found = outcome(lambda: run(hook(theirs), args))
            return found, param.grad.tolist()

        assert_same_installed(call)
