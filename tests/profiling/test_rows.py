"""Which callbacks share a row, and what the row is called."""

import sys
import weakref
from contextlib import suppress
from types import SimpleNamespace

import pytest

from helpers import processes
from helpers.profiling import Clock, counts, passing, rows, step
from robo_orchard_fasthooks import (
    GradientClippingHookConfig,
    HookContext,
    PipelineHooks,
)
from robo_orchard_fasthooks.profiler import HookProfiler


class TestNaming:
    def names(self, hooks, *made):
        for hook in made:
            hooks.register_hook("on_step", hook)
        with HookProfiler(hooks) as profiler:
            step(hooks)
        return profiler.to_dict()["on_step"]["hooks"]

    def test_by_class(self, hooks):
        class Mine(HookContext):
            def before(self, args):
                pass

            after = None

            def __init__(self):
                super().__init__()
                self.after = self.before

        found = self.names(hooks, Mine())
        assert [row["hook"] for row in found] == ["Mine", "Mine"]

    def test_by_the_class_that_a_method_is_of(self):
        config = GradientClippingHookConfig(clip_mode="value", clip_value=1)
        args = SimpleNamespace(
            optimizer=None, accelerator=SimpleNamespace(sync_gradients=False)
        )
        hooks = config()
        with HookProfiler(hooks) as profiler:
            with suppress(Exception):
                with hooks.begin("on_step", args):
                    pass
        names = {row["hook"] for row in profiler.to_dict()["on_step"]["hooks"]}
        assert names == {"GradientClippingHook"}

    def test_by_function(self, hooks):
        (row,) = self.names(hooks, HookContext.from_callable(before=passing))
        assert row["hook"] == "passing"
        code = passing.__code__
        place = f"{code.co_filename}:{code.co_firstlineno}"
        assert row["where"] == f"passing ({place})"

    def test_by_name(self, hooks):
        (row,) = self.names(
            hooks, HookContext.from_callable("mine", after=passing)
        )
        assert (row["hook"], row["phase"]) == ("mine", "after")

    def test_by_compiled_function(self, hooks):
        (row,) = self.names(hooks, HookContext.from_callable(after=id))
        assert (row["hook"], row["where"]) == ("id", "id (builtins)")

    def test_equal_ones_are_told_apart(self, hooks, clock, spending):
        for time in (1, 20, 300):
            hooks.register_hook("on_step", spending("a", 0, time))
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks)
        sums = {
            hook: row["sum"]
            for (hook, phase), row in rows(profiler).items()
            if phase == "after"
        }
        assert sums == {
            "Spending 'a'": 1,
            "Spending 'a' #2": 20,
            "Spending 'a' #3": 300,
        }

    def test_a_name_that_is_no_string(self, hooks):
        hook = HookContext.from_callable(5, after=passing)
        hooks.register_hook("on_step", hook)
        with HookProfiler(hooks) as profiler:
            step(hooks)
        assert "passing" in profiler.table()

    def test_functions_of_one_name_are_told_apart(self, hooks):
        callbacks = [
            lambda args: None,
            lambda args: 1,
        ]
        found = self.names(
            hooks, *(HookContext.from_callable(after=f) for f in callbacks)
        )
        assert len({row["hook"] for row in found}) == 2

    def test_a_callback_that_is_given_late(self, hooks, clock):
        hook = HookContext.from_callable("a", before=lambda _: None)
        hooks.register_hook("on_step", hook)
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks)
            hook._after = lambda _: clock.spend(10)
            step(hooks)
        assert rows(profiler)["a", "after"]["sum"] == 10

    def test_a_hook_that_cannot_be_named_runs(self, hooks):
        class Nameless(HookContext):
            ran = 0

            def __init__(self):
                pass

            @property
            def name(self):
                raise RuntimeError("it has no name")

            def before(self, args):
                Nameless.ran += 1

            after = before

        hooks.register_hook("on_step", Nameless())
        with HookProfiler(hooks):
            step(hooks)
        assert Nameless.ran == 2


