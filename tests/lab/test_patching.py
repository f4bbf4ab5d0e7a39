"""A RoboOrchardLab of which a name is missing, differs or is patched."""

import functools
import sys
from contextlib import contextmanager
from unittest import mock

import pytest
from robo_orchard_core.utils import hook as core

import upstream
from helpers.lab import HOOKS
from robo_orchard_fasthooks import lab
from robo_orchard_fasthooks._lab import patching

MIXIN, GRAD_CLIP = upstream.mixin, upstream.grad_clip
INIT = f"{HOOKS}.mixin.PipelineHooks.__init__"
BEGIN = f"{HOOKS}.mixin.PipelineHooks.begin"
REGISTER = f"{HOOKS}.mixin.PipelineHooks.register_hook"
FROM_HOOKS = f"{HOOKS}.mixin.PipelineHooks.from_hooks"
ARGS = f"{HOOKS}.mixin.PipelineHookArgs.__init__"
COPY = f"{HOOKS}.mixin.PipelineHookArgs.copy_with_updates"
CLIP = f"{HOOKS}.grad_clip.GradientClippingHook._gradient_clipping"
STEP = f"{HOOKS}.optimizer.OptimizerHook._optimizer_step"
OWNERS = {
    **dict.fromkeys((INIT, BEGIN, REGISTER, FROM_HOOKS), MIXIN.PipelineHooks),
    **dict.fromkeys((ARGS, COPY), MIXIN.PipelineHookArgs),
    CLIP: GRAD_CLIP.GradientClippingHook,
    STEP: upstream.optimizer.OptimizerHook,
}
NO_NAME = "there is no such name"
BY_OTHERS = f"it is patched by {__name__}"
NOT_PLAIN = "PipelineHookArgs is not a plain dataclass: it"


def namespaces():
    owners = MIXIN, GRAD_CLIP, *OWNERS.values()
    return [dict(vars(owner)) for owner in owners]


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    before = namespaces()
    yield
    assert namespaces() == before


@contextmanager
def left_alone(reasons):
    """Installs all but these names, for these reasons, and it works."""
    before = namespaces()
    with pytest.warns(UserWarning) as caught:
        installation = lab.install()
    with installation:
        (warning,) = caught
        message = str(warning.message)
        assert warning.filename == __file__
        names = dict(lab.status().names)
        for name, reason in reasons.items():
            assert names.pop(name) == f"original: {reason}"
            assert f"{name}: {reason}" in message
        assert names and set(names.values()) == {"replaced"}
        assert all(name not in message for name in names)
        assert MIXIN.PipelineHookArgs(accelerator=1, step_id=2).step_id == 2
        yield
    assert namespaces() == before


def made_there(source):
    """A function that is defined in one of RoboOrchardLab's modules."""
    namespace = {}
    exec(source, vars(MIXIN), namespace)
    (function,) = namespace.values()
    return function


@pytest.mark.parametrize(
    ("owner", "attribute", "reasons"),
    [
        (MIXIN.PipelineHooks, "begin", {BEGIN: NO_NAME}),
        (MIXIN.PipelineHookArgs, "copy_with_updates", {COPY: NO_NAME}),
        (GRAD_CLIP, "GradientClippingHook", {CLIP: NO_NAME}),
        (vars(GRAD_CLIP), "GradientClippingHook", {CLIP: NO_NAME}),
        (
            sys.modules,
            f"{HOOKS}.grad_clip",
            {CLIP: "there is no such module"},
        ),
    ],
)
def test_what_is_gone(monkeypatch, owner, attribute, reasons):
    if isinstance(owner, dict):
        monkeypatch.setitem(owner, attribute, None)
    else:
        monkeypatch.delattr(owner, attribute)
    with left_alone(reasons):
        pass


def test_what_is_left_alone_is_told_once_and_replaced_once_it_is_back():
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(MIXIN.PipelineHooks, "begin")
        with pytest.warns(UserWarning, match=NO_NAME):
            lab.install()
        lab.install()  # Without a warning.
        assert lab.status().names[BEGIN] == f"original: {NO_NAME}"
    lab.install()
    assert set(lab.status().names.values()) == {"replaced"}
    lab.uninstall()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        (BEGIN, "self, channel, arg, more"),
        (REGISTER, "self, name, hook"),
        (FROM_HOOKS, "cls, hook"),
        (COPY, "self, kwargs"),
        (CLIP, "self, args"),
        (STEP, "self, args"),
    ],
)
def test_other_parameters(monkeypatch, name, parameters):
    attribute = name.rpartition(".")[2]
    function = made_there(f"def {attribute}({parameters}): pass")
    if name == FROM_HOOKS:
        function = classmethod(function)
    monkeypatch.setattr(OWNERS[name], attribute, function)
    with left_alone({name: f"its parameters are ({parameters})"}):
        pass


