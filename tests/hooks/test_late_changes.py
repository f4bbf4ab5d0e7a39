"""Changes made after a hook was registered, and while it runs."""

import gc
import subprocess
import sys
from unittest import mock

import pytest

from helpers.hooks import HookContext, Logging
from helpers.implementations import INSTALLED, PROFILED

pytestmark = pytest.mark.also_on(*INSTALLED, *PROFILED)


@pytest.mark.contract("K7")
class TestPatching:
    """What is changed late counts at the next call."""

    def run(self, hooks):
        with hooks.begin("on_step", None):
            pass

    @pytest.mark.parametrize("phase", ["before", "after"])
    @pytest.mark.parametrize("kind", ["from_callable", "subclass"])
    def test_of_a_hook_instance(self, hooks, hook, log, kind, phase):
        target = hook("a") if kind == "from_callable" else Logging(log, "a")
        hooks.register_hook("on_step", target)
        with mock.patch.object(target, phase) as patched:
            self.run(hooks)
        patched.assert_called_once_with(None)
        assert f"{phase} a" not in log
        self.run(hooks)
        assert f"{phase} a" in log

    @pytest.mark.parametrize("phase", ["before", "after"])
    def test_of_a_callback(self, hooks, hook, log, phase):
        target = hook("a")
        hooks.register_hook("on_step", target)
        with mock.patch.object(target, f"_{phase}") as patched:
            self.run(hooks)
        patched.assert_called_once_with(None)
        with mock.patch.object(target, f"_{phase}", None):
            self.run(hooks)
        assert f"{phase} a" not in log
        self.run(hooks)
        assert f"{phase} a" in log

    @pytest.mark.parametrize("phase", ["before", "after"])
    def test_of_the_class(self, hooks, hook, log, phase):
        from_callable, subclass = hook("a"), Logging(log, "b")
        for target in (from_callable, subclass):
            hooks.register_hook("on_step", target)
        for target in (from_callable, subclass):
            with mock.patch.object(type(target), phase) as patched:
                self.run(hooks)
            patched.assert_called_once_with(None)
        assert log.count(f"{phase} a") == log.count(f"{phase} b") == 1

    def test_of_a_callback_while_it_runs(self, hooks):
        """The function that runs must outlive its own replacement."""

        class Replacing:
            def __call__(self, args):
                hook._before = None
                gc.collect()
                return self

        hook = HookContext.from_callable(before=Replacing())
        hooks.register_hook("on_step", hook)
        self.run(hooks)
        assert hook._before is None

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

    def test_of_a_hook_with_more_attributes(self, hooks, hook, log):
        target = hook("a")
        target.note = "mine"
        hooks.register_hook("on_step", target)
        self.run(hooks)
        assert log == ["before a", "after a"]
        with mock.patch.object(target, "before") as patched:
            self.run(hooks)
        patched.assert_called_once_with(None)

    def test_of_begin_on_a_channel(self, hooks):
        channel = hooks.hooks["on_step"]
        with mock.patch.object(channel, "begin") as patched:
            self.run(hooks)
        patched.assert_called_once_with(None)
        with mock.patch.object(type(channel), "begin") as patched:
            self.run(hooks)
        patched.assert_called_once_with(None)
        with mock.patch.object(channel, "begin") as patched:
            pass
        self.run(hooks)
        patched.assert_not_called()

    def test_of_begin_in_the_class_of_channels_again_and_again(self, hooks):
        kind = type(hooks.hooks["on_step"])
        for _ in range(3):
            with mock.patch.object(kind, "begin") as patched:
                for _ in range(2):
                    self.run(hooks)
            assert patched.mock_calls[::3] == [mock.call(None)] * 2
            self.run(hooks)
            assert len(patched.mock_calls[::3]) == 2

    def test_of_begin_in_a_subclass(self, lib, hook, log):
        class Counting(lib.PipelineHooks):
            def begin(self, channel, arg):
                log.append(channel)
                return super().begin(channel, arg)

        hooks = Counting()
        hooks.register_hook("on_step", hook("a"))
        self.run(hooks)
        assert log == ["on_step", "before a", "after a"]


@pytest.mark.contract("F2")
class TestChangesWhileDispatching:
    """A phase runs over the hooks as they stood when it began."""

    def run(self, hooks, log):
        with hooks.begin("on_step", None):
            log.append("body")
        return log

    @pytest.mark.also_on(*PROFILED)
    def test_a_hook_that_unregisters_itself(self, ours, theirs, hook):
        for lib, expected in (
            (ours, ["once", "before b", "body", "after b"]),
            (theirs, ["once", "body", "after b"]),
        ):
            log, handles = [], []
            hooks = lib.PipelineHooks()

            def once(args, log=log, handles=handles):
                log.append("once")
                handles[0]()

            handles.append(
                hooks.register_hook(
                    "on_step", HookContext.from_callable(before=once)
                )
            )
            hooks.register_hook("on_step", Logging(log, "b"))
            assert self.run(hooks, log) == expected

    @pytest.mark.parametrize("phase", ["before", "after"])
    def test_a_hook_that_registers_another(self, ours, phase):
        log = []
        hooks = ours.PipelineHooks()
        hooks.register_hook(
            "on_step",
            HookContext.from_callable(
                **{
                    phase: lambda args: hooks.register_hook(
                        "on_step", Logging(log, "new")
                    )
                }
            ),
        )
        expected = ["body", "after new"] if phase == "before" else ["body"]
        assert self.run(hooks, log) == expected

    def test_a_hook_that_unregisters_all(self, ours, hook, log):
        hooks = ours.PipelineHooks()
        hooks.register_hook(
            "on_step",
            HookContext.from_callable(before=lambda _: hooks.unregister_all()),
        )
        hooks.register_hook("on_step", hook("a"))
        assert self.run(hooks, log) == ["before a", "body"]
