"""Channels, scopes and handles: rows K1-K8, K10, F1-F4, F6, F7 and F11."""

import functools
import gc
import logging
import math
import operator
import subprocess
import sys
import weakref
from contextlib import ExitStack
from unittest import mock

import pytest
from robo_orchard_core.utils import hook as core

HookContext = core.HookContext


class Logging(HookContext):
    """A hook of the kind that subclasses HookContext."""

    def __init__(self, log, name):
        super().__init__(name)
        self.log = log

    def before(self, arg):
        self.log.append(f"before {self.name}")

    def after(self, arg):
        self.log.append(f"after {self.name}")


@pytest.fixture
def hooks(lib):
    return lib.PipelineHooks()


@pytest.fixture
def channel(lib):
    return lib.HookContextChannel("on_step")


@pytest.fixture
def args(lib):
    return lib.PipelineHookArgs(accelerator=None)


def chain(error):
    """An exception and its contexts, outermost first."""
    found = []
    while error is not None:
        found.append((type(error), str(error)))
        error = error.__context__
    return found


def test_callbacks_run_in_the_order_of_registration(hooks, hook, log, args):
    for name in "abc":
        hooks.register_hook("on_step", hook(name))
    with hooks.begin("on_step", args):
        log.append("body")
    assert log == [
        *("before a", "before b", "before c", "body"),
        *("after a", "after b", "after c"),
    ]


def test_a_failing_before_skips_to_all_afters(hooks, hook, log, args):
    for name, fail in (("a", ()), ("b", ["before"]), ("c", ())):
        hooks.register_hook("on_step", hook(name, fail))
    with pytest.raises(ValueError, match="before b"):
        with hooks.begin("on_step", args):
            log.append("body")
    assert log == ["before a", "before b", "after a", "after b", "after c"]


def test_a_failing_after_skips_later_afters(hooks, hook, log, args):
    for name, fail in (("a", ()), ("b", ["after"]), ("c", ())):
        hooks.register_hook("on_step", hook(name, fail))
    with pytest.raises(ValueError) as raised:
        with hooks.begin("on_step", args):
            raise KeyError("body")
    assert log[-2:] == ["after a", "after b"]
    assert chain(raised.value) == [
        (ValueError, "after b"),
        (KeyError, "'body'"),
    ]


def test_a_failing_after_has_a_failing_before_as_context(hooks, hook, args):
    hooks.register_hook("on_step", hook("a", ["before", "after"]))
    with pytest.raises(ValueError) as raised:
        with hooks.begin("on_step", args):
            pass
    assert chain(raised.value) == [
        (ValueError, "after a"),
        (ValueError, "before a"),
    ]


@pytest.mark.parametrize(
    "error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit]
)
def test_the_body_s_exception_is_raised_as_it_is(
    hooks, hook, log, args, error
):
    hooks.register_hook("on_step", hook("a"))
    given = error("x")
    with pytest.raises(error) as raised:
        with hooks.begin("on_step", args):
            raise given
    assert raised.value is given
    assert log == ["before a", "after a"]


def test_stop_iteration_of_a_body_passes(hooks, hook, args):
    hooks.register_hook("on_step", hook("a"))
    with pytest.raises(StopIteration):
        with hooks.begin("on_step", args):
            raise StopIteration


def test_stop_iteration_of_a_hook_stays_one(ours, theirs):
    def stop(args):
        raise StopIteration

    for lib, expected in ((ours, StopIteration), (theirs, RuntimeError)):
        hooks = lib.PipelineHooks()
        hooks.register_hook("on_step", HookContext.from_callable(before=stop))
        with pytest.raises(expected):
            with hooks.begin("on_step", None):
                pass


def test_a_hook_is_registered_once(hooks, hook, log, args):
    same = hook("a")
    first = hooks.register_hook("on_step", same)
    hooks.register_hook("on_step", hook("b"))
    second = hooks.register_hook("on_step", same)
    with hooks.begin("on_step", args):
        pass
    assert log[:2] == ["before a", "before b"]
    second()
    assert len(hooks.hooks["on_step"]) == 1
    first()
    assert len(hooks.hooks["on_step"]) == 1