class TestChanges:
    """Hooks that come and go, and a profiler that does."""

    def test_hooks_that_come_and_go_are_one_row(self, hooks, clock, spending):
        with HookProfiler(hooks, clock=clock) as profiler:
            for _ in range(50):
                with hooks.register_hook("on_step", spending("a", 1, 2)):
                    step(hooks)
        assert counts(profiler) == {
            ("Spending 'a'", "before"): 50,
            ("Spending 'a'", "after"): 50,
        }
        assert len(profiler._channels["on_step"]._rows) == 2

    @pytest.mark.parametrize("phase", ["before", "after"])
    def test_a_hook_that_unregisters_itself(self, hooks, clock, phase):
        def once(args):
            clock.spend(10)
            handle()

        handle = hooks.register_hook(
            "on_step", HookContext.from_callable("once", **{phase: once})
        )
        late = HookContext.from_callable(
            "late", **{phase: lambda _: clock.spend(20)}
        )
        hooks.register_hook("on_step", late)
        with HookProfiler(hooks, clock=clock) as profiler:
            for _ in range(3):
                step(hooks)
        assert counts(profiler) == {("once", phase): 1, ("late", phase): 3}
        assert rows(profiler)["late", phase]["sum"] == 60

    def test_a_hook_that_registers_another(self, hooks, clock, spending):
        new = spending("new", 1, 20)
        hooks.register_hook(
            "on_step",
            HookContext.from_callable(
                "r", before=lambda _: hooks.register_hook("on_step", new)
            ),
        )
        with HookProfiler(hooks, clock=clock) as profiler:
            for _ in range(2):
                step(hooks)
        assert counts(profiler) == {
            ("r", "before"): 2,
            ("Spending 'new'", "before"): 1,
            ("Spending 'new'", "after"): 2,
        }

    def test_a_hook_that_unregisters_all(self, hooks, clock, spending):
        clear = HookContext.from_callable(
            "c", before=lambda _: hooks.unregister_all()
        )
        for hook in (clear, spending("a", 10, 20)):
            hooks.register_hook("on_step", hook)
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks)
        assert counts(profiler) == {
            ("c", "before"): 1,
            ("Spending 'a'", "before"): 1,
        }
        assert profiler.to_dict()["on_step"]["scope"]["sum"] == 10

    @pytest.mark.parametrize("phase", ["before", "after"])
    def test_a_hook_that_stops_the_profiler(
        self, hooks, clock, spending, phase
    ):
        profiler = HookProfiler(hooks, clock=clock)
        stop = HookContext.from_callable(
            "stop", **{phase: lambda _: profiler.stop()}
        )
        ran = []
        hooks.register_hook("on_step", stop)
        hooks.register_hook(
            "on_step", HookContext.from_callable(after=ran.append)
        )
        profiler.start()
        step(hooks)
        assert len(ran) == 1
        with pytest.raises(RuntimeError, match="was not started"):
            profiler.stop()

    @pytest.mark.parametrize("phase", ["before", "after"])
    def test_a_hook_that_starts_the_profiler(self, hooks, clock, phase):
        profiler = HookProfiler(hooks, clock=clock)
        handle = hooks.register_hook(
            "on_step",
            HookContext.from_callable(
                "start", **{phase: lambda _: profiler.start()}
            ),
        )
        ran = []
        hooks.register_hook(
            "on_step", HookContext.from_callable(after=ran.append)
        )
        step(hooks)
        handle()
        step(hooks, lambda: clock.spend(7))
        profiler.stop()
        assert len(ran) == 2
        assert profiler.to_dict()["on_step"]["scope"]["count"] == 1
        assert profiler.to_dict()["on_step"]["scope"]["sum"] == 7

    def test_stopped_in_a_body(self, hooks, clock, spending):
        hooks.register_hook("on_step", spending("a", 10, 20))
        profiler = HookProfiler(hooks, clock=clock)
        profiler.start()
        step(hooks)
        with hooks.begin("on_step", None):
            profiler.stop()
        assert profiler.to_dict()["on_step"]["scope"]["sum"] == 30
        assert rows(profiler)["Spending 'a'", "after"]["sum"] == 20

    def test_started_in_a_body(self, hooks, clock, spending):
        hooks.register_hook("on_step", spending("a", 10, 20))
        profiler = HookProfiler(hooks, clock=clock)
        with hooks.begin("on_step", None):
            profiler.start()
        step(hooks)
        profiler.stop()
        assert profiler.to_dict()["on_step"]["scope"]["sum"] == 30
        assert profiler.to_dict()["on_step"]["scope"]["count"] == 1

    def test_the_share_of_a_hook_is_at_most_all_of_it(
        self, hooks, clock, spending
    ):
        hooks.register_hook("on_step", spending("a", 0, 20))
        profiler = HookProfiler(hooks, clock=clock)
        for _ in range(2):
            with hooks.begin("on_step", None):
                profiler.start()
            profiler.stop()
        with profiler:
            step(hooks)
        row = rows(profiler)["Spending 'a'", "after"]
        assert row["share_of_scope"] <= 1

    def test_another_profiler_takes_over_in_a_body(self, hooks, spending):
        first, second = Clock(), Clock()
        first.now = 1000
        hooks.register_hook("on_step", spending("a", 10, 20))
        one = HookProfiler(hooks, clock=first)
        other = HookProfiler(hooks, clock=second)
        one.start()
        with hooks.begin("on_step", None):
            one.stop()
            other.start()
        other.stop()
        found = other.to_dict().get("on_step", {"scope": {"sum": 0}})
        assert found["scope"]["sum"] >= 0

    def test_a_hook_that_profiles_others(self, hooks, clock, spending):
        others = PipelineHooks()
        others.register_hook("on_step", spending("other", 1, 2))
        found = []

        def profile_others(args):
            with HookProfiler(others, clock=clock) as inner:
                step(others)
            found.append(inner)

        hooks.register_hook(
            "on_step", HookContext.from_callable("p", after=profile_others)
        )
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks)
        assert rows(profiler)["p", "after"]["sum"] == 3
        assert rows(found[0])["Spending 'other'", "after"]["sum"] == 2

    def test_hooks_registered_while_it_is_on(self, hooks, clock, spending):
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks)
            hooks.register_hook("on_step", spending("a", 1, 2))
            step(hooks)
        assert counts(profiler) == {
            ("Spending 'a'", "before"): 1,
            ("Spending 'a'", "after"): 1,
        }
        assert profiler.to_dict()["on_step"]["scope"]["count"] == 2

    def test_an_unregistered_hook_is_let_go_at_the_stop(self, hooks):
        hook = HookContext.from_callable(before=passing)
        handle = hooks.register_hook("on_step", hook)
        with HookProfiler(hooks) as profiler:
            step(hooks)
            handle.remove()
        alive = weakref.ref(hook)
        del hook, handle
        assert alive() is None
        assert profiler.to_dict()

    def test_stopped_within_its_own_with(self, hooks):
        """What the body raised is raised."""
        with pytest.raises(KeyError):
            with HookProfiler(hooks) as profiler:
                profiler.stop()
                raise KeyError


CRASHES = {
    "a callback whose `__wrapped__` registers hooks": """
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

hooks.register_hook("on_step", HookContext.from_callable(before=Callback()))
with HookProfiler(hooks):
    step()
""",
    "threads that register hooks": """
import sys, threading, time
sys.setswitchinterval(1e-6)

def churn():
    while time.monotonic() < end:
        for handle in [
            hooks.register_hook("on_step", hook()) for _ in range(20)
        ]:
            handle.remove()

hooks.register_hook("on_step", hook())
end = time.monotonic() + 2
with HookProfiler(hooks):
    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        step()
    for thread in threads:
        thread.join()
""",
}


@pytest.mark.parametrize("what", CRASHES)
def test_hooks_that_change_while_they_are_named(what):
    script = f"""
from robo_orchard_fasthooks import HookContext, PipelineHooks
from robo_orchard_fasthooks.profiler import HookProfiler

hooks = PipelineHooks()

def hook():
    return HookContext.from_callable(before=lambda _: 0, after=lambda _: 0)

def step():
    with hooks.begin("on_step", None):
        pass
{CRASHES[what]}"""
    processes.run([sys.executable, "-c", script])
