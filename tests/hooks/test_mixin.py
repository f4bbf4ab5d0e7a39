"""PipelineHooks: copies, channels, merges and `from_hooks`."""

import copy
import functools
import threading
import weakref
from unittest import mock

import pytest
from robo_orchard_core.utils import config
from robo_orchard_core.utils import hook as core

from helpers.implementations import INSTALLED

pytestmark = pytest.mark.also_on(*INSTALLED)

HookContext = core.HookContext
LOG = []


def log_after(args):
    LOG.append("after")


@pytest.fixture
def logging_hook():
    LOG.clear()
    return HookContext.from_callable("logging", after=log_after)


def make_class(lib):
    """A hook that registers its own methods, pickled by name."""

    class Counter(lib.PipelineHooks):
        def __init__(self, cfg=None):
            super().__init__()
            self.count = 0
            self.register_hook(
                "on_step", HookContext.from_callable(after=self.add)
            )

        def add(self, args):
            self.count += 1

    Counter.__qualname__ = "Counter"
    globals()["Counter"] = Counter
    return Counter


def run(hooks, channel="on_step"):
    with hooks.begin(channel, None):
        pass


@pytest.mark.contract("K9")
class TestCopies:
    def test_run_their_own_hooks(self, lib, logging_hook, clone):
        hooks = make_class(lib)()
        hooks.register_hook("on_step", logging_hook)
        hooks.note = "mine"
        run(hooks)
        copied = clone(hooks)
        assert type(copied) is type(hooks)
        assert (copied.count, copied.note) == (1, "mine")
        run(copied)
        assert LOG == ["after"] * 2
        # A shallow copy shares its channels, and so the bound method.
        shared = clone is copy.copy
        assert (hooks.count, copied.count) == ((2, 1) if shared else (1, 2))
        assert (copied.hooks is hooks.hooks) == shared
        channel = copied.hooks["on_step"]
        assert channel.name == "on_step" and channel[1].name == "logging"
        copied.unregister_all()
        assert len(hooks.hooks["on_step"]) == (0 if shared else 2)

    def test_getstate_of_a_channel_may_be_overridden(self, lib, logging_hook):
        class Locked(lib.HookContextChannel):
            def __getstate__(self):
                parent = getattr(super(), "__getstate__", None)
                state = dict(parent() if parent else self.__dict__)
                del state["lock"]
                return state

        channel = Locked("on_step")
        channel.lock = threading.Lock()
        channel.register(logging_hook)
        copied = copy.deepcopy(channel)
        assert len(copied) == 1 and not hasattr(copied, "lock")


@pytest.mark.contract("K9")
def test_subclasses_and_multiple_inheritance(lib, logging_hook):
    class Mixin:
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self._channel = self._no_channel = self._hooks = "mine"

    class Mixed(Mixin, lib.PipelineHooks):
        pass

    class Both(lib.PipelineHooks, dict):
        pass

    mixed, both = Mixed(), Both()
    both["a"] = 1
    for hooks in (mixed, both):
        hooks.register_hook("on_step", logging_hook)
        hooks += lib.PipelineHooks()
        run(hooks)
    assert mixed._hooks == "mine" and both == {"a": 1}
    assert LOG == ["after"] * 2
    assert weakref.ref(mixed)() is mixed


@pytest.mark.also_on("twins", *INSTALLED)
@pytest.mark.contract("K8")
class TestChannelsAreAPlainDict:
    def test_a_replaced_channel(self, lib, logging_hook):
        hooks = lib.PipelineHooks()
        assert type(hooks.hooks) is dict
        hooks.hooks["on_step"] = core.HookContextChannel("on_step")
        hooks.register_hook("on_step", logging_hook)
        run(hooks)
        assert LOG == ["after"]

    def test_an_extra_channel(self, lib, logging_hook):
        hooks, other = lib.PipelineHooks(), lib.PipelineHooks()
        for each in (hooks, other):
            each.hooks["on_save"] = lib.HookContextChannel("on_save")
        other.register_hook("on_save", logging_hook)
        hooks += other
        run(hooks, "on_save")
        assert LOG == ["after"]
        hooks.unregister_all()
        assert len(hooks.hooks["on_save"]) == 0

    def test_another_mapping(self, lib, logging_hook):
        class Aliases(dict):
            def __getitem__(self, key):
                return super().__getitem__("on_" + key)

        hooks = lib.PipelineHooks()
        hooks.hooks = Aliases(hooks.hooks)
        hooks.hooks["step"].register(logging_hook)
        run(hooks, "step")
        assert LOG == ["after"]


@pytest.mark.contract("K8")
class TestMerging:
    @pytest.mark.parametrize("given", [None, "hooks", {}])
    def test_refuses_what_is_no_hooks(self, ours, given):
        with pytest.raises(TypeError, match="^Expected PipelineHooks, but"):
            ours.PipelineHooks().register_pipeline_hooks(given)

    def test_that_fails_adds_nothing(self, ours, hook):
        hooks, other = ours.PipelineHooks(), ours.PipelineHooks()
        other.register_hook("on_loop", hook("a"))
        other.hooks["on_save"] = ours.HookContextChannel("on_save")
        other.hooks["on_save"].register(hook("b"))
        with pytest.raises(KeyError, match="no channel 'on_save'"):
            hooks += other
        del other.hooks["on_save"]
        other.hooks["on_step"] = ours.HookContextChannel("other")
        with pytest.raises(
            ValueError, match="Cannot register hook channel other to on_step"
        ):
            hooks += other
        assert all(len(channel) == 0 for channel in hooks.hooks.values())