def test_the_same_hook_is_told_by_equality(channel, log):
    class Equal(Logging):
        def __eq__(self, other):
            return isinstance(other, Equal)

        def __hash__(self):
            return 1

    first, second = Equal(log, "a"), Equal(log, "b")
    channel.register(first)
    handle = channel.register(second)
    assert len(channel) == 1 and channel[0] is first
    handle()
    assert len(channel) == 0


def test_an_unhashable_hook_is_a_type_error(channel, log, hook):
    class Unhashable(Logging):
        __hash__ = None

    channel.register(hook("a"))
    with pytest.raises(TypeError, match="unhashable type: 'Unhashable'"):
        channel.register(Unhashable(log, "b"))
    assert len(channel) == 1


def test_a_handle_discards_the_hook_however_often(channel, hook):
    same = hook("a")
    handle = channel.register(same)
    handle()
    handle()
    assert len(channel) == 0
    channel.register(same)
    handle()
    assert len(channel) == 0


def test_a_removed_handle_cannot_be_called(channel, hook):
    handle = channel.register(hook("a"))
    handle.remove()
    handle.remove()
    with pytest.raises(RuntimeError, match="^The handle has been removed$"):
        handle()


def test_remove_unregisters(ours, theirs, hook):  # F1
    for lib, left in ((ours, 0), (theirs, 1)):
        channel = lib.HookContextChannel("on_step")
        channel.register(hook("a")).remove()
        assert len(channel) == left
        with channel.register(hook("b")):
            assert len(channel) == left + 1
        assert len(channel) == 2 * left


def test_removing_a_merge_unregisters_all_of_it(ours, hook):  # F1
    hooks, other = ours.PipelineHooks(), ours.PipelineHooks()
    other.register_hook("on_step", hook("a"))
    other.register_hook("on_epoch", hook("b"))
    kept = hook("c")
    hooks.register_hook("on_step", kept)
    hooks.register_pipeline_hooks(other).remove()
    assert list(hooks.hooks["on_step"]._context_handlers) == [kept]
    assert len(hooks.hooks["on_epoch"]) == 0
    assert len(other.hooks["on_step"]) == 1


def test_a_failing_removal_can_be_tried_again(ours):
    calls = []

    def undo():
        calls.append(None)
        if len(calls) == 1:
            raise OSError

    handle = ours.RemoveableHandle(undo)
    with pytest.raises(OSError):
        handle.remove()
    handle.remove()
    assert len(calls) == 2 and handle.hook is None


def test_a_handle_passes_on_arguments(lib):
    handle = lib.RemoveableHandle(lambda *args, **kwds: (args, kwds))
    assert handle(1, a=2) == ((1,), {"a": 2})


def test_begin_yields_its_argument(hooks, args):
    with hooks.begin("on_step", args) as given:
        assert given is args
    with hooks.begin(arg=args, channel="on_step") as given:
        assert given is args
    with hooks.hooks["on_step"].begin(arg=args) as given:
        assert given is args


def test_nothing_runs_before_a_scope_is_entered(hooks, hook, log, args):
    hooks.register_hook("on_step", hook("a"))
    scope = hooks.begin("on_step", args)
    hooks.register_hook("on_step", hook("b"))
    assert log == []
    with scope:
        assert log == ["before a", "before b"]


def test_a_scope_decorates(hooks, hook, log, args):
    hooks.register_hook("on_step", hook("a"))

    @hooks.begin("on_step", args)
    def double(number, *, plus=0):
        """Doubles."""
        log.append("body")
        return 2 * number + plus

    assert double.__name__ == "double" and double.__doc__ == "Doubles."
    assert [double(2), double(3, plus=1)] == [4, 7]
    assert log == ["before a", "body", "after a"] * 2


def test_a_scope_works_in_an_exit_stack(hooks, hook, log, args):
    hooks.register_hook("on_step", hook("a"))
    with ExitStack() as stack:
        assert stack.enter_context(hooks.begin("on_step", args)) is args
        assert log == ["before a"]
    assert log == ["before a", "after a"]


