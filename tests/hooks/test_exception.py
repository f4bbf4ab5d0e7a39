"""What a failure shows: `arg.exception`, and the note that names the hook."""

import logging
import sys
import weakref
from contextlib import suppress
from functools import partial

import pytest

from helpers.hooks import HookContext
from helpers.implementations import INSTALLED, PROFILED

pytestmark = pytest.mark.also_on(*INSTALLED, *PROFILED)


class Foreign:
    exception = None


class Slots:
    __slots__ = ("exception",)

    def __init__(self):
        self.exception = None


MAKE_ARGS = {
    "PipelineHookArgs": lambda lib: lib.PipelineHookArgs(None),
    "subclass": lambda lib: type("Args", (lib.PipelineHookArgs,), {})(None),
    "foreign": lambda lib: Foreign(),
    "slots": lambda lib: Slots(),
}


@pytest.fixture
def hooks_of(ours):
    def make(*hooks, **callbacks):
        made = ours.PipelineHooks()
        for hook in hooks or [HookContext.from_callable(**callbacks)]:
            made.register_hook("on_step", hook)
        return made

    return make


def fail(hooks, args, kind=ValueError):
    """Fails in the body of a scope; returns the exception that it raised."""
    with pytest.raises(BaseException) as raised:
        with hooks.begin("on_step", args):
            raise kind
    return raised.value


@pytest.mark.also_on("twins", *PROFILED)  # 0.4's arguments have none.
@pytest.mark.contract("F3")
class TestException:
    """Hooks see in `arg.exception` what the scope raised."""

    @pytest.fixture(params=MAKE_ARGS)
    def args(self, request, ours):
        return MAKE_ARGS[request.param](ours)

    @pytest.fixture
    def seen(self):
        return []

    @pytest.fixture
    def watch(self, seen):
        def see(args):
            seen.append(args.exception)

        return HookContext.from_callable(before=see, after=see)

    @pytest.mark.parametrize(
        "kind", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit]
    )
    def test_of_a_body(self, hooks_of, watch, seen, args, kind):
        hooks = hooks_of(watch)
        error = fail(hooks, args, kind)
        assert seen == [None, error] and args.exception is None
        with hooks.begin("on_step", args):
            args.exception = mine = KeyError()
        assert seen[2:] == [None, None] and args.exception is mine
        fail(hooks, args)
        assert args.exception is mine

    @pytest.mark.parametrize("phase", ["before", "after"])
    def test_of_a_hook(self, hooks_of, watch, seen, hook, args, phase):
        error = fail(hooks_of(watch, hook("a", [phase])), args)
        assert str(error) == f"{phase} a"
        assert seen[1] is (error if phase == "before" else error.__context__)
        assert args.exception is None

    def test_left_with_a_type_alone(self, hooks_of, watch, seen, args):
        """As contextlib, `__exit__` makes an exception of it."""
        scope = hooks_of(watch).begin("on_step", args)
        scope.__enter__()
        scope.__exit__(ValueError, None, None)
        assert list(map(type, seen)) == [type(None), ValueError]

    def test_of_nested_scopes(self, hooks_of, watch, seen, args):
        hooks = hooks_of(watch)
        with pytest.raises(ValueError) as raised:
            with hooks.begin("on_step", args), hooks.begin("on_step", args):
                raise ValueError
        assert seen == [None, None, raised.value, raised.value]

    @pytest.mark.parametrize("inner", ["nothing", "body", "before", "after"])
    @pytest.mark.parametrize("depth", [0, 4])
    def test_a_scope_within_an_after_leaves_it_as_it_was(
        self, hooks_of, watch, seen, hook, args, inner, depth
    ):
        def run(hooks, args):
            with hooks.begin("on_step", args):
                if inner == "body":
                    raise KeyError

        def after(args):
            with suppress(KeyError, ValueError):
                run(within, args)
            seen.append(args.exception)

        within = hooks_of(hook("inner", [inner]))
        for _ in range(depth):
            deeper = HookContext.from_callable(after=partial(run, within))
            within = hooks_of(deeper)
        outer = HookContext.from_callable(after=after)
        error = fail(hooks_of(outer, watch), args)
        assert seen == [None, error, error] and args.exception is None

    def test_a_scope_within_an_after_shows_its_own(
        self, hooks_of, watch, seen, args
    ):
        def after(args):
            watched.begin("on_step", args)(lambda: None)()
            errors.append(fail(watched, args))
            with suppress(ValueError):
                with watched.begin("on_step", args):
                    raise args.exception

        errors, watched = [], hooks_of(watch)
        error = fail(hooks_of(after=after), args)
        assert seen == [error, None, error, errors[0], error, error]

    def test_a_scope_within_a_before_leaves_none(
        self, hooks_of, watch, seen, args
    ):
        inner = HookContext.from_callable(
            before=lambda args: fail(hooks_of(watch), args)
        )
        with hooks_of(inner, watch).begin("on_step", args):
            pass
        assert [each is None for each in seen] == [True, False, True, True]

    def test_a_method_of_that_name_is_left_alone(self, hooks_of):
        logger = logging.getLogger(__name__)
        fail(hooks_of(), logger)
        assert logger.exception == type(logger).exception.__get__(logger)

    def test_arguments_that_have_none_are_left_alone(self, hooks_of):
        class ReadOnly:
            exception = property(lambda args: None)

        class Unreadable:
            exception = property(lambda args: 1 / 0)

        ran = []
        hooks = hooks_of(after=ran.append)
        bare = type("Bare", (), {})()
        for args in (bare, ReadOnly(), Unreadable(), None, {}):
            fail(hooks, args)
        assert vars(bare) == {} and len(ran) == 5

    def test_one_that_a_hook_adds_replaces_or_deletes_stays_so(self, hooks_of):
        error = KeyError()
        hooks = hooks_of(after=lambda args: setattr(args, "exception", error))
        args = type("Args", (), {})()
        fail(hooks, args)
        assert args.exception is error
        args.exception = "none"
        fail(hooks, args)
        assert args.exception is error
        args = Slots()
        fail(hooks_of(after=lambda args: delattr(args, "exception")), args)
        assert not hasattr(args, "exception")

    def test_leaves_no_cycle_behind(
        self, ours, hooks_of, watch, seen, collector_off
    ):
        def step():
            batch = Foreign()
            alive.append(weakref.ref(batch))
            args = ours.PipelineHookArgs(None, batch=batch)
            with hooks.begin("on_step", args), hooks.begin("on_step", args):
                raise MemoryError

        alive, hooks = [], hooks_of(watch)
        for _ in range(3):
            with suppress(MemoryError):
                step()
            seen.clear()
            assert alive[-1]() is None


