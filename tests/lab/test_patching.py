"""A RoboOrchardLab of which a name is missing, differs or is patched."""

import functools
import re
import sys
import warnings
from contextlib import ExitStack, contextmanager
from types import ModuleType
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
OWNERS = (
    *(MIXIN, MIXIN.PipelineHooks, MIXIN.PipelineHookArgs),
    *(GRAD_CLIP, GRAD_CLIP.GradientClippingHook),
)


def namespaces():
    return [dict(vars(owner)) for owner in OWNERS]


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    before = namespaces()
    yield
    installed = lab.status().installed
    lab.uninstall()  # That other tests do not fail too.
    assert not installed and namespaces() == before


def install_with_one_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        installation = lab.install()
    if len(caught) != 1:
        lab.uninstall()
    (warning,) = caught
    assert warning.filename == __file__ and warning.category is UserWarning
    return installation, str(warning.message)


def assert_left_alone(reasons):
    """Installs all but these names, for these reasons, and it works."""
    before = namespaces()
    installation, message = install_with_one_warning()
    with installation:
        names = dict(lab.status().names)
        for name, reason in reasons.items():
            assert names.pop(name) == f"original: {reason}"
            assert f"{name}: {reason}" in message
        assert names and set(names.values()) == {"replaced"}
        assert all(name not in message for name in names)
        assert MIXIN.PipelineHookArgs(accelerator=1, step_id=2).step_id == 2
        log = []
        hooks = MIXIN.PipelineHooks()
        if not {BEGIN, REGISTER} & reasons.keys():
            hooks.register_hook(
                "on_step",
                MIXIN.HookContext.from_callable(before=log.append),
            )
            with hooks.begin("on_step", 1):
                pass
            assert log == [1]
    assert namespaces() == before


@pytest.mark.parametrize(
    ("owner", "attribute", "name"),
    [
        (MIXIN.PipelineHooks, "begin", BEGIN),
        (MIXIN.PipelineHookArgs, "copy_with_updates", COPY),
        (GRAD_CLIP, "GradientClippingHook", CLIP),
    ],
)
def test_a_name_that_is_gone(monkeypatch, owner, attribute, name):
    monkeypatch.delattr(owner, attribute)
    assert_left_alone({name: "there is no such name"})


def test_a_class_that_is_no_class(monkeypatch):
    monkeypatch.setattr(GRAD_CLIP, "GradientClippingHook", 1)
    assert_left_alone({CLIP: "there is no such name"})


def test_a_module_that_is_gone(monkeypatch):
    monkeypatch.setitem(sys.modules, f"{HOOKS}.grad_clip", None)
    assert_left_alone({CLIP: "there is no such module"})


def made_there(source, module=MIXIN):
    """A function that is defined in one of RoboOrchardLab's modules."""
    namespace = {}
    exec(source, vars(module), namespace)
    (function,) = namespace.values()
    return function


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (BEGIN, "def begin(self, channel, arg, more=1): pass"),
        (REGISTER, "def register_hook(self, name, hook): pass"),
        (FROM_HOOKS, "@classmethod\ndef from_hooks(cls, hook): pass"),
        (COPY, "def copy_with_updates(self, kwargs): pass"),
        (COPY, "def copy_with_updates(self, other): pass"),
        (CLIP, "def _gradient_clipping(self, args): pass"),
    ],
)
def test_other_parameters(monkeypatch, name, source):
    owner = (
        GRAD_CLIP.GradientClippingHook
        if name == CLIP
        else getattr(MIXIN, name.split(".")[-2])
    )
    function = made_there(source)
    monkeypatch.setattr(owner, name.rpartition(".")[2], function)
    given = re.search(r"\((.*)\)", source)[1]
    given = given.replace("=1", "")
    assert_left_alone({name: f"its parameters are ({given})"})