def test_entering_and_leaving_by_hand(hooks, hook, log, args):
    hooks.register_hook("on_step", hook("a"))
    scope = hooks.begin("on_step", args)
    assert scope.__enter__() is args
    assert not scope.__exit__(None, None, None)
    assert log == ["before a", "after a"]
    assert not scope.__exit__(None, None, None)
    assert log == ["before a", "after a"]


def test_a_scope_is_entered_once(ours, hook, log):  # F11
    hooks = ours.PipelineHooks()
    hooks.register_hook("on_step", hook("a"))
    scope = hooks.begin("on_step", None)
    for _ in range(2):
        with scope:
            with pytest.raises(
                RuntimeError, match="^a scope can be entered once$"
            ):
                with scope:
                    raise AssertionError("entered twice")
        scope = hooks.begin("on_step", None)
    with hooks.begin("on_step", None) as _:
        pass
    with scope:
        pass
    with pytest.raises(RuntimeError, match="^a scope can be entered once$"):
        with scope:
            pass
    assert log == ["before a", "after a"] * 4


def test_a_scope_is_left_after_it_was_entered(ours):
    with pytest.raises(
        RuntimeError, match="^a scope has to be entered before it is left$"
    ):
        ours.PipelineHooks().begin("on_step", None).__exit__(None, None, None)


def test_a_scope_that_begin_did_not_make(ours):
    scope = type(ours.PipelineHooks().begin("on_step", None))()
    for call in (
        scope.__enter__,
        lambda: scope.__exit__(None, None, None),
    ):
        with pytest.raises(RuntimeError, match="^a scope"):
            call()


def test_a_hook_cannot_leave_the_scope_that_is_being_entered(lib, hook, log):
    hooks = lib.PipelineHooks()
    hooks.register_hook(
        "on_step",
        HookContext.from_callable(
            before=lambda args: scope.__exit__(None, None, None)
        ),
    )
    for name in "ab":
        hooks.register_hook("on_step", hook(name))
    scope = hooks.begin("on_step", None)
    error = RuntimeError if lib.name == "ours" else ValueError
    with pytest.raises(error):
        with scope:
            pass
    assert log == ["after a", "after b"]


def test_a_hook_may_leave_the_scope_that_is_being_left(ours, hook, log):
    hooks = ours.PipelineHooks()
    hooks.register_hook(
        "on_step",
        HookContext.from_callable(
            after=lambda args: scope.__exit__(None, None, None)
        ),
    )
    hooks.register_hook("on_step", hook("a"))
    scope = hooks.begin("on_step", None)
    with scope:
        pass
    assert log == ["before a", "after a"]


class TestPatching:
    """K7: what is changed late counts at the next call."""

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

    def test_of_begin_in_a_subclass(self, lib, hook, log):
        class Counting(lib.PipelineHooks):
            def begin(self, channel, arg):
                log.append(channel)
                return super().begin(channel, arg)

        hooks = Counting()
        hooks.register_hook("on_step", hook("a"))
        self.run(hooks)
        assert log == ["on_step", "before a", "after a"]


