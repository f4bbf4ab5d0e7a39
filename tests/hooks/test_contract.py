"""Names, signatures and defaults, against upstream's."""

import dataclasses
import importlib.metadata
import inspect
import typing

import pytest
import robo_orchard_core.utils.config
from robo_orchard_core.utils import hook as core

import robo_orchard_fasthooks
import upstream
from robo_orchard_fasthooks import __main__, grad_clip, mixin, optimizer

MODULES = {"mixin": mixin, "grad_clip": grad_clip, "optimizer": optimizer}


def parameters(function):
    return [
        (parameter.name, parameter.default)
        for parameter in inspect.signature(function).parameters.values()
    ]


@pytest.mark.parametrize("name", MODULES)
def test_names_of_the_modules(name):
    theirs, ours = getattr(upstream, name), MODULES[name]
    assert set(theirs.__all__) <= set(ours.__all__)
    for exported in theirs.__all__:
        member = getattr(ours, exported)
        assert getattr(robo_orchard_fasthooks, exported) is member
        if inspect.isclass(member):
            assert inspect.getdoc(member)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (upstream.mixin, "PipelineHooks"),
        (upstream.mixin, "PipelineHooksConfig"),
        (upstream.grad_clip, "GradientClippingHook"),
        (core, "HookContextChannel"),
        (core, "RemoveableHandle"),
    ],
)
def test_members_of_the_classes(module, name):
    theirs = getattr(module, name)
    ours = getattr(robo_orchard_fasthooks, name)
    assert {n for n in dir(theirs) if not n.startswith("_")} <= set(dir(ours))
    for member, value in vars(theirs).items():
        if inspect.isfunction(value) and member != "__init__":
            mine = getattr(ours, member)
            assert inspect.getdoc(mine) or member.startswith("_"), member
            if not isinstance(mine, type(object.__init__)):  # A C slot.
                assert parameters(mine) == parameters(value), member


def test_begin_shows_its_parameters_with_types():
    begin = mixin.PipelineHooks.begin
    shown = str(inspect.signature(begin))
    assert "channel: Literal['on_loop'," in shown and "arg: robo" in shown
    assert typing.get_type_hints(begin)["arg"] is mixin.PipelineHookArgs
    assert "KeyError: The channel does not exist." in inspect.getdoc(begin)


def test_the_version_is_that_of_the_metadata(monkeypatch, capsys):
    version = importlib.metadata.version("robo_orchard_fasthooks")
    assert robo_orchard_fasthooks.__version__ == version
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = robo_orchard_fasthooks.absent
    monkeypatch.setattr("sys.argv", ["robo_orchard_fasthooks", "--version"])
    with pytest.raises(SystemExit, match="0"):
        __main__.main()
    assert capsys.readouterr().out == f"robo_orchard_fasthooks {version}\n"


def test_channel_names():
    names = typing.get_args(upstream.mixin.PipelineHookChanelType)
    assert typing.get_args(mixin.PipelineHookChanelType) == names
    hooks = mixin.PipelineHooks(cfg=None).hooks
    assert tuple(hooks) == names
    assert tuple(channel.name for channel in hooks.values()) == names


@pytest.mark.contract("K10")
def test_bases():
    config = robo_orchard_core.utils.config
    assert issubclass(mixin.PipelineHooks, config.ClassInitFromConfigMixin)
    assert mixin.PipelineHooks.InitFromConfig is True
    assert issubclass(mixin.PipelineHooksConfig, config.ClassConfig)
    assert issubclass(grad_clip.GradientClippingHook, mixin.PipelineHooks)
    assert issubclass(
        grad_clip.GradientClippingHookConfig, mixin.PipelineHooksConfig
    )
    assert mixin.HookContext is core.HookContext
    assert mixin.ClassType is config.ClassType


def test_config_fields():
    theirs = upstream.grad_clip.GradientClippingHookConfig.model_fields
    ours = grad_clip.GradientClippingHookConfig.model_fields
    assert list(ours)[: len(theirs)] == list(theirs)
    for name in theirs.keys() - {"class_type"}:
        assert ours[name].default == theirs[name].default
    assert ours["class_type"].default is grad_clip.GradientClippingHook


def test_fields_and_type_hints_of_the_arguments():
    described, hints = [], []
    for module in (upstream.mixin, mixin):
        cls = module.PipelineHookArgs
        fields = dataclasses.fields(cls)
        described.append({f.name: (f.default, f.type) for f in fields})
        hints.append(typing.get_type_hints(cls))
        for name in ("model_outputs", "dataloader"):
            hints[-1][name] = str(hints[-1][name]).split(".")[-1]
    assert described[1].pop("exception") == (None, "Optional[BaseException]")
    assert hints[1].pop("exception") == typing.Optional[BaseException]
    assert described[0] == described[1] and hints[0] == hints[1]


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
