"""What a failure shows: `arg.exception`, and the note that names the hook."""

import gc
import logging
import sys
import weakref

import pytest

from helpers.hooks import HookContext
from helpers.implementations import INSTALLED, PROFILED

pytestmark = pytest.mark.also_on(*INSTALLED, *PROFILED)


@pytest.mark.also_on(*PROFILED)  # 0.4's arguments have none.
@pytest.mark.contract("F3")
class TestException:
    """Hooks see in `arg.exception` what the scope raised."""

    def test_left_with_a_type_alone(self, ours):
        """As contextlib, `__exit__` makes an exception of it."""
        seen = []
        hooks = ours.PipelineHooks()
        hooks.register_hook(
            "on_step",
            HookContext.from_callable(
                after=lambda args: seen.append(args.exception)
            ),
        )
        scope = hooks.begin("on_step", ours.PipelineHookArgs(None))
        scope.__enter__()
        scope.__exit__(ValueError, None, None)
        assert list(map(type, seen)) == [ValueError]

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


def interrupt(args):
    raise KeyboardInterrupt


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="exceptions have no notes before 3.11"
)
@pytest.mark.contract("F7")
class TestNote:
    """An exception says which hook it came from."""

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