class TestChannel:
    """K8."""

    def test_len_and_indexing(self, channel, hook):
        a, b, c = hook("a"), hook("b"), hook("c")
        assert len(channel) == 0
        for each in (a, b, c):
            channel.register(each)
        assert len(channel) == 3
        assert [channel[0], channel[-1]] == [a, c]
        assert list(channel[1:]) == [b, c]
        assert list(channel._context_handlers) == [a, b, c]
        with pytest.raises(IndexError, match="index out of range"):
            channel[3]
        with pytest.raises(TypeError):
            channel["a"]

    def test_adding(self, lib, channel, hook):
        a, b = hook("a"), hook("b")
        other = lib.HookContextChannel("on_step")
        other.register(b)
        same = channel
        same += a
        same += other
        assert same is channel
        assert list(channel._context_handlers) == [a, b]
        with pytest.raises(TypeError, match="Cannot add <class 'int'> to"):
            same += 1

    def test_merging(self, lib, channel, hook):
        a, b, c = hook("a"), hook("b"), hook("c")
        other = lib.HookContextChannel("on_step")
        for each in (b, c):
            other.register(each)
        channel.register(a)
        channel.register(c)
        handle = channel.register_hook_channel(other)
        assert list(channel._context_handlers) == [a, c, b]
        handle()
        assert list(channel._context_handlers) == [a]
        channel.register_hook_channel(channel)
        assert list(channel._context_handlers) == [a]

    def test_merging_other_names_is_refused(self, lib, channel, hook):
        other = lib.HookContextChannel("on_epoch")
        other.register(hook("a"))
        with pytest.raises(
            ValueError,
            match="Cannot register hook channel on_epoch to on_step",
        ):
            channel.register_hook_channel(other)
        assert len(channel) == 0

    def test_merging_with_robo_orchard_core_both_ways(self, ours, hook):
        mine = ours.HookContextChannel("on_step")
        theirs = core.HookContextChannel("on_step")
        a, b = hook("a"), hook("b")
        mine.register(a)
        theirs.register(b)
        mine.register_hook_channel(theirs)
        theirs.register_hook_channel(mine)
        assert list(mine._context_handlers) == [a, b]
        assert list(theirs._context_handlers) == [b, a]

    def test_unregistering_all(self, channel, hook, log):
        channel.register(hook("a"))
        channel.unregister_all()
        assert len(channel) == 0
        with channel.begin(None):
            pass
        assert log == []

    def test_name_and_repr(self, ours, theirs, hook):
        hooks = [hook("a"), hook("b")]
        shown = []
        for lib in (ours, theirs):
            for count in (0, 1, 2):
                channel = lib.HookContextChannel("on_step")
                assert channel.name == "on_step"
                for each in hooks[:count]:
                    channel.register(each)
                cls = type(channel)
                shown.append(
                    repr(channel).replace(f"{cls.__module__}.", "", 1)
                )
        assert shown[:3] == shown[3:]

    def test_types(self, ours, hook):  # K10
        channel = ours.HookContextChannel("on_step")
        assert isinstance(channel, core.HookContextChannel)
        assert isinstance(channel.register(hook("a")), core.RemoveableHandle)
        assert ours.HookContext is core.HookContext
        assert isinstance(
            ours.HookContextChannel[int]("on_step"), ours.HookContextChannel
        )
        assert isinstance(
            ours.RemoveableHandle[print](print), core.RemoveableHandle
        )

    def test_subclass_without_init(self, ours, hook, log):
        class Nameless(ours.HookContextChannel):
            def __init__(self):
                pass

        channel = Nameless()
        channel.register(hook("a"))
        with channel.begin(None):
            pass
        assert log == ["before a", "after a"]

    def test_subclass_without_init_and_a_failing_hook(self, ours, hook, log):
        class Nameless(ours.HookContextChannel):
            def __init__(self):
                pass

        channel = Nameless()
        channel.register(hook("a", ["before"]))
        with pytest.raises(ValueError, match="^before a$"):
            with channel.begin(None):
                pass
        assert log == ["before a", "after a"]

    def test_weak_references(self, channel, hook):
        target = hook("a")
        channel.register(target)
        references = weakref.ref(channel), weakref.ref(target)
        assert [reference() for reference in references] == [channel, target]


class TestChangesWhileDispatching:
    """F2: a phase runs over the hooks as they stood when it began."""

    def run(self, hooks, log):
        with hooks.begin("on_step", None):
            log.append("body")
        return log

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


