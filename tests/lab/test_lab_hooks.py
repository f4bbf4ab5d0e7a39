"""RoboOrchardLab's channels and hooks, as `lab.install` changes them.

The oracle is the same code, uninstalled.
"""

import copy
import weakref
from types import SimpleNamespace
from unittest import mock

import pytest
from robo_orchard_core.utils import hook as core

import robo_orchard_fasthooks
import upstream
from helpers import implementations
from helpers.lab import (
    Args,
    Counting,
    HookContext,
    PipelineHooks,
    Stepped,
    assert_same_installed,
    failing,
    logging_hook,
    outcome,
    python_frames,
    run,
    shown,
    train,
)
from robo_orchard_fasthooks import _dispatch, lab


class TestChannels:
    @pytest.mark.parametrize(
        "make", [PipelineHooks, Counting, upstream.optimizer.OptimizerHook]
    )
    def test_are_compiled_and_robo_orchard_core_s(self, installed, make):
        hooks = make(None) if make not in (PipelineHooks, Counting) else make()
        for name, channel in hooks.hooks.items():
            assert type(channel) is _dispatch.LabChannel
            assert isinstance(channel, core.HookContextChannel)
            assert channel.name == name

    def test_subclasses_that_exist_dispatch_without_python(self, installed):
        class Plain(PipelineHooks):
            pass

        hooks = Plain()
        assert python_frames(lambda: run(hooks)) == ["run"]

    def test_a_channel_that_has_hooks_is_left(self, installed, monkeypatch):
        class Filled:
            def __class_getitem__(cls, item):
                return cls.make

            @staticmethod
            def make(name):
                channel = core.HookContextChannel(name)
                channel.register(logging_hook([]))
                return channel

        monkeypatch.setattr(upstream.mixin, "HookContextChannel", Filled)
        channel = PipelineHooks().hooks["on_step"]
        assert type(channel) is core.HookContextChannel and len(channel) == 1

    def test_hooks_made_before_go_on_and_merge(self, log):
        before = PipelineHooks()
        before.register_hook("on_step", logging_hook(log, "a"))
        with lab.install():
            after = PipelineHooks()
            after.register_hook("on_step", logging_hook(log, "b"))
            run(before)
            assert log == ["a"]
            before.register_hook("on_step", logging_hook(log, "c"))
            after += before
            run(after)
            assert log[1:] == ["b", "a", "c"]
            before += after
            run(before)
            assert log[4:] == ["a", "c", "b"]
        for hooks in (before, after):
            log.clear()
            run(hooks)
            assert len(log) == 3

    def test_hooks_alive_at_uninstall_go_on(self, log):
        with lab.install():
            hooks, other = PipelineHooks(), Counting()
            handle = hooks.register_hook("on_step", logging_hook(log, "a"))
            scope = hooks.begin("on_step", None)
            args = Args(accelerator=1)
        with scope:
            pass
        hooks.register_hook("on_step", logging_hook(log, "b"))
        hooks += other
        run(hooks)
        assert log == ["a", "a", "b"] and other.begun == ["a"]
        handle()
        fresh = PipelineHooks.from_hooks([hooks])
        run(fresh)
        assert log[3:] == ["b"]
        assert type(copy.deepcopy(hooks.hooks["on_step"])) is (
            _dispatch.LabChannel
        )
        assert args.copy_with_updates(batch=1).batch == 1

    @pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
    def test_copies_stay_compiled_and_apart(self, installed, how, log):
        channel = PipelineHooks().hooks["on_step"]
        channel.note = [1]
        channel.register(core.HookContext.from_callable(before=print))
        copied = how(channel)
        assert type(copied) is _dispatch.LabChannel
        assert vars(copied).keys() == vars(channel).keys()
        assert (copied.note is channel.note) == (how is copy.copy)
        copied.unregister_all()
        copied.register(logging_hook(log, "b"))
        assert len(channel) == 1
        args = SimpleNamespace(exception="left as it is")
        with copied.begin(args):
            pass
        assert log == ["b"] and args.exception == "left as it is"

    def test_a_deep_copy_of_what_holds_itself(self, installed):
        channel = PipelineHooks().hooks["on_step"]
        channel.itself, channel.pair = channel, [channel, channel]
        copied = copy.deepcopy(channel)
        assert copied is not channel and copied.itself is copied
        assert copied.pair == [copied, copied]