@pytest.mark.parametrize("name", [INIT, BEGIN, CLIP])
def test_a_mock_stays(monkeypatch, name):
    patch = mock.Mock(return_value=None)
    monkeypatch.setattr(OWNERS[name], name.rpartition(".")[2], patch)
    with left_alone({name: f"it is patched by {patch!r}"}):
        pass


@pytest.mark.parametrize("kind", ["function", "context manager"])
def test_a_wrapper_stays(monkeypatch, kind):
    original, begun = MIXIN.PipelineHooks.begin, []

    @functools.wraps(original)
    def function(self, channel, arg):
        begun.append(channel)
        return original(self, channel, arg)

    @contextmanager
    def manager(self, channel, arg):
        begun.append(channel)
        with original(self, channel, arg) as given:
            yield given

    wrapper = function if kind == "function" else manager
    monkeypatch.setattr(MIXIN.PipelineHooks, "begin", wrapper)
    with left_alone({BEGIN: BY_OTHERS}):
        with MIXIN.PipelineHooks().begin("on_step", None):
            assert begun == ["on_step"]


def test_a_patched_init_of_the_arguments_stays(monkeypatch):
    original, made = MIXIN.PipelineHookArgs.__init__, []

    @functools.wraps(original)
    def patch(self, *args, **kwargs):
        made.append(kwargs)
        original(self, *args, **kwargs)

    monkeypatch.setattr(MIXIN.PipelineHookArgs, "__init__", patch)
    reason = f"{NOT_PLAIN}s __init__ has * or ** parameters"
    with left_alone({ARGS: BY_OTHERS, COPY: reason}):
        assert made == [{"accelerator": 1, "step_id": 2}]


def test_arguments_that_are_no_plain_dataclass(monkeypatch):
    source = "def __setattr__(self, name, value): self.__dict__[name] = value"
    patch = made_there(source)
    monkeypatch.setattr(MIXIN.PipelineHookArgs, "__setattr__", patch)
    reason = f"{NOT_PLAIN} has a __setattr__"
    with left_alone(dict.fromkeys([ARGS, COPY], reason)):
        pass


def test_channels_that_others_patched_stay(monkeypatch):
    original, begun = core.HookContextChannel.begin, []

    def begin(self, arg):
        begun.append(self.name)
        return original(self, arg)

    monkeypatch.setattr(core.HookContextChannel, "begin", begin)
    with left_alone({INIT: BY_OTHERS}):
        with MIXIN.PipelineHooks().begin("on_step", None):
            assert begun == ["on_step"]


def test_hooks_that_are_no_dict_stay():
    class Registry:
        def __setitem__(self, name, channel):
            setattr(self, name, channel)

    class Hooks(MIXIN.PipelineHooks):
        registry = Registry()
        hooks = property(lambda self: self.registry, lambda self, hooks: None)

    with lab.install():
        assert type(Hooks().hooks.on_step) is core.HookContextChannel


@pytest.mark.parametrize("number", [0, 8])
def test_a_failure_rolls_back(monkeypatch, number):
    replace, calls = patching.Patch.replace, []

    def failing(self, undo):
        calls.append(self)
        replaced = replace(self, undo)
        if len(calls) == number + 1:
            raise RuntimeError("no more")
        return replaced

    monkeypatch.setattr(patching.Patch, "replace", failing)
    before = namespaces()
    with pytest.raises(RuntimeError, match="^no more$"):
        lab.install()
    assert namespaces() == before and not lab.status().installed
    assert type(MIXIN.PipelineHooks().hooks["on_step"]) is (
        MIXIN.HookContextChannel
    )


def test_a_warning_that_is_made_an_error_rolls_back(monkeypatch):
    monkeypatch.delattr(MIXIN.PipelineHooks, "begin")
    before = namespaces()
    with pytest.raises(UserWarning, match=NO_NAME):
        lab.install()
    assert namespaces() == before and not lab.status().installed