class TestException:
    """F3: hooks see in `arg.exception` what the scope raised."""

    @pytest.fixture
    def seen(self):
        return []

    @pytest.fixture
    def watched(self, ours, seen):
        hooks = ours.PipelineHooks()
        hooks.register_hook(
            "on_step",
            HookContext.from_callable(
                before=lambda args: seen.append(args.exception),
                after=lambda args: seen.append(args.exception),
            ),
        )
        return hooks

    def arguments(self, ours):
        class Subclass(ours.PipelineHookArgs):
            pass

        class Foreign:
            exception = None

        return [ours.PipelineHookArgs(None), Subclass(None), Foreign()]

    def test_of_a_body(self, ours, watched, seen):
        for args in self.arguments(ours):
            seen.clear()
            error = ValueError()
            with pytest.raises(ValueError):
                with watched.begin("on_step", args):
                    raise error
            assert seen == [None, error]
            assert args.exception is None

    def test_none_without_one(self, ours, watched, seen):
        for args in self.arguments(ours):
            seen.clear()
            stale = ValueError("stale")
            with watched.begin("on_step", args):
                args.exception = stale
            assert seen[1] is None
            assert args.exception is stale

    def test_of_a_failing_before(self, ours, watched, seen, hook):
        watched.register_hook("on_step", hook("a", ["before"]))
        args = ours.PipelineHookArgs(None)
        with pytest.raises(ValueError) as raised:
            with watched.begin("on_step", args):
                pass
        assert seen == [None, raised.value]
        assert args.exception is None

    def test_is_reset_when_an_after_fails(self, ours, watched, hook):
        watched.register_hook("on_step", hook("a", ["after"]))
        args = ours.PipelineHookArgs(None)
        with pytest.raises(ValueError):
            with watched.begin("on_step", args):
                raise KeyError
        assert args.exception is None

    def test_of_nested_scopes_on_the_same_arguments(self, ours, watched, seen):
        args = ours.PipelineHookArgs(None)
        error = ValueError()
        with pytest.raises(ValueError):
            with watched.begin("on_step", args):
                with watched.begin("on_step", args):
                    raise error
        assert seen == [None, None, error, error]

    def test_outlasts_a_scope_that_an_after_runs(self, ours, watched, seen):
        def nested(args):
            with ours_too.begin("on_step", args):
                pass

        ours_too = ours.PipelineHooks()
        ours_too.register_hook(
            "on_step", HookContext.from_callable(after=seen.append)
        )
        hooks = ours.PipelineHooks()
        hooks.register_hook("on_step", HookContext.from_callable(after=nested))
        hooks += watched
        for args in self.arguments(ours):
            seen.clear()
            error = ValueError()
            with pytest.raises(ValueError):
                with hooks.begin("on_step", args):
                    raise error
            assert seen == [None, args, error]
            assert args.exception is None

    def test_a_method_of_that_name_is_left_alone(self, ours, hook):
        logger = logging.getLogger(__name__)
        hooks = ours.PipelineHooks()
        hooks.register_hook("on_step", hook("a"))
        with hooks.begin("on_step", logger):
            pass
        assert logger.exception == type(logger).exception.__get__(logger)

    def test_arguments_that_have_none_are_left_alone(self, ours, hook, log):
        class ReadOnly:
            @property
            def exception(self):
                return None

        class Bare:
            pass

        hooks = ours.PipelineHooks()
        hooks.register_hook("on_step", hook("a"))

        class Unreadable:
            @property
            def exception(self):
                raise RuntimeError

        for args in (Bare(), ReadOnly(), Unreadable(), None, {}):
            with pytest.raises(KeyError):
                with hooks.begin("on_step", args):
                    raise KeyError
        bare = Bare()
        with hooks.begin("on_step", bare):
            pass
        assert vars(bare) == {}
        assert log == ["before a", "after a"] * 6

    def test_leaves_no_cycle_behind(self, ours, watched, seen):
        class Batch:
            pass

        def step():
            batch = Batch()
            alive.append(weakref.ref(batch))
            args = ours.PipelineHookArgs(None, batch=batch)
            with watched.begin("on_step", args):
                raise MemoryError

        alive = []
        gc.collect()
        gc.disable()
        try:
            try:
                step()
            except MemoryError:
                pass
            seen.clear()
            assert alive[0]() is None
        finally:
            gc.enable()


@pytest.mark.parametrize("given", [print, 1, None, "hook", object()])
def test_what_is_no_hook_is_refused(ours, given):  # F4
    hooks = ours.PipelineHooks()
    with pytest.raises(TypeError) as raised:
        hooks.register_hook("on_step", given)
    assert str(raised.value) == (
        f"cannot register {given!r}: it has no callable `before`. A hook has "
        "the methods `before` and `after`; HookContext.from_callable makes "
        "one from functions"
    )
    assert len(hooks.hooks["on_step"]) == 0


