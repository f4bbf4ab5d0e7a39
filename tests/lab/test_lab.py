"""RoboOrchardLab's own classes, as `lab.install` changes them.

The oracle is the same code, uninstalled.
"""

import copy
import dataclasses
import gc
import inspect
import math
import pickle
import re
import sys
import threading
import warnings
import weakref
from functools import partial
from importlib import metadata
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from robo_orchard_core.utils import hook as core

import robo_orchard_fasthooks
from helpers import processes, upstream
from robo_orchard_fasthooks import _dispatch, _fast_dataclass, lab

Args = upstream.mixin.PipelineHookArgs
PipelineHooks = upstream.mixin.PipelineHooks
HookContext = core.HookContext
HOOKS = "robo_orchard_lab.pipeline.hooks"
NAMES = [
    f"{HOOKS}.mixin.PipelineHooks.__init__",
    f"{HOOKS}.mixin.PipelineHooks.begin",
    f"{HOOKS}.mixin.PipelineHooks.register_hook",
    f"{HOOKS}.mixin.PipelineHooks.register_pipeline_hooks",
    f"{HOOKS}.mixin.PipelineHooks.from_hooks",
    f"{HOOKS}.mixin.PipelineHookArgs.__init__",
    f"{HOOKS}.mixin.PipelineHookArgs.copy_with_updates",
    f"{HOOKS}.grad_clip.GradientClippingHook._gradient_clipping",
]
# Its calls are replaced; the attribute stays.
CONSTRUCTION = f"{HOOKS}.mixin.PipelineHookArgs.__init__"


def found(name):
    module, cls, attribute = name.rsplit(".", 2)
    return vars(getattr(sys.modules[module], cls))[attribute]


ORIGINALS = {name: found(name) for name in NAMES}


@pytest.fixture(autouse=True)
def nothing_stays_replaced():
    yield
    installed = lab.status().installed
    lab.uninstall()  # That other tests do not fail too.
    assert not installed
    assert all(found(name) is ORIGINALS[name] for name in NAMES)
    assert python_frames(lambda: Args(accelerator=None)) == ["__init__"]


@pytest.fixture
def installed():
    with lab.install():
        yield


@pytest.fixture
def released(monkeypatch):
    """Says the version, which modules loaded by file do not."""
    monkeypatch.setattr(
        sys.modules["robo_orchard_lab"],
        "__version__",
        upstream.VERSION,
        raising=False,
    )


def python_frames(call):
    """The names of the Python functions that a call runs."""
    names = []

    def profile(frame, event, arg):
        if event == "call":
            names.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return names[1:]  # The first is `call` itself.


def outcome(call):
    try:
        return call()
    except Exception as error:
        return type(error), str(error)


def assert_same_installed(call):
    """A call gives the same values, or the same error, with install on."""
    off = outcome(call)
    with lab.install():
        assert outcome(call) == off
    return off


def run(hooks, args=None, channel="on_step"):
    with hooks.begin(channel, args):
        pass


def logging_hook(log, name="a"):
    return HookContext.from_callable(name, after=lambda args: log.append(name))


