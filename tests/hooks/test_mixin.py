"""PipelineHooks: copies, channels, merges and `from_hooks`; describe()."""

import copy
import functools
import math
import pickle
import threading
import weakref

import pytest
from robo_orchard_core.utils import hook as core

from helpers.implementations import INSTALLED

pytestmark = pytest.mark.also_on(*INSTALLED)

HookContext = core.HookContext
LOG = []


def log_before(args):
    LOG.append("before")


def log_after(args):
    LOG.append("after")


@pytest.fixture(autouse=True)
def clean_log():
    LOG.clear()


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


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda hooks, p=protocol: pickle.loads(
            pickle.dumps(hooks, p)
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.contract("K9")
def test_copies_run_their_own_hooks(lib, how):
    hooks = make_class(lib)()
    hooks.note = "mine"
    run(hooks)
    copied = COPIES[how](hooks)
    assert type(copied) is type(hooks)
    assert (copied.count, copied.note) == (1, "mine")
    run(copied)
    # A shallow copy shares its channels, and so the bound method.
    expected = (2, 1) if how == "copy" else (1, 2)
    assert (hooks.count, copied.count) == expected
    assert (copied.hooks is hooks.hooks) == (how == "copy")


@pytest.mark.parametrize("how", [how for how in COPIES if how != "copy"])
@pytest.mark.contract("K9")
def test_copies_keep_channels_apart(lib, how):
    hooks = lib.PipelineHooks()
    hooks.register_hook(
        "on_step",
        HookContext.from_callable("name", before=log_before, after=log_after),
    )
    copied = COPIES[how](hooks)
    assert list(copied.hooks) == list(hooks.hooks)
    channel = copied.hooks["on_step"]
    assert (channel.name, len(channel), channel[0].name) == (
        *("on_step", 1),
        "name",
    )
    run(copied)
    assert LOG == ["before", "after"]
    copied.unregister_all()
    assert len(hooks.hooks["on_step"]) == 1


@pytest.mark.contract("K9")
def test_getstate_may_be_overridden(lib):
    class Unpicklable(lib.PipelineHooks):
        def __init__(self):
            super().__init__()
            self.lock = lambda: None

        def __getstate__(self):
            state = self.__dict__.copy()
            del state["lock"]
            return state

        def __setstate__(self, state):
            self.__dict__.update(state)
            self.lock = "new"

    hooks = Unpicklable()
    hooks.register_hook("on_step", HookContext.from_callable(after=log_after))
    copied = copy.deepcopy(hooks)
    run(copied)
    assert copied.lock == "new" and LOG == ["after"]


def test_a_copied_channel_keeps_its_attributes(ours):
    channel = ours.HookContextChannel("on_step")
    channel.note = "mine"
    channel.register(HookContext.from_callable(after=log_after))
    channel.begin = "patched"
    for copied in (copy.copy(channel), copy.deepcopy(channel)):
        assert (copied.note, copied.name) == ("mine", "on_step")
        assert len(copied) == 1 and copied.begin == "patched"
        copied.unregister_all()
    assert len(channel) == 1


@pytest.mark.contract("K9")
def test_getstate_of_a_channel_may_be_overridden(lib):
    class Locked(lib.HookContextChannel):
        def __init__(self, name):
            super().__init__(name)
            self.lock = threading.Lock()

        def __getstate__(self):
            parent = getattr(super(), "__getstate__", None)
            state = dict(parent() if parent else self.__dict__)
            del state["lock"]
            return state

    channel = Locked("on_step")
    channel.register(HookContext.from_callable(after=log_after))
    copied = copy.deepcopy(channel)
    assert len(copied) == 1 and not hasattr(copied, "lock")


def test_names_are_left_to_subclasses(lib):
    class Own(lib.PipelineHooks):
        def __init__(self):
            super().__init__()
            self._channel = self._no_channel = self._hooks = "mine"
            self.register_hook(
                "on_step", HookContext.from_callable(after=log_after)
            )

    hooks = Own()
    hooks += lib.PipelineHooks()
    run(hooks)
    assert LOG == ["after"]


@pytest.mark.contract("K9")
def test_subclasses_and_multiple_inheritance(lib):
    class Mixin:
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.mixed = True

    class Mixed(Mixin, lib.PipelineHooks):
        pass

    class Both(lib.PipelineHooks, dict):
        pass

    assert Mixed().mixed and len(Mixed().hooks) == len(
        lib.PipelineHooks().hooks
    )
    both = Both()
    both["a"] = 1
    assert both == {"a": 1}
    run(both)


@pytest.mark.contract("K9")
def test_weak_references(lib):
    hooks = lib.PipelineHooks()
    assert weakref.ref(hooks)() is hooks


@pytest.mark.contract("K8")
class TestChannelsAreAPlainDict:
    def test_a_replaced_channel(self, lib):
        class Own(lib.HookContextChannel):
            def begin(self, arg):
                LOG.append("own")
                return super().begin(arg)

        hooks = lib.PipelineHooks()
        assert type(hooks.hooks) is dict
        hooks.hooks["on_step"] = Own("on_step")
        hooks.register_hook(
            "on_step", HookContext.from_callable(after=log_after)
        )
        run(hooks)
        assert LOG == ["own", "after"]

    def test_robo_orchard_core_s_channel(self, lib):
        hooks = lib.PipelineHooks()
        hooks.hooks["on_step"] = core.HookContextChannel("on_step")
        hooks.register_hook(
            "on_step", HookContext.from_callable(after=log_after)
        )
        run(hooks)
        assert LOG == ["after"]

    def test_an_extra_channel(self, lib):
        hooks, other = lib.PipelineHooks(), lib.PipelineHooks()
        for each in (hooks, other):
            each.hooks["on_save"] = lib.HookContextChannel("on_save")
        other.register_hook(
            "on_save", HookContext.from_callable(after=log_after)
        )
        hooks += other
        run(hooks, "on_save")
        assert LOG == ["after"]
        hooks.unregister_all()
        assert len(hooks.hooks["on_save"]) == 0

    def test_another_mapping(self, lib):
        class Mapping(dict):
            def __missing__(self, name):
                return lib.HookContextChannel(name)

        hooks = lib.PipelineHooks()
        hooks.hooks = Mapping()
        run(hooks, "anything")


@pytest.mark.contract("K8")
class TestMerging:
    def test_adds_in_order(self, lib, hook, log):
        hooks, other = lib.PipelineHooks(), lib.PipelineHooks()
        hooks.register_hook("on_step", hook("a"))
        other.register_hook("on_step", hook("b"))
        other.register_hook("on_epoch", hook("c"))
        same = hooks
        same += other
        assert same is hooks
        run(hooks)
        run(hooks, "on_epoch")
        assert log == [
            *("before a", "before b", "after a", "after b"),
            *("before c", "after c"),
        ]

    def test_the_handle_takes_out_what_was_merged(self, lib, hook):
        hooks, other = lib.PipelineHooks(), lib.PipelineHooks()
        a, b = hook("a"), hook("b")
        hooks.register_hook("on_step", a)
        other.register_hook("on_step", b)
        other.register_hook("on_loop", b)
        handle = hooks.register_pipeline_hooks(other)
        handle()
        handle()
        assert list(hooks.hooks["on_step"]._context_handlers) == [a]
        assert len(hooks.hooks["on_loop"]) == 0

    @pytest.mark.parametrize("given", [None, 1, "hooks", {}, object()])
    def test_refuses_what_is_no_hooks(self, ours, given):
        with pytest.raises(TypeError, match="^Expected PipelineHooks, but"):
            ours.PipelineHooks().register_pipeline_hooks(given)

    def test_says_what_hooks_without_channels_lack(self, ours):
        class Mine(ours.PipelineHooks):
            def __init__(self):
                pass

        hooks = ours.PipelineHooks()
        for merge in (
            hooks.register_pipeline_hooks,
            ours.PipelineHooks.from_hooks,
        ):
            with pytest.raises(TypeError, match="Mine'>, whose __init__ has"):
                merge(Mine())

    def test_that_fails_adds_nothing(self, ours, hook):
        hooks = ours.PipelineHooks()
        other = ours.PipelineHooks()
        other.register_hook("on_loop", hook("a"))
        other.hooks["on_save"] = ours.HookContextChannel("on_save")
        other.hooks["on_save"].register(hook("b"))
        with pytest.raises(KeyError, match="no channel 'on_save'"):
            hooks += other
        other.hooks = {
            "on_loop": other.hooks["on_loop"],
            "on_step": ours.HookContextChannel("other"),
        }
        with pytest.raises(
            ValueError, match="Cannot register hook channel other to on_step"
        ):
            hooks += other
        assert all(len(channel) == 0 for channel in hooks.hooks.values())


@pytest.mark.contract("F5")
class TestUnknownChannel:
    MESSAGE = (
        "there is no channel 'on_stop'; the channels are 'on_loop', "
        "'on_epoch', 'on_step', 'on_batch', 'on_model_forward', "
        "'on_model_backward'"
    )

    @pytest.mark.also_on("installed")  # 0.5 has one more.
    def test_is_a_key_error_that_lists_the_channels(self, ours, hook):
        hooks = ours.PipelineHooks()
        for call in (
            lambda: hooks.begin("on_stop", None),
            lambda: hooks.register_hook("on_stop", hook("a")),
        ):
            with pytest.raises(KeyError) as raised:
                call()
            assert raised.value.args == (self.MESSAGE,)
            assert raised.value.__suppress_context__

    def test_is_a_key_error_upstream_too(self, theirs):
        with pytest.raises(KeyError):
            run(theirs.PipelineHooks(), "on_stop")

    def test_a_key_error_of_a_channel_passes(self, ours):
        class Own(ours.HookContextChannel):
            def begin(self, arg):
                raise KeyError("mine")

        hooks = ours.PipelineHooks()
        hooks.hooks["on_step"] = Own("on_step")
        with pytest.raises(KeyError, match="^'mine'$"):
            run(hooks)

    def test_an_unhashable_one_is_a_type_error(self, lib):
        with pytest.raises(TypeError, match="unhashable type: 'list'"):
            run(lib.PipelineHooks(), [])


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


@pytest.mark.contract("K11")
class TestFromHooks:
    def test_none(self, lib):
        hooks = lib.PipelineHooks.from_hooks(None)
        assert type(hooks) is lib.PipelineHooks
        assert all(len(channel) == 0 for channel in hooks.hooks.values())

    @pytest.mark.also_on("installed")  # 0.5's OptimizerHook registers nothing.
    def test_hooks_and_configs_in_any_iterable(self, lib, hook):
        config = lib.OptimizerHookConfig()
        single = lib.PipelineHooks()
        single.register_hook("on_step", hook("a"))
        for given, count in (
            (single, 1),
            (config, 1),
            ([single, config], 2),
            ((single,), 1),
            ((each for each in (config, single)), 2),
            ({single}, 1),
            ([], 0),
        ):
            hooks = lib.PipelineHooks.from_hooks(given)
            assert hooks is not single
            assert len(hooks.hooks["on_step"]) == count

    def test_of_a_subclass(self, lib):
        class Subclass(lib.PipelineHooks):
            pass

        assert type(Subclass.from_hooks([lib.PipelineHooks()])) is Subclass

    @pytest.mark.parametrize("given", ["on_step", [1], [None], [int], (b"",)])
    def test_refuses_anything_else(self, lib, given):
        with pytest.raises(
            TypeError,
            match="^Expected PipelineHooks or PipelineHooksConfig, but got",
        ):
            lib.PipelineHooks.from_hooks(given)

    @pytest.mark.parametrize("given", [1, 2.5, object(), int])
    @pytest.mark.also_on()
    def test_refuses_what_cannot_be_iterated(self, ours, theirs, given):
        with pytest.raises(TypeError, match="is not iterable"):
            theirs.PipelineHooks.from_hooks(given)
        with pytest.raises(TypeError) as raised:
            ours.PipelineHooks.from_hooks(given)
        assert str(raised.value) == (
            "Expected PipelineHooks or PipelineHooksConfig, "
            f"but got {type(given)}"
        )

    def test_refuses_a_config_of_something_else(self, ours):
        made = []

        class Other:
            InitFromConfig = True

            def __init__(self, cfg):
                made.append(self)

        cfg = core_config().ClassConfig[Other](class_type=Other)
        with pytest.raises(TypeError, match="ClassConfig"):
            ours.PipelineHooks.from_hooks(cfg)
        assert made == []

    def test_takes_configs_that_name_a_factory(self, lib):
        for factory in (
            lambda cfg=None: lib.PipelineHooks(),
            functools.partial(lib.OptimizerHook, None),
        ):
            config = lib.PipelineHooksConfig(class_type=factory)
            assert isinstance(
                lib.PipelineHooks.from_hooks(config), lib.PipelineHooks
            )

    @pytest.mark.also_on("installed")
    def test_takes_upstream_s_hooks_and_configs(self, ours, theirs):
        hooks = ours.PipelineHooks.from_hooks(
            [
                theirs.GradientClippingHookConfig(
                    clip_mode="norm", max_norm=1
                ),
                theirs.OptimizerHookConfig()(),
                ours.OptimizerHookConfig(),
            ]
        )
        assert type(hooks) is ours.PipelineHooks
        assert len(hooks.hooks["on_step"]) == 3
        assert (
            len(
                ours.PipelineHooks.from_hooks(
                    theirs.OptimizerHookConfig()
                ).hooks["on_step"]
            )
            == 1
        )

    @pytest.mark.also_on()
    def test_upstream_s_refuses_ours(self, ours, theirs):
        with pytest.raises(TypeError, match="Expected PipelineHooks"):
            theirs.PipelineHooks.from_hooks([ours.PipelineHooks()])


def core_config():
    from robo_orchard_core.utils import config

    return config


@pytest.mark.also_on()
class TestDescribe:
    def test_lists_hooks_in_effective_order(self, ours):
        class Direct(HookContext):
            def before(self, arg):
                pass

            def after(self, arg):
                pass

        def step(args):
            pass

        hooks = ours.PipelineHooks.from_hooks(
            [ours.GradientClippingHookConfig(clip_mode="norm", max_norm=1)]
        )
        hooks += ours.OptimizerHook()
        hooks.register_hook("on_step", Direct("direct"))
        hooks.register_hook(
            "on_loop", HookContext.from_callable("timer", before=step)
        )
        hooks.register_hook(
            "on_loop",
            HookContext.from_callable(after=functools.partial(math.pow, 2)),
        )

        def where(function):
            code = function.__code__
            return (
                f"{function.__qualname__} "
                f"({code.co_filename}:{code.co_firstlineno})"
            )

        clip = ours.GradientClippingHook._gradient_clipping
        assert hooks.describe().splitlines() == [
            "on_loop",
            "  0 HookContextFromCallable 'timer'",
            f"      before {where(step)}",
            "  1 HookContextFromCallable",
            "      after  pow (math)",
            "on_step",
            "  0 GradientClippingHook",
            f"      after  {where(clip)}",
            "  1 OptimizerHook",
            f"      after  {where(ours.OptimizerHook._optimizer_step)}",
            "  2 Direct 'direct'",
            f"      before {where(Direct.before)}",
            f"      after  {where(Direct.after)}",
        ]

    def test_without_hooks(self, ours):
        assert ours.PipelineHooks().describe() == "no hooks"

    def test_of_decorated_and_patched_callbacks(self, ours):
        def step(args):
            pass

        @functools.wraps(step)
        def wrapper(args):
            pass

        hooks = ours.PipelineHooks()
        hook = HookContext.from_callable(before=wrapper)
        hooks.register_hook("on_step", hook)
        line = step.__code__.co_firstlineno
        assert f"{__file__}:{line}" in hooks.describe()
        hook.after = log_after
        assert "after  log_after" in hooks.describe()


@pytest.mark.also_on()
def test_repr_is_laid_out_as_upstream_s(ours, theirs, hook):
    a, b = hook("a"), hook("b")
    shown = []
    for lib in (ours, theirs):
        hooks = lib.PipelineHooks()
        texts = [repr(hooks)]
        for channel in ("on_loop", "on_step"):
            hooks.register_hook(channel, a)
        hooks.register_hook("on_step", b)
        texts.append(repr(hooks))
        names = (
            f"{lib.PipelineHooks.__module__}.",
            f"{lib.HookContextChannel.__module__}.",
        )
        for name in names:
            texts = [text.replace(f"<{name}", "<") for text in texts]
        shown.append(
            [
                text.replace("robo_orchard_core.utils.hook.", "")
                for text in texts
            ]
        )
    assert shown[0] == shown[1]