class TestRows:
    """Rules of which upstream is the other side."""

    def test_0_4_s_optimizer_steps_after_a_failure_as_before(self):
        def call():
            both = Stepped()
            hooks = upstream.optimizer.OptimizerHook(None)
            args = Args(accelerator=1, optimizer=both, lr_scheduler=both)
            with pytest.raises(ZeroDivisionError):
                with hooks.begin("on_step", args):
                    raise ZeroDivisionError
            return both.calls, shown(args)[1][-1]

        calls, _ = assert_same_installed(call)
        assert calls == ["step", "step", "zero"]

    def test_an_exception_of_another_class_of_arguments_is_its_own(self):
        def call():
            hooks, args, seen = PipelineHooks(), Args(accelerator=1), []
            hooks.register_hook(
                "on_step",
                HookContext.from_callable(
                    after=lambda args: seen.append(args.exception)
                ),
            )
            args.exception = None
            outcome(lambda: failing(hooks, args, KeyError()))
            return seen, args.exception

        assert assert_same_installed(call) == ([None], None)


OURS, THEIRS = (
    [
        lib.GradientClippingHookConfig(clip_mode="norm", max_norm=1),
        lib.GradientClippingHookConfig(clip_mode="norm", max_norm=1)(),
        lib.OptimizerHookConfig(),
        lib.OptimizerHook(None),
    ]
    for lib in (implementations.OURS, implementations.UPSTREAM)
)
MIXED = [OURS[0], THEIRS[1], THEIRS[2], OURS[3]]


@pytest.mark.usefixtures("installed")
class TestMixing:
    @pytest.mark.parametrize(
        "cls", [PipelineHooks, robo_orchard_fasthooks.PipelineHooks]
    )
    def test_from_hooks_takes_both_families(self, cls):
        for given_ in (MIXED, iter(MIXED)):
            hooks = cls.from_hooks(given_)
            assert type(hooks) is cls and len(hooks.hooks["on_step"]) == 4
        for single in (*OURS, *THEIRS):
            assert len(cls.from_hooks(single).hooks["on_step"]) == 1
        assert not any(map(len, cls.from_hooks(None).hooks.values()))

    def test_from_hooks_of_a_subclass(self):
        hooks = Counting.from_hooks([OURS[3]])
        assert type(hooks) is Counting and len(hooks.hooks["on_step"]) == 2

    def test_doubles_are_hooks_as_before(self):
        def call():
            first, second = map(upstream.optimizer.OptimizerHook, (None, None))
            double = mock.Mock(spec=first, hooks=first.hooks)
            merged = PipelineHooks.from_hooks([double, weakref.proxy(second)])
            return len(merged.hooks["on_step"])

        assert assert_same_installed(call) == 2

    def test_ours_and_theirs_add_up(self, log):
        ours, theirs = robo_orchard_fasthooks.PipelineHooks(), PipelineHooks()
        ours.register_hook("on_step", logging_hook(log, "ours"))
        theirs.register_hook("on_step", logging_hook(log, "theirs"))
        both = PipelineHooks()
        both += ours
        handle = both.register_pipeline_hooks(theirs)
        run(both)
        ours += theirs
        run(ours)
        assert log == ["ours", "theirs"] * 2
        handle.remove()
        run(both)
        assert log[4:] == ["ours"]

    def test_ours_work_on_0_4_s_arguments(self):
        for given_ in ([OURS[0], OURS[2]], [OURS[1], THEIRS[2]]):
            hooks = PipelineHooks.from_hooks(given_)
            assert train(hooks) == pytest.approx([-0.6, -0.8])