def test_a_user_s_wrapper_stays(monkeypatch):
    original, calls = vars(MIXIN.PipelineHooks)["register_hook"], []

    @functools.wraps(original)
    def wrapper(self, channel, hook):
        calls.append(channel)
        return original(self, channel, hook)

    monkeypatch.setattr(MIXIN.PipelineHooks, "register_hook", wrapper)
    assert_left_alone({REGISTER: f"it is patched by {__name__}"})
    with install_with_one_warning()[0]:
        hook = MIXIN.HookContext.from_callable()
        MIXIN.PipelineHooks().register_hook("on_loop", hook)
    assert calls == ["on_loop"]


@pytest.mark.parametrize(
    ("cls", "attribute", "name"),
    [
        (MIXIN.PipelineHooks, "begin", BEGIN),
        (MIXIN.PipelineHooks, "__init__", INIT),
        (GRAD_CLIP.GradientClippingHook, "_gradient_clipping", CLIP),
    ],
)
def test_a_user_s_mock_stays(monkeypatch, cls, attribute, name):
    patch = mock.Mock(return_value=None)
    monkeypatch.setattr(cls, attribute, patch)
    with install_with_one_warning()[0]:
        assert vars(cls)[attribute] is patch
        found = lab.status().names
        assert found[name] == f"original: it is patched by {patch!r}"
        assert list(found.values()).count("replaced") == len(found) - 1


def test_a_patched_init_of_the_arguments_stays(monkeypatch):
    original, made = MIXIN.PipelineHookArgs.__init__, []

    @functools.wraps(original)
    def patch(self, *args, **kwargs):
        made.append(kwargs)
        original(self, *args, **kwargs)

    monkeypatch.setattr(MIXIN.PipelineHookArgs, "__init__", patch)
    reason = "PipelineHookArgs is not a plain dataclass: its __init__ has "
    assert_left_alone(
        {
            ARGS: f"it is patched by {__name__}",
            COPY: f"{reason}* or ** parameters",
        }
    )
    assert made == [{"accelerator": 1, "step_id": 2}]


def test_a_context_manager_of_others_stays(monkeypatch):
    original, begun = MIXIN.PipelineHooks.begin, []

    @contextmanager
    def begin(self, channel, arg):
        begun.append(channel)
        with original(self, channel, arg) as given:
            yield given

    monkeypatch.setattr(MIXIN.PipelineHooks, "begin", begin)
    assert_left_alone({BEGIN: f"it is patched by {__name__}"})
    installation, _ = install_with_one_warning()
    with installation, MIXIN.PipelineHooks().begin("on_step", None):
        assert begun == ["on_step"]


def test_channels_that_others_patched_stay(monkeypatch):
    original, begun = core.HookContextChannel.begin, []

    def begin(self, arg):
        begun.append(self.name)
        return original(self, arg)

    monkeypatch.setattr(core.HookContextChannel, "begin", begin)
    assert_left_alone({INIT: f"it is patched by {__name__}"})
    assert begun


def test_hooks_that_are_no_dict_stay():
    class Registry:
        def __setitem__(self, name, channel):
            setattr(self, name, channel)

    class Hooks(MIXIN.PipelineHooks):
        registry = Registry()
        hooks = property(lambda self: self.registry, lambda self, hooks: None)

    with lab.install():
        assert type(Hooks().hooks.on_step) is core.HookContextChannel


def test_several_are_named_in_one_warning(monkeypatch):
    for attribute in ("begin", "register_hook"):
        monkeypatch.delattr(MIXIN.PipelineHooks, attribute)
    assert_left_alone(
        dict.fromkeys([BEGIN, REGISTER], "there is no such name")
    )


def test_arguments_that_are_no_plain_dataclass(monkeypatch):
    source = "def __setattr__(self, name, value): self.__dict__[name] = value"
    patch = made_there(source)
    monkeypatch.setattr(MIXIN.PipelineHookArgs, "__setattr__", patch)
    reason = "PipelineHookArgs is not a plain dataclass: it has a __setattr__"
    assert_left_alone(dict.fromkeys([ARGS, COPY], reason))