@pytest.mark.contract("F5")
class TestUnknownChannel:
    @pytest.mark.also_on("installed")  # 0.5 has one more.
    def test_is_a_key_error_that_lists_the_channels(self, ours, hook):
        hooks = ours.PipelineHooks()
        for call in (
            lambda: hooks.begin("on_stop", None),
            lambda: hooks.register_hook("on_stop", hook("a")),
        ):
            with pytest.raises(KeyError) as raised:
                call()
            assert raised.value.args == (
                "there is no channel 'on_stop'; the channels are 'on_loop', "
                "'on_epoch', 'on_step', 'on_batch', 'on_model_forward', "
                "'on_model_backward'",
            )
            assert raised.value.__suppress_context__

    def test_without_hooks_is_skipped_when_hooks_are_merged(self, ours):
        hooks, other = ours.PipelineHooks(), ours.PipelineHooks()
        other.hooks["on_save"] = ours.HookContextChannel("on_save")
        hooks += other
        assert "on_save" not in hooks.hooks

    def test_a_key_error_of_a_channel_passes(self, ours):
        hooks = ours.PipelineHooks()
        hooks.hooks["on_step"].begin = mock.Mock(side_effect=KeyError("mine"))
        with pytest.raises(KeyError, match="^'mine'$"):
            run(hooks)


def test_a_subclass_that_forgot_super_init(ours, hook):
    class Forgetful(ours.PipelineHooks):
        def __init__(self):
            pass

    for call in (
        run,
        lambda hooks: hooks.register_hook("on_step", hook("a")),
        lambda hooks: hooks.register_pipeline_hooks(ours.PipelineHooks()),
    ):
        with pytest.raises(
            AttributeError,
            match="^Forgetful has no channels: its __init__ has to call "
            r"super\(\).__init__\(\)$",
        ):
            call(Forgetful())
    for merge in (
        ours.PipelineHooks().register_pipeline_hooks,
        ours.PipelineHooks.from_hooks,
    ):
        with pytest.raises(TypeError, match="Forgetful'>, whose __init__ has"):
            merge(Forgetful())


@pytest.mark.contract("K11")
class TestFromHooks:
    @pytest.mark.also_on("installed")  # 0.5's OptimizerHook registers nothing.
    def test_hooks_and_configs_in_any_iterable(self, lib, hook):
        class Subclass(lib.PipelineHooks):
            pass

        cfg = lib.OptimizerHookConfig()
        single = lib.PipelineHooks()
        single.register_hook("on_step", hook("a"))
        for given, count in (
            (None, 0),
            (single, 1),
            (cfg, 1),
            ([single, cfg], 2),
            ((each for each in (cfg, single)), 2),
            ({single}, 1),
            ([], 0),
        ):
            hooks = Subclass.from_hooks(given)
            assert type(hooks) is Subclass
            assert len(hooks.hooks["on_step"]) == count

    @pytest.mark.parametrize("given", ["on_step", [1], [None], [int], 1])
    def test_refuses_anything_else(self, lib, given):
        expected = "^Expected PipelineHooks or PipelineHooksConfig, but got"
        if given == 1 and lib.name == "upstream":
            expected = "is not iterable"
        with pytest.raises(TypeError, match=expected):
            lib.PipelineHooks.from_hooks(given)

    def test_says_which_one_and_what_to_call(self, ours):
        cls, hook = ours.PipelineHooks, HookContext.from_callable()
        call = r"class PipelineHooks{}: call it, PipelineHooks\(\)"
        use = r"FromCallable'>{}: use register_hook\(channel, hook\)"
        for given, expected in ((cls, call), (hook, use)):
            for several in (False, True):
                at = " at position 1" if several else ""
                with pytest.raises(TypeError, match=expected.format(at)):
                    cls.from_hooks([cls(), given] if several else given)
            with pytest.raises(TypeError, match=expected.format("")):
                cls().register_pipeline_hooks(given)
        with pytest.raises(TypeError, match="a config: PipelineHooks.from_"):
            cls().register_pipeline_hooks(ours.OptimizerHookConfig())

    def test_refuses_a_config_of_something_else_unmade(self, ours):
        class Other:
            InitFromConfig = True

            def __init__(self, cfg):
                raise AssertionError("made")

        cfg = config.ClassConfig[Other](class_type=Other)
        with pytest.raises(TypeError, match="ClassConfig"):
            ours.PipelineHooks.from_hooks(cfg)

    def test_takes_configs_that_name_a_factory(self, lib):
        for factory in (
            lambda cfg=None: lib.PipelineHooks(),
            functools.partial(lib.OptimizerHook, None),
        ):
            cfg = lib.PipelineHooksConfig(class_type=factory)
            made = lib.PipelineHooks.from_hooks(cfg)
            assert isinstance(made, lib.PipelineHooks)

    @pytest.mark.also_on("installed")
    def test_takes_upstream_s_hooks_and_configs(self, ours, theirs):
        clip = theirs.GradientClippingHookConfig(clip_mode="norm", max_norm=1)
        step = theirs.OptimizerHookConfig()
        own = ours.OptimizerHookConfig()
        for given in ([clip, step(), own], step):
            hooks = ours.PipelineHooks.from_hooks(given)
            assert type(hooks) is ours.PipelineHooks
            count = len(given) if isinstance(given, list) else 1
            assert len(hooks.hooks["on_step"]) == count

    @pytest.mark.also_on()
    def test_upstream_s_refuses_ours(self, ours, theirs):
        with pytest.raises(TypeError, match="Expected PipelineHooks"):
            theirs.PipelineHooks.from_hooks([ours.PipelineHooks()])