def interrupt(args):
    raise KeyboardInterrupt


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="exceptions have no notes before 3.11"
)
@pytest.mark.contract("F7")
class TestNote:
    """An exception says which hook it came from."""

    @pytest.mark.parametrize("phase", ["before", "after"])
    def test_names_the_hook(self, hooks_of, hook, phase):
        hooks = hooks_of(
            hook("a"), HookContext.from_callable(**{phase: interrupt})
        )
        code = interrupt.__code__
        assert fail(hooks, None).__notes__ == [
            f"raised by hook 1 of channel 'on_step', in {phase}: interrupt "
            f"({code.co_filename}:{code.co_firstlineno})"
        ]

    def test_names_the_method_of_a_patched_class(self, hooks_of, monkeypatch):
        hooks = hooks_of(after=print)
        cls = type(hooks.hooks["on_step"][0])
        monkeypatch.setattr(cls, "after", lambda hook, arg: interrupt(arg))
        assert f"{__file__}:" in fail(hooks, None).__notes__[0]

    def test_is_added_once_to_one_object(self, hooks_of):
        def after(args):
            raise error

        error = ValueError()
        hooks = hooks_of(after=after)
        for _ in range(3):
            fail(hooks, None)
        assert len(error.__notes__) == 1

    def test_is_not_added_to_the_body_s(self, hooks_of, hook):
        assert not hasattr(fail(hooks_of(hook("a")), None), "__notes__")

    def test_names_the_hook_that_raised_when_it_was_removed(
        self, hooks_of, hook
    ):
        def remove(args):
            hooks.unregister_all()
            raise ValueError

        hooks = hooks_of(hook("a"), HookContext.from_callable(before=remove))
        (note,) = fail(hooks, None).__notes__
        assert "hook 1 of channel 'on_step'" in note and "remove" in note

    def test_that_cannot_be_added_hides_nothing(self, hooks_of):
        class StubbornError(Exception):
            def add_note(self, note):
                raise RuntimeError

        def before(args):
            raise StubbornError

        hooks = hooks_of(before=before)
        assert type(fail(hooks, None)) is StubbornError