@pytest.mark.parametrize("number", [0, 7])
def test_a_failure_rolls_back(monkeypatch, number):
    replace, calls = patching.Patch.replace, []

    def failing(self, undo):
        calls.append(self)
        if len(calls) == number + 1:
            # At its worst: it has been replaced already.
            replace(self, undo)
            raise RuntimeError("no more")
        return replace(self, undo)

    monkeypatch.setattr(patching.Patch, "replace", failing)
    before = namespaces()
    with pytest.raises(RuntimeError, match="^no more$"):
        lab.install()
    assert namespaces() == before and not lab.status().installed
    assert type(MIXIN.PipelineHooks().hooks["on_step"]) is (
        MIXIN.HookContextChannel
    )
    monkeypatch.undo()
    with lab.install():
        assert set(lab.status().names.values()) == {"replaced"}


def test_a_warning_that_is_made_an_error_rolls_back(monkeypatch):
    monkeypatch.delattr(MIXIN.PipelineHooks, "begin")
    before = namespaces()
    with pytest.raises(UserWarning, match="there is no such name"):
        lab.install()
    assert namespaces() == before and not lab.status().installed


def test_what_print_fails_with_rolls_back(monkeypatch):
    monkeypatch.setattr(lab, "status", mock.Mock(side_effect=OSError))
    before = namespaces()
    with pytest.raises(OSError):
        lab.install(verbose=True)
    monkeypatch.undo()
    assert namespaces() == before


class TestPatch:
    """Of a module of its own."""

    @pytest.fixture
    def module(self, monkeypatch):
        module = ModuleType("a_package.there")
        exec("def f(a): return 1\nclass C:\n  g = f\n  n = 1", vars(module))
        monkeypatch.setitem(sys.modules, "a_package", ModuleType("a_package"))
        monkeypatch.setitem(sys.modules, "a_package.there", module)
        return module

    def patch(self, path="f", parameters="a"):
        return patching.Patch(
            "a_package.there", path, lambda *given: given, parameters
        )

    @pytest.mark.parametrize("path", ["f", "C.g"])
    def test_is_replaced_and_put_back(self, module, path):
        patch = self.patch(path)
        assert patch.name == f"a_package.there.{path}"
        owner = module if path == "f" else module.C
        original = vars(owner)[path[-1]]
        with ExitStack() as undo:
            replaced = patch.replace(undo)
            assert replaced.is_active
            assert vars(owner)[path[-1]] == (owner, original)
            setattr(owner, path[-1], 1)
            assert not replaced.is_active
            setattr(owner, path[-1], replaced.replacement)
        assert vars(owner)[path[-1]] is original

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("h", "there is no such name"),
            ("C.h", "there is no such name"),
            ("D.g", "there is no such name"),
            ("C.n.g", "there is no such name"),
            ("C.n", "it is patched by 1"),
        ],
    )
    def test_what_is_not_there(self, module, path, reason):
        with pytest.raises(patching.PatchError, match=f"^{reason}$"):
            self.patch(path).replace(ExitStack())

    def test_of_a_module_that_needs_another(self, monkeypatch, tmp_path):
        package = ModuleType("a_package")
        package.__path__ = [str(tmp_path)]
        tmp_path.joinpath("there.py").write_text("import no_such_thing")
        monkeypatch.setitem(sys.modules, "a_package", package)
        with pytest.raises(ModuleNotFoundError, match="no_such_thing"):
            self.patch().replace(ExitStack())
        tmp_path.joinpath("there.py").unlink()
        with pytest.raises(patching.PatchError, match="no such module"):
            self.patch().replace(ExitStack())

    def test_other_parameters(self, module):
        with pytest.raises(patching.PatchError, match=r"are \(a\)$"):
            self.patch(parameters="b").replace(ExitStack())
        with ExitStack() as undo:
            self.patch(parameters=None).replace(undo)
