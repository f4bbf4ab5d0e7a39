"""Changes made after a hook was registered, and while it runs."""

import gc
import subprocess
import sys
from unittest import mock

import pytest

from helpers.hooks import HookContext, Logging
from helpers.implementations import INSTALLED, PROFILED

pytestmark = pytest.mark.also_on(*INSTALLED, *PROFILED)


def run(hooks):
    with hooks.begin("on_step", None):
        pass


@pytest.mark.contract("K7")
class TestPatching:
    """What is changed late counts at the next call."""

    @pytest.mark.parametrize("phase", ["before", "after"])
    @pytest.mark.parametrize("kind", ["from_callable", "subclass"])
    @pytest.mark.parametrize("owner", ["instance", "annotated", "class"])
    def test_of_a_hook(self, hooks, hook, log, kind, phase, owner):
        target = hook("a") if kind == "from_callable" else Logging(log, "a")
        if owner == "annotated":
            target.note = "mine"
        hooks.register_hook("on_step", target)
        run(hooks)
        patched_object = type(target) if owner == "class" else target
        with mock.patch.object(patched_object, phase) as patched:
            run(hooks)
        patched.assert_called_once_with(None)
        assert log.count(f"{phase} a") == 1
        run(hooks)
        assert log.count(f"{phase} a") == 2

    def test_of_a_callback_while_it_runs(self, hooks):
        """The function that runs must outlive its own replacement."""

        class Replacing:
            def __call__(self, args):
                hook._before = None
                gc.collect()
                return self

        hook = HookContext.from_callable(before=Replacing())
        hooks.register_hook("on_step", hook)
        run(hooks)
        assert hook._before is None
        run(hooks)

    def test_of_the_class_before_this_package_was_imported(self):
        script = """
from robo_orchard_core.utils.hook import HookContext
seen = []
hook = HookContext.from_callable(before=seen.append)
type(hook).before = lambda self, arg: seen.append("patched")
from robo_orchard_fasthooks import PipelineHooks
hooks = PipelineHooks()
hooks.register_hook("on_step", hook)
with hooks.begin("on_step", None):
    pass
assert seen == ["patched"], seen
"""
        subprocess.run([sys.executable, "-c", script], check=True)

    @pytest.mark.parametrize("owner", ["channel", "class"])
    def test_of_begin(self, hooks, owner):
        channel = hooks.hooks["on_step"]
        target = channel if owner == "channel" else type(channel)
        for _ in range(3):
            with mock.patch.object(target, "begin") as patched:
                run(hooks)
                run(hooks)
            run(hooks)
            assert patched.mock_calls[::3] == [mock.call(None)] * 2


@pytest.mark.also_on("twins", *PROFILED)
@pytest.mark.contract("F2")
def test_a_hook_that_unregisters_itself(ours, theirs):
    """tests/helpers/programs.py changes hooks in all other ways."""

    def logged(lib):
        log, hooks = [], lib.PipelineHooks()
        once = HookContext.from_callable(before=lambda args: handle())
        handle = hooks.register_hook("on_step", once)
        hooks.register_hook("on_step", Logging(log, "b"))
        run(hooks)
        return log

    assert logged(ours) == ["before b", "after b"]
    assert logged(theirs) == ["after b"]
