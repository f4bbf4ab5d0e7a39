"""Names, signatures and defaults, against upstream's API documents."""

import dataclasses
import inspect
import typing

import pytest
import robo_orchard_core.utils.config
from robo_orchard_core.utils import hook as core

import robo_orchard_fasthooks
import upstream
from robo_orchard_fasthooks import grad_clip, mixin, optimizer

REQUIRED = object()

# From the API documents of release 0.2: parameters and their defaults.
MIXIN = {
    "PipelineHookArgs": {
        "copy_with_updates": {"kwargs": REQUIRED},
    },
    "PipelineHooks": {
        "__init__": {"cfg": None},
        "begin": {"channel": REQUIRED, "arg": REQUIRED},
        "register_hook": {"channel": REQUIRED, "hook": REQUIRED},
        "register_pipeline_hooks": {"hooks": REQUIRED},
        "unregister_all": {},
        "from_hooks": {"hooks": REQUIRED},
    },
}
GRAD_CLIP = {
    "GradientClippingHook": {
        **MIXIN["PipelineHooks"],
        "__init__": {"cfg": REQUIRED},
    }
}
CHANNELS = (
    "on_loop",
    "on_epoch",
    "on_step",
    "on_batch",
    "on_model_forward",
    "on_model_backward",
)


def parameters(function):
    return {
        name: REQUIRED
        if parameter.default is parameter.empty
        else parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self"
    }


@pytest.mark.parametrize(
    ("module", "table"), [(mixin, MIXIN), (grad_clip, GRAD_CLIP)]
)
def test_every_documented_signature(module, table):
    for class_name, methods in table.items():
        cls = getattr(module, class_name)
        for name, expected in methods.items():
            assert parameters(getattr(cls, name)) == expected, name


def test_channel_names():
    assert typing.get_args(mixin.PipelineHookChanelType) == CHANNELS
    assert tuple(mixin.PipelineHooks().hooks) == CHANNELS
    for name, channel in mixin.PipelineHooks().hooks.items():
        assert channel.name == name


def test_bases():
    config = robo_orchard_core.utils.config
    assert issubclass(mixin.PipelineHooks, config.ClassInitFromConfigMixin)
    assert mixin.PipelineHooks.InitFromConfig is True
    assert issubclass(mixin.PipelineHooksConfig, config.ClassConfig)
    assert issubclass(grad_clip.GradientClippingHook, mixin.PipelineHooks)
    assert issubclass(
        grad_clip.GradientClippingHookConfig, mixin.PipelineHooksConfig
    )


def test_config_fields():
    fields = grad_clip.GradientClippingHookConfig.model_fields
    defaults = {
        name: REQUIRED if field.is_required() else field.default
        for name, field in fields.items()
    }
    assert defaults == {
        "class_type": grad_clip.GradientClippingHook,
        "clip_mode": REQUIRED,
        "clip_value": None,
        "max_norm": None,
        "norm_type": 2.0,
        # Ours, behind upstream's.
        "error_if_nonfinite": False,
        "foreach": None,
        "cuda_graph": None,
    }


def test_hook_attributes():
    hook = grad_clip.GradientClippingHookConfig(
        clip_mode="value", clip_value=1, max_norm=2, norm_type="inf"
    )()
    assert (hook.clip_mode, hook.clip_value) == ("value", 1.0)
    assert (hook.max_norm, hook.norm_type) == (2.0, float("inf"))


@pytest.mark.parametrize("name", ["mixin", "grad_clip", "optimizer"])
def test_names_of_the_modules_of_0_4(name):
    theirs, ours = getattr(upstream, name), globals()[name]
    missing = set(theirs.__all__) - set(ours.__all__)
    assert missing == set()
    for exported in theirs.__all__:
        assert getattr(robo_orchard_fasthooks, exported) is getattr(
            ours, exported
        )


@pytest.mark.parametrize(
    "cls", ["PipelineHooks", "PipelineHooksConfig", "GradientClippingHook"]
)
def test_members_of_the_classes_of_0_4(cls):
    theirs = getattr(upstream.grad_clip, cls, None) or getattr(
        upstream.mixin, cls
    )
    ours = getattr(robo_orchard_fasthooks, cls)
    assert {n for n in dir(theirs) if not n.startswith("_")} <= set(dir(ours))
    for name, member in vars(theirs).items():
        if inspect.isfunction(member) and name != "__init__":
            assert parameters(getattr(ours, name)) == parameters(member), name


def test_fields_of_0_4():
    def described(cls):
        return {
            field.name: (field.default, field.type)
            for field in dataclasses.fields(cls)
        }

    theirs = described(upstream.mixin.PipelineHookArgs)
    ours = described(mixin.PipelineHookArgs)
    assert ours.pop("exception") == (None, "Optional[BaseException]")
    assert ours == theirs


def test_type_hints_of_0_4():
    theirs = typing.get_type_hints(upstream.mixin.PipelineHookArgs)
    ours = typing.get_type_hints(mixin.PipelineHookArgs)
    assert ours.pop("exception") == typing.Optional[BaseException]
    for hints in (ours, theirs):
        hints["model_outputs"] = str(hints["model_outputs"]).split(".")[-1]
        hints["dataloader"] = str(hints["dataloader"]).split(".")[-1]
    assert ours == theirs


@pytest.mark.parametrize("name", ["HookContextChannel", "RemoveableHandle"])
def test_members_of_robo_orchard_core(name):
    theirs, ours = getattr(core, name), getattr(mixin, name)
    for member, value in vars(theirs).items():
        if inspect.isfunction(value):
            mine = getattr(ours, member)
            if not isinstance(mine, type(object.__init__)):  # A C slot.
                assert parameters(mine) == parameters(value), member


def test_every_public_name_is_documented():
    for module in (mixin, grad_clip, optimizer):
        for name in set(module.__all__) & set(vars(module)):
            member = getattr(module, name)
            if not str(getattr(member, "__module__", "")).startswith(
                "robo_orchard_fasthooks"
            ):
                continue
            assert inspect.getdoc(member), name
            if not inspect.isclass(member):
                continue
            for method, value in vars(member).items():
                if callable(value) and not method.startswith("_"):
                    assert inspect.getdoc(value), f"{name}.{method}"


def test_hook_context_is_robo_orchard_core_s():
    assert mixin.HookContext is core.HookContext
    assert mixin.ClassType is robo_orchard_core.utils.config.ClassType


@pytest.mark.parametrize("lacking", ["keys", "items", "values", "__getitem__"])
def test_model_output_protocols(lib, lacking):
    names = {"keys", "items", "values", "__getitem__", "loss_keys"}
    whole = type("Whole", (), dict.fromkeys(names, lambda self: None))()
    part = type("Part", (), dict.fromkeys(names - {lacking}, print))()
    assert isinstance(whole, lib.ModelOutput)
    assert isinstance(whole, lib.ModelOutputHasLossKeys)
    assert isinstance({}, lib.ModelOutput)
    assert not isinstance({}, lib.ModelOutputHasLossKeys)
    assert not isinstance(part, lib.ModelOutput)