class TestInstall:
    def test_replaces_and_puts_back_the_same_objects(self):
        for _ in range(2):
            lab.install()
            lab.install()
            try:
                status = lab.status()
                assert status.installed
                assert status.names == dict.fromkeys(NAMES, "replaced")
                changed = [n for n in NAMES if found(n) is not ORIGINALS[n]]
                assert changed == [n for n in NAMES if n != CONSTRUCTION]
            finally:
                lab.uninstall()
            assert all(found(name) is ORIGINALS[name] for name in NAMES)

    def test_without_an_installation_uninstalling_is_harmless(self):
        lab.uninstall()

    def test_the_outermost_context_manager_uninstalls(self):
        with lab.install():
            with lab.install():
                pass
            assert lab.status().installed
        assert not lab.status().installed

    def test_a_context_manager_of_an_installed_one_changes_nothing(self):
        lab.install()
        with lab.install():
            pass
        assert lab.status().installed
        lab.uninstall()

    def test_a_failing_body_uninstalls(self):
        with pytest.raises(ZeroDivisionError), lab.install():
            raise ZeroDivisionError
        assert not lab.status().installed

    def test_leaving_after_uninstall_is_harmless(self):
        with lab.install():
            lab.uninstall()

    def test_leaving_leaves_what_was_installed_anew(self):
        first = lab.install()
        lab.uninstall()
        with lab.install():
            with first:
                pass
            assert lab.status().installed

    def test_threads_install_once(self):
        barrier = threading.Barrier(4)

        def install():
            barrier.wait()
            lab.install()

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            threads = [threading.Thread(target=install) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        assert lab.status().names == dict.fromkeys(NAMES, "replaced")
        lab.uninstall()

    def test_it_is_quiet_unless_asked(self, capsys):
        with lab.install():
            assert capsys.readouterr().out == ""
        for _ in range(2):
            with lab.install(), lab.install(verbose=True):
                assert capsys.readouterr().out == f"{lab.status()}\n"


class TestStatus:
    def test_off(self):
        status = lab.status()
        assert not status.installed
        assert status.names == dict.fromkeys(NAMES, "original")

    @pytest.mark.parametrize("on", [False, True])
    def test_in_print(self, released, on):
        version = metadata.version("robo_orchard_fasthooks")
        with lab.install():
            status = lab.status()
        if not on:
            status = lab.status()
        first, extension, support, *names = str(status).splitlines()
        assert first == (
            f"robo_orchard_fasthooks {version} is {'' if on else 'not '}"
            f"active in robo_orchard_lab {upstream.VERSION}"
        )
        assert extension == f"  compiled extension: {_dispatch.__file__}"
        assert support == (
            f"  robo_orchard_lab {upstream.VERSION}: {status.support}"
        )
        width = max(map(len, NAMES)) - len("robo_orchard_lab.")
        assert names == [
            f"  {name.removeprefix('robo_orchard_lab.'):<{width}}  "
            + ("replaced" if on else "original")
            for name in NAMES
        ]

    def test_it_cannot_be_changed(self):
        status = lab.status()
        with pytest.raises(TypeError):
            status.names["a"] = "b"
        with pytest.raises(dataclasses.FrozenInstanceError):
            status.installed = True

    def test_a_patch_after_install_is_told_and_left(self):
        name = f"{HOOKS}.mixin.PipelineHooks.begin"
        lab.install()
        PipelineHooks.begin = patch = lambda *args: None
        try:
            assert lab.status().names == {
                **dict.fromkeys(NAMES, "replaced"),
                name: "patched by others since",
            }
            message = f"^{re.escape(name)} was patched after it had been"
            with pytest.warns(UserWarning, match=message) as caught:
                lab.uninstall()
            assert len(caught) == 1 and found(name) is patch
        finally:
            PipelineHooks.begin = ORIGINALS[name]

    def test_a_patch_after_install_that_is_made_an_error(self):
        lab.install()
        with mock.patch.object(PipelineHooks, "begin"):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(UserWarning):
                    lab.uninstall()
            others = [name for name in NAMES if not name.endswith("begin")]
            assert all(found(name) is ORIGINALS[name] for name in others)
            assert not lab.status().installed
        # The patch has put back what it had found, which was ours.
        PipelineHooks.begin = ORIGINALS[f"{HOOKS}.mixin.PipelineHooks.begin"]


class TestImporting:
    def test_without_roboorchardlab(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "robo_orchard_lab", None)
        with pytest.raises(
            ImportError, match="^RoboOrchardLab, which install.. accelerates"
        ) as raised:
            lab.install()
        assert raised.value.name == "robo_orchard_lab"
        assert not lab.status().installed

    def test_with_a_dependency_missing(self, monkeypatch, tmp_path, released):
        monkeypatch.delitem(sys.modules, f"{HOOKS}.grad_clip")
        monkeypatch.setattr(
            sys.modules[HOOKS], "__path__", [str(tmp_path)], raising=False
        )
        tmp_path.joinpath("grad_clip.py").write_text("import no_such_thing")
        with pytest.raises(
            ImportError,
            match=f"^RoboOrchardLab {upstream.VERSION} cannot be imported: .*"
            "no_such_thing",
        ) as raised:
            lab.install()
        assert raised.value.name == "no_such_thing"


def signature_and_docs(function):
    return inspect.signature(function), function.__doc__, function.__name__


@pytest.mark.parametrize(
    "get",
    [
        lambda: inspect.signature(Args),
        lambda: inspect.getsource(PipelineHooks.__init__),
        *(
            partial(
                lambda cls, name: signature_and_docs(getattr(cls, name)),
                *each,
            )
            for each in (
                (Args, "__init__"),
                (Args, "copy_with_updates"),
                (PipelineHooks, "__init__"),
            )
        ),
        lambda: dataclasses.fields(Args),
        lambda: (Args.__mro__, Args.__match_args__, Args.__hash__),
        lambda: type(PipelineHooks()) is PipelineHooks,
        lambda: type(Args(accelerator=1)) is Args,
        lambda: type(Args(1).copy_with_updates(batch=1)) is Args,
        lambda: list(PipelineHooks().hooks),
        lambda: [c.name for c in PipelineHooks().hooks.values()],
        lambda: list(vars(PipelineHooks())),
        lambda: PipelineHooks(1),
        lambda: inspect.getfullargspec(PipelineHooks.from_hooks).args,
    ],
)
def test_what_is_seen_of_the_classes_stays(get):
    assert_same_installed(get)


def shown(args):
    """All that can be told of arguments."""
    return (
        type(args),
        list(vars(args).items()),
        repr(args),
        list(dataclasses.asdict(args).items()),
        dataclasses.astuple(args),
        vars(dataclasses.replace(args, step_id=-1)),
        [args == other for other in (copy.copy(args), Args(0), None)],
    )


class Truthful:
    """Equal to nothing else, and shown alike."""

    def __repr__(self):
        return "Truthful"

    def __deepcopy__(self, memo):
        return self


VALUE = Truthful()

CONSTRUCTIONS = {
    "by position": lambda: Args(VALUE, 1, 2),
    "all by position": lambda: Args(*range(15)),
    "by keyword": lambda: Args(accelerator=VALUE, step_id=3),
    "in another order": lambda: Args(reduce_loss=VALUE, accelerator=2),
    "both": lambda: Args(VALUE, step_id=3, batch=4),
    "a dictionary": lambda: Args(**{"accelerator": 1, "batch": VALUE}),
    "the least": lambda: Args(accelerator=None),
    "missing": lambda: Args(step_id=1),
    "nothing": lambda: Args(),
    "unknown": lambda: Args(accelerator=1, nope=2),
    "unknown for the missing": lambda: Args(nope=2),
    "twice": lambda: Args(1, accelerator=2),
    "too many": lambda: Args(*range(16)),
    "no string": lambda: Args(**{1: 2}),
    "through the metaclass": lambda: type.__call__(Args, accelerator=VALUE),
    "through partial": lambda: partial(Args, accelerator=1)(batch=2),
    "through map": lambda: next(map(Args, [VALUE])),
    "replaced": lambda: dataclasses.replace(Args(VALUE), step_id=2),
    "pickled": lambda: pickle.loads(pickle.dumps(Args(accelerator=1))),
    "copied": lambda: copy.copy(Args(accelerator=VALUE)),
    "copied deeply": lambda: copy.deepcopy(Args(accelerator=VALUE)),
    "initialised again": lambda: reinitialised(Args(accelerator=1)),
    "updated": lambda: ARGS.copy_with_updates(batch=VALUE, step_id=2),
    "updated, all": lambda: ARGS.copy_with_updates(
        batch=1, model_outputs=2, reduce_loss=3, model=4, accelerator=5
    ),
    "updated, none": lambda: ARGS.copy_with_updates(),
    "updated to None": lambda: ARGS.copy_with_updates(batch=None),
    "updated, unknown": lambda: ARGS.copy_with_updates(batch=1, nope=2),
    "updated from the class": lambda: Args.copy_with_updates(ARGS, batch=1),
    "updated class attribute": lambda: ARGS.copy_with_updates(__doc__="mine"),
    "updated method": lambda: ARGS.copy_with_updates(copy_with_updates=1),
}
ARGS = Args(VALUE, 7, batch="batch")


def reinitialised(args):
    args.__init__(2, batch=3)
    return args


@pytest.mark.parametrize("how", CONSTRUCTIONS)
def test_arguments_are_made_as_before(how):
    assert_same_installed(lambda: shown(CONSTRUCTIONS[how]()))


FIELDS = [field.name for field in dataclasses.fields(Args)]
UPDATES = st.dictionaries(
    st.sampled_from([*FIELDS, "nope", "copy_with_updates"]),
    st.one_of(st.none(), st.integers(), st.just(VALUE)),
)


@given(UPDATES, st.lists(st.integers(), max_size=2))
def test_any_keywords_make_the_same_arguments(keywords, positional):
    assert_same_installed(lambda: shown(Args(*positional, **keywords)))


@given(UPDATES, UPDATES)
def test_any_copies_are_the_same(first, second):
    def make():
        args = Args(accelerator=1)
        for name, value in first.items():
            if name in FIELDS:
                setattr(args, name, value)
        return shown(args.copy_with_updates(**second))

    assert_same_installed(make)


@pytest.mark.usefixtures("installed")
class TestArguments:
    def test_making_and_copying_them_runs_no_python(self):
        args = Args(accelerator=1)
        assert python_frames(lambda: Args(accelerator=1, batch=2)) == []
        assert python_frames(lambda: args.copy_with_updates(step_id=2)) == []

    def test_copies_are_apart(self):
        args = Args(accelerator=1)
        copied = args.copy_with_updates(batch=2)
        copied.step_id = 3
        args.epoch_id = 4
        other = Args(accelerator=1)
        assert (args.batch, args.step_id, copied.epoch_id) == (None, 0, 0)
        assert (other.batch, other.step_id, other.epoch_id) == (None, 0, 0)

    def test_more_attributes_are_the_same_error(self):
        def call():
            args = Args(accelerator=1)
            args.extra = 2
            return args.copy_with_updates()

        assert_same_installed(call)

    def test_an_unknown_one_is_named(self):
        with pytest.raises(
            AttributeError, match="^nope is not a valid attribute$"
        ):
            Args(accelerator=1).copy_with_updates(nope=1)

    def test_a_patched_init_counts(self):
        args = Args(accelerator=1)
        with mock.patch.object(Args, "__init__", return_value=None) as init:
            Args(accelerator=1)
            Args(1, step_id=2)
            args.copy_with_updates(batch=3)
        assert init.call_args_list == [
            mock.call(accelerator=1),
            mock.call(1, step_id=2),
            mock.call(**vars(args)),
        ]
        assert python_frames(lambda: Args(accelerator=1)) == []

    def test_a_setattr_that_is_patched_later_counts(self, monkeypatch):
        names = []

        def patch(self, name, value):
            names.append(name)
            object.__setattr__(self, name, value)

        with lab.install(), monkeypatch.context() as patched:
            patched.setattr(Args, "__setattr__", patch)
            args = Args(accelerator=1).copy_with_updates(batch=3)
            assert (args.accelerator, args.batch) == (1, 3)
            fields = [field.name for field in dataclasses.fields(Args)]
            assert names == [*fields, *fields, "batch"]

    def test_a_new_that_is_patched_later_counts(self):
        # Not of RoboOrchardLab's class: CPython cannot take it back there.
        @dataclasses.dataclass
        class Own:
            a: int

        made = []

        def patch(cls, *args, **kwargs):
            made.append(cls)
            return object.__new__(cls)

        _fast_dataclass.enable(Own)
        try:
            Own.__new__ = patch
            assert Own(a=1).a == 1 and made == [Own]
        finally:
            _fast_dataclass.disable(Own)

    def test_missing_is_a_value(self):
        assert_same_installed(
            lambda: (
                Args(accelerator=1)
                .copy_with_updates(batch=dataclasses.MISSING)
                .batch
            )
        )

    def test_weak_references_and_cycles(self):
        args = Args(accelerator=1)
        copied = args.copy_with_updates(batch=args)
        args.batch = copied
        references = weakref.ref(args), weakref.ref(copied)
        assert all(gc.is_tracked(each) for each in (args, copied))
        del args, copied
        gc.collect()
        assert [reference() for reference in references] == [None, None]

    def test_they_leak_nothing(self):
        args, value = Args(accelerator=1), object()

        def repeat(count):
            for _ in range(count):
                made = Args(accelerator=value, batch=value)
                made.copy_with_updates(
                    batch=value, reduce_loss=value, step_id=value
                )
                Args(value, 1, batch=value)
                outcome(lambda: Args(nope=value))
                outcome(lambda: args.copy_with_updates(batch=1, nope=value))

        gc.collect()
        gc.disable()
        try:
            repeat(100)
            references = sys.getrefcount(value), sys.getrefcount(None)
            blocks = sys.getallocatedblocks()
            repeat(3000)
            assert sys.getallocatedblocks() - blocks < 20
            assert sys.getrefcount(value) == references[0]
            assert abs(sys.getrefcount(None) - references[1]) < 20
        finally:
            gc.enable()


@pytest.mark.parametrize("name", ["batch", "accelerator", "step_id"])
def test_a_deleted_attribute(name):
    def call():
        args = Args(accelerator=1, batch=2, step_id=3)
        delattr(args, name)
        return shown(args.copy_with_updates(epoch_id=1))

    assert_same_installed(call)


class Extended:
    """Kinds of subclasses."""

    @dataclasses.dataclass
    class Field(Args):
        extra: int = 1

    @dataclasses.dataclass
    class PostInit(Args):
        made: int = 0

        def __post_init__(self):
            self.made += 1
            self.batch = "post"

    class Init(Args):
        def __init__(self, accelerator, **kwargs):
            super().__init__(accelerator, **kwargs)
            self.model = "own"

    class Plain(Args):
        pass

    class New(Args):
        def __new__(cls, *args, **kwargs):
            made = super().__new__(cls)
            made.step_id = 5
            return made


@pytest.mark.parametrize("cls", ["Field", "PostInit", "Init", "Plain", "New"])
def test_subclasses_are_made_as_before(cls):
    cls = getattr(Extended, cls)

    def copied(**updates):
        return shown(cls(accelerator=1).copy_with_updates(**updates))

    loop = {"batch": 2, "model_outputs": 3, "reduce_loss": 4}
    for keywords in ({"accelerator": 1}, {"nope": 1}, {}):
        assert_same_installed(partial(outcome, partial(cls, **keywords)))
    for updates in ({}, loop, {"made": 3, "extra": 4}):
        assert_same_installed(partial(copied, **updates))


def test_subclasses_made_while_installed(installed):
    @dataclasses.dataclass
    class Own(Args):
        extra: int = 1

        def __post_init__(self):
            self.extra += 1

    args = Own(accelerator=1, step_id=2)
    assert (args.step_id, args.extra) == (2, 2)
    assert args.copy_with_updates(step_id=3).extra == 3
    lab.uninstall()
    assert vars(Own(accelerator=1, step_id=2)) == vars(args)


class Counting(PipelineHooks):
    """Made before install, with a `begin` of its own."""

    def __init__(self):
        super().__init__()
        self.begun = []
        self.register_hook("on_step", logging_hook(self.begun))

    def begin(self, channel, arg):
        self.begun.append(channel)
        return super().begin(channel, arg)


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

    def test_a_begin_that_calls_super(self, installed):
        hooks = Counting()
        run(hooks)
        assert hooks.begun == ["on_step", "a"]

    def test_a_channel_of_a_subclass_is_left(self, installed):
        class Own(PipelineHooks):
            def __init__(self):
                super().__init__()
                self.hooks["on_save"] = core.HookContextChannel("on_save")

        assert type(Own().hooks["on_save"]) is core.HookContextChannel

    def test_another_class_of_channels_is_left(self, installed, monkeypatch):
        class Own(core.HookContextChannel[core.T]):
            pass

        monkeypatch.setattr(upstream.mixin, "HookContextChannel", Own)
        assert type(PipelineHooks().hooks["on_step"]) is Own

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

    def test_a_failing_init_of_a_subclass(self, installed):
        class Failing(PipelineHooks):
            def __init__(self):
                super().__init__(1)

        with pytest.raises(TypeError, match="positional argument"):
            Failing()

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
        with copied.begin(ends := Ending()):
            pass
        assert log == ["b"] and ends.exception == "kept"

    def test_a_deep_copy_of_what_holds_itself(self, installed):
        channel = PipelineHooks().hooks["on_step"]
        channel.itself, channel.pair = channel, [channel, channel]
        copied = copy.deepcopy(channel)
        assert copied is not channel and copied.itself is copied
        assert copied.pair == [copied, copied]


class Ending:
    """Arguments whose `exception` a compiled channel in place leaves."""

    exception = "kept"


class Stepped:
    """Stands for an optimizer and a scheduler."""

    def __init__(self):
        self.calls = []

    def step(self):
        self.calls.append("step")

    def zero_grad(self):
        self.calls.append("zero")


def train(hooks):
    """A step with a gradient of norm 5; returns the parameter."""
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([3.0, 4.0])
    args = Args(Accelerator(cpu=True), lr_scheduler=Stepped())
    args.optimizer = torch.optim.SGD([param], lr=1.0)
    run(hooks, args)
    assert args.lr_scheduler.calls == ["step"]
    return param.tolist()


def pickled_hooks():
    hooks = PipelineHooks.from_hooks(
        [
            upstream.grad_clip.GradientClippingHookConfig(
                clip_mode="norm", max_norm=1
            ),
            upstream.optimizer.OptimizerHook(None),
        ]
    )
    hooks.register_hook("on_step", HookContext.from_callable("r", repr))
    return hooks


def state(channel):
    return {
        **vars(channel),
        "_context_handlers": [
            (type(each), each.name, type(each._before))
            for each in channel._context_handlers
        ],
    }


PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class TestPickles:
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_load_as_what_upstream_s_load_as(self, protocol):
        loaded = []
        for install in (False, True):
            if install:
                lab.install()
            hooks = pickled_hooks()
            data = [
                pickle.dumps(each, protocol)
                for each in (hooks, hooks.hooks["on_step"])
            ]
            if install:
                lab.uninstall()
            assert not any(b"fasthooks" in each for each in data)
            hooks, channel = map(pickle.loads, data)
            assert type(hooks) is PipelineHooks
            for each in (*hooks.hooks.values(), channel):
                assert type(each) is core.HookContextChannel
            loaded.append(
                (
                    list(hooks.hooks),
                    *map(state, hooks.hooks.values()),
                    state(channel),
                    type(channel._context_handlers),
                )
            )
        assert loaded[0] == loaded[1]

    def test_made_without_load_with_install_on(self):
        data = pickle.dumps(pickled_hooks())
        with lab.install():
            hooks = pickle.loads(data)
            merged = PipelineHooks.from_hooks([hooks])
            assert type(merged.hooks["on_step"]) is _dispatch.LabChannel
            for each in (hooks, merged):
                assert train(each) == pytest.approx([-0.6, -0.8])

    def test_load_where_this_package_is_not(self, installed, tmp_path):
        for protocol in PROTOCOLS:
            hooks = pickled_hooks()
            what = hooks, hooks.hooks["on_step"], Args(accelerator=1)
            tmp_path.joinpath(str(protocol)).write_bytes(
                pickle.dumps(what, protocol)
            )
        program = """
import sys
from pathlib import Path
from unittest import mock

sys.modules["robo_orchard_fasthooks"] = None
sys.path.insert(0, sys.argv[2])

import pickle
import torch
from helpers import upstream
from accelerate import Accelerator
from robo_orchard_core.utils.hook import HookContextChannel

for file in Path(sys.argv[1]).iterdir():
    hooks, channel, args = pickle.loads(file.read_bytes())
    assert type(hooks) is upstream.mixin.PipelineHooks
    assert type(args) is upstream.mixin.PipelineHookArgs
    for each in (*hooks.hooks.values(), channel):
        assert type(each) is HookContextChannel, type(each)
    assert channel is hooks.hooks["on_step"]
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([3.0, 4.0])
    args.accelerator = Accelerator(cpu=True)
    args.optimizer = torch.optim.SGD([param], lr=1.0)
    args.lr_scheduler = mock.Mock()
    with hooks.begin("on_step", args):
        pass
    assert torch.allclose(param, torch.tensor([-0.6, -0.8]))
    args.lr_scheduler.step.assert_called_once_with()
print("loaded")
"""
        command = [sys.executable, "-c", program, str(tmp_path)]
        tests = upstream.__file__.rpartition("/")[0]
        assert processes.run([*command, tests])[0] == "loaded\n"


class TestRows:
    """What test_lab_rows leaves out, where upstream is the other side."""

    def test_remove_unregisters(self, installed, log):  # F1
        hooks = PipelineHooks()
        hooks.register_hook("on_step", logging_hook(log)).remove()
        with hooks.register_hook("on_step", logging_hook(log)):
            assert len(hooks.hooks["on_step"]) == 1
        other = PipelineHooks()
        other.register_hook("on_step", logging_hook(log))
        hooks.register_pipeline_hooks(other).remove()
        run(hooks)
        assert log == []

    def test_a_hook_that_unregisters_itself(self, installed, log):  # F2
        hooks = PipelineHooks()
        handle = hooks.register_hook(
            "on_step", HookContext.from_callable(after=lambda _: handle())
        )
        hooks.register_hook("on_step", logging_hook(log))
        run(hooks)
        assert log == ["a"] and len(hooks.hooks["on_step"]) == 1

    @pytest.mark.parametrize(  # F6
        "callback", [partial(print, 1), math.sqrt, mock.Mock()]
    )
    def test_any_callable_can_be_shown(self, installed, callback):
        hooks = PipelineHooks()
        hook = HookContext.from_callable("me", callback)
        hooks.register_hook("on_step", hook)
        for each in (hooks, hooks.hooks["on_step"]):
            assert "me" in repr(each)

    def test_the_wrong_order_is_warned_of_once(self, installed):  # F8
        grad_clip, optimizer = upstream.grad_clip, upstream.optimizer
        clipping = grad_clip.GradientClippingHookConfig(
            clip_mode="norm", max_norm=1
        )()
        message = "^GradientClippingHook is at position 1 of 'on_step', after "
        with pytest.warns(UserWarning, match=message) as caught:
            hooks = PipelineHooks.from_hooks(
                [optimizer.OptimizerHookConfig(), clipping]
            )
        assert len(caught) == 1
        hooks += clipping
        run(PipelineHooks())

    def test_the_wrong_order_is_warned_of_here(self, installed):  # F8
        hooks = upstream.optimizer.OptimizerHook(None)
        with pytest.warns(UserWarning) as caught:
            hooks += upstream.grad_clip.GradientClippingHookConfig(
                clip_mode="norm", max_norm=1
            )()
        assert caught[0].filename == __file__

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

    def test_0_4_s_arguments_get_no_exception(self, installed):
        hooks, args = PipelineHooks(), Args(accelerator=1)
        before = dict(vars(args))
        for error in (None, KeyError()):
            outcome(partial(failing, hooks, args, error))
        assert vars(args) == before

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


def failing(hooks, args, error):
    with hooks.begin("on_step", args):
        if error is not None:
            raise error


OURS, THEIRS = (
    [
        lib.GradientClippingHookConfig(clip_mode="norm", max_norm=1),
        lib.GradientClippingHookConfig(clip_mode="norm", max_norm=1)(),
        lib.OptimizerHookConfig(),
        lib.OptimizerHook(None),
    ]
    for lib in (
        robo_orchard_fasthooks,
        mock.Mock(**{**vars(upstream.grad_clip), **vars(upstream.optimizer)}),
    )
)
MIXED = [OURS[0], THEIRS[1], THEIRS[2], OURS[3]]


@pytest.mark.usefixtures("installed")
class TestMixing:
    @pytest.mark.parametrize(
        "cls", [PipelineHooks, robo_orchard_fasthooks.PipelineHooks]
    )
    def test_from_hooks_takes_both_families(self, cls):
        for given_ in (MIXED, iter(MIXED), tuple(MIXED), MIXED[::1]):
            hooks = cls.from_hooks(given_)
            assert type(hooks) is cls and len(hooks.hooks["on_step"]) == 4
        for single in (*OURS, *THEIRS):
            assert len(cls.from_hooks(single).hooks["on_step"]) == 1
        assert not any(map(len, cls.from_hooks(None).hooks.values()))

    def test_from_hooks_of_a_subclass(self):
        hooks = Counting.from_hooks([OURS[3]])
        assert type(hooks) is Counting and len(hooks.hooks["on_step"]) == 2

    @pytest.mark.parametrize("given_", [1, "on_step", [None], [int], object()])
    def test_anything_else_is_a_type_error(self, given_):
        with pytest.raises(TypeError, match="^Expected PipelineHooks"):
            PipelineHooks.from_hooks(given_)
        with pytest.raises(TypeError, match="^Expected PipelineHooks"):
            PipelineHooks().register_pipeline_hooks(given_)

    @pytest.mark.parametrize(
        "make",
        [
            lambda hooks: mock.Mock(spec=hooks, hooks=hooks.hooks),
            weakref.proxy,
        ],
    )
    def test_doubles_are_hooks_as_before(self, make):
        def call():
            hooks = upstream.optimizer.OptimizerHook(None)
            return len(
                PipelineHooks.from_hooks([make(hooks)]).hooks["on_step"]
            )

        assert assert_same_installed(call) == 1

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


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


class TestClipping:
    def gradients(self, hook, accelerator, scale=1.0):
        generator = torch.Generator().manual_seed(0)
        shapes = [(3, 4), (5,), (), (7, 11), *[(64,)] * 8]
        params = [torch.nn.Parameter(torch.zeros(each)) for each in shapes]
        for param in params:
            param.grad = scale * torch.randn(param.shape, generator=generator)
        optimizer = torch.optim.SGD(params, lr=1)
        run(hook, Args(accelerator=accelerator, optimizer=optimizer))
        return [param.grad.tolist() for param in params]

    @pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
    @pytest.mark.parametrize(
        "settings",
        [
            {"clip_mode": "norm", "max_norm": 1.5},
            {"clip_mode": "norm", "max_norm": 1.5, "norm_type": math.inf},
            {"clip_mode": "norm", "max_norm": 0.7, "norm_type": 1.0},
            {"clip_mode": "value", "clip_value": 0.5},
        ],
    )
    def test_gives_the_same_bits(self, accelerator, settings, scale):
        config = upstream.grad_clip.GradientClippingHookConfig(**settings)
        attributes = []

        def call():
            hook = config()
            grads = self.gradients(hook, accelerator, scale)
            attributes.append(list(vars(hook)))
            return grads

        assert_same_installed(call)
        assert attributes[0] == attributes[1]

    def test_is_ours(self, accelerator, installed):
        hook = THEIRS[0]()
        with mock.patch("torch.nn.utils.clip_grad_norm_") as clip:
            self.gradients(hook, accelerator)
        clip.assert_not_called()

    def test_of_hooks_made_before(self, accelerator):
        hook = THEIRS[0]()
        expected = self.gradients(THEIRS[0](), accelerator)
        with lab.install():
            assert self.gradients(hook, accelerator) == expected

    def test_of_a_subclass_that_calls_super(self, accelerator):
        class Own(upstream.grad_clip.GradientClippingHook):
            def _gradient_clipping(self, hook_args):
                self.max_norm /= 2
                super()._gradient_clipping(hook_args)

        def call():
            hook = Own(THEIRS[0])
            first = self.gradients(hook, accelerator)
            return first, self.gradients(hook, accelerator), hook.max_norm

        assert assert_same_installed(call)[2] == 0.25

    def test_goes_on_after_a_failing_body_as_before(self, accelerator):
        def call():
            param = torch.nn.Parameter(torch.zeros(2))
            param.grad = torch.tensor([3.0, 4.0])
            args = Args(accelerator, optimizer=torch.optim.SGD([param], lr=1))
            outcome(lambda: failing(THEIRS[0](), args, KeyError()))
            return param.grad.tolist()

        assert assert_same_installed(call) == pytest.approx([0.6, 0.8])

    def test_is_switched_off_by_another_mode_as_before(self, accelerator):
        def call():
            hook = THEIRS[0]()
            hook.clip_mode = None
            return self.gradients(hook, accelerator)

        assert_same_installed(call)

    def test_needs_an_optimizer(self, accelerator, installed):
        with pytest.raises(ValueError, match="have no optimizer"):
            run(THEIRS[0](), Args(accelerator))