def test_a_merge_with_what_is_no_hook_adds_nothing(ours, hook):  # F4
    hooks, other = ours.PipelineHooks(), ours.PipelineHooks()
    other.register_hook("on_loop", hook("a"))
    foreign = core.HookContextChannel("on_step")
    foreign.register(1)
    other.hooks["on_step"] = foreign
    with pytest.raises(TypeError, match="cannot register 1"):
        hooks += other
    assert all(len(channel) == 0 for channel in hooks.hooks.values())


CALLABLES = {
    "partial": functools.partial(print, 1),
    "builtin": math.sqrt,
    "type": dict,
    "compiled": operator.attrgetter("a"),
    "lambda": lambda args: None,
    "mock": mock.Mock(),
    "endless proxy": mock.call,
}


@pytest.mark.parametrize("name", CALLABLES)
def test_any_callable_can_be_shown(ours, name):  # F6
    hooks = ours.PipelineHooks()
    hook = HookContext.from_callable(name, after=CALLABLES[name])
    hooks.register_hook("on_step", hook)
    for text in (repr(hooks), repr(hooks.hooks["on_step"]), hooks.describe()):
        assert name in text and "after" in text


def interrupt(args):
    raise KeyboardInterrupt


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="exceptions have no notes before 3.11"
)
class TestNote:
    """F7: an exception says which hook it came from."""

    @pytest.mark.parametrize("phase", ["before", "after"])
    def test_names_the_hook(self, ours, hook, phase):
        hooks = ours.PipelineHooks()
        hooks.register_hook("on_step", hook("a"))
        failing = hook("b", [phase])
        hooks.register_hook("on_step", failing)
        with pytest.raises(ValueError) as raised:
            with hooks.begin("on_step", None):
                pass
        code = getattr(failing, f"_{phase}").__code__
        (note,) = raised.value.__notes__
        assert note.startswith(
            f"raised by hook 1 of channel 'on_step', in {phase}: "
        )
        assert note.endswith(f"({code.co_filename}:{code.co_firstlineno})")

    @pytest.mark.parametrize("phase", ["before", "after"])
    def test_of_what_is_no_exception_but_ends_a_program(self, ours, phase):
        hooks = ours.PipelineHooks()
        hooks.register_hook(
            "on_step", HookContext.from_callable(**{phase: interrupt})
        )
        with pytest.raises(KeyboardInterrupt) as raised:
            with hooks.begin("on_step", None):
                pass
        (note,) = raised.value.__notes__
        assert f"in {phase}: interrupt (" in note

    def test_is_added_once_to_one_object(self, ours):
        error = ValueError()

        def fail(args):
            raise error

        hooks = ours.PipelineHooks()
        hooks.register_hook("on_step", HookContext.from_callable(after=fail))
        for _ in range(3):
            with pytest.raises(ValueError):
                with hooks.begin("on_step", None):
                    pass
        assert len(error.__notes__) == 1

    def test_is_not_added_to_the_body_s(self, ours, hook):
        hooks = ours.PipelineHooks()
        hooks.register_hook("on_step", hook("a"))
        with pytest.raises(ValueError) as raised:
            with hooks.begin("on_step", None):
                raise ValueError
        assert not hasattr(raised.value, "__notes__")

    def test_names_the_hook_that_raised_when_it_was_removed(self, ours, hook):
        def fail(args):
            hooks.unregister_all()
            raise ValueError

        hooks = ours.PipelineHooks()
        hooks.register_hook("on_step", hook("a"))
        hooks.register_hook("on_step", HookContext.from_callable(before=fail))
        with pytest.raises(ValueError) as raised:
            with hooks.begin("on_step", None):
                pass
        assert "hook 1 of channel 'on_step'" in raised.value.__notes__[0]
        assert "fail" in raised.value.__notes__[0]

    def test_that_cannot_be_added_hides_nothing(self, ours):
        class StubbornError(Exception):
            def add_note(self, note):
                raise RuntimeError

        def fail(args):
            raise StubbornError

        hooks = ours.PipelineHooks()
        hooks.register_hook("on_step", HookContext.from_callable(before=fail))
        with pytest.raises(StubbornError):
            with hooks.begin("on_step", None):
                pass
