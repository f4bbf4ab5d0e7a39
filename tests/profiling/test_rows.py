"""Which callbacks share a row, and what the row is called."""

import weakref
from contextlib import suppress
from types import SimpleNamespace

import pytest

from helpers.hooks import Logging
from helpers.profiling import counts, passing, step, sums
from robo_orchard_fasthooks import (
    GradientClippingHookConfig,
    HookContext,
    HookProfiler,
)


class Nameless:
    before = after = staticmethod(passing)
    name = property(lambda hook: 1 / 0)


def hook(name=None, function=passing):
    return HookContext.from_callable(name, after=function)


class TestNaming:
    @pytest.mark.parametrize(
        ("made", "names"),
        [
            ([Logging([], None)], 2 * ["Logging"]),
            ([Logging([], "a")], 2 * ["Logging 'a'"]),
            ([hook()], ["passing"]),
            ([hook("mine")], ["mine"]),
            ([hook(5)], ["passing"]),
            ([hook(None, id)], ["id"]),
            ([hook("a"), hook("a"), hook("a", id)], ["a", "a #2", "a #3"]),
            ([Nameless()], 2 * ["Nameless"]),  # It runs all the same.
        ],
    )
    def test_by(self, hooks, made, names):
        for each in made:
            hooks.register_hook("on_step", each)
        with HookProfiler(hooks) as profiler:
            step(hooks)
        found = profiler.to_dict()["on_step"]["hooks"]
        assert [row["hook"] for row in found] == names

    def test_by_the_class_that_a_method_is_of(self):
        hooks = GradientClippingHookConfig(clip_mode="value", clip_value=1)()
        args = SimpleNamespace(
            optimizer=None, accelerator=SimpleNamespace(sync_gradients=False)
        )
        with HookProfiler(hooks) as profiler, suppress(Exception):
            with hooks.begin("on_step", args):
                pass
        assert counts(profiler) == {("GradientClippingHook", "after"): 1}

    def test_a_callback_that_is_given_late(self, hooks, clock):
        late = HookContext.from_callable("a", before=passing)
        hooks.register_hook("on_step", late)
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks)
            late._after = lambda _: clock.spend(10)
            step(hooks)
        assert sums(profiler) == {("a", "before"): 0, ("a", "after"): 10}


class TestChanges:
    """Hooks that come and go, and a profiler that does."""

    def test_hooks_that_come_and_go_are_one_row(self, hooks, clock, add):
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks)
            for _ in range(50):
                with add("a", 1, 2):
                    step(hooks)
        assert sums(profiler) == {("a", "before"): 50, ("a", "after"): 100}
        assert profiler.to_dict()["on_step"]["scope"]["count"] == 51

    @pytest.mark.parametrize("phase", ["before", "after"])
    def test_a_hook_that_unregisters_itself(self, add, phase, timed):
        handle = add("once", **{phase: lambda _: handle()})
        add("late", **{phase: 20})
        profiler = timed(3)
        assert counts(profiler) == {("once", phase): 1, ("late", phase): 3}
        assert sums(profiler) == {("once", phase): 0, ("late", phase): 60}

    def test_a_hook_that_registers_another(self, add, timed):
        add("r", lambda _: add("new", 1, 20))
        profiler = timed()
        assert counts(profiler) == {("r", "before"): 1, ("new", "after"): 1}

    @pytest.mark.parametrize("switched", ["start", "stop"])
    @pytest.mark.parametrize("phase", ["before", "after", "body"])
    def test_a_scope_that_is_timed_in_part(
        self, hooks, clock, add, phase, switched
    ):
        """It runs all hooks; it counts if it ended while that was on."""
        profiler = HookProfiler(hooks, clock=clock)
        switches = [getattr(profiler, switched)]

        def once(args=None):
            if switches:
                switches.pop()()

        if phase != "body":
            add("s", **{phase: once})
        add("a", 10, 20)
        if switched == "stop":
            profiler.start()
        step(hooks, once if phase == "body" else None)
        assert clock.now == 30
        counted = (switched, phase) == ("stop", "after")
        assert ("on_step" in profiler.to_dict()) == counted
        if switched == "stop":
            profiler.start()
        step(hooks)
        profiler.stop()
        found = profiler.to_dict()["on_step"]
        assert all(row["share_of_scope"] <= 1 for row in found["hooks"])
        assert found["scope"]["count"] == 1 + counted
        assert found["scope"]["sum"] == 30 * (1 + counted)

    def test_another_profiler_takes_over_in_a_body(self, hooks):
        """Also where its recorder lies in memory where the first one lay."""
        for _ in range(20):
            one = HookProfiler(hooks)
            one.start()
            with hooks.begin("on_step", None):
                one.stop()
                assert one.to_dict() == {}
                del one
                other = HookProfiler(hooks)
                other.start()
            other.stop()
            assert other.to_dict() == {}

    def test_an_unregistered_hook_is_let_go_at_the_stop(self, hooks):
        made = hook()
        handle = hooks.register_hook("on_step", made)
        with HookProfiler(hooks):
            step(hooks)
            handle.remove()
        alive = weakref.ref(made)
        del made, handle
        assert alive() is None

    def test_a_callback_that_registers_hooks_while_it_is_named(self, hooks):
        """The hooks that are being named are not freed: it once crashed."""

        class Callback:
            count = 0

            def __call__(self, args):
                pass

            @property
            def __wrapped__(self):
                Callback.count += 1
                if Callback.count < 200:
                    for _ in range(50):
                        hooks.register_hook("on_step", hook())
                raise AttributeError

        hooks.register_hook("on_step", hook(function=Callback()))
        with HookProfiler(hooks):
            step(hooks)
        assert Callback.count > 1
