"""Hooks that run in several threads while they are profiled."""

import gc
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from helpers import processes
from helpers.profiling import counts, passing, step
from robo_orchard_fasthooks import (
    HookContext,
    HookContextChannel,
    HookProfiler,
    PipelineHooks,
)

THREADS = 4


@pytest.fixture(autouse=True)
def switched_often():
    """Threads take turns after each microsecond, if another one is ready."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def switched_at_each_line():
    """Threads that begin now take turns at each line of the profiler."""

    def switch(frame, event, arg):
        if "robo_orchard_fasthooks" in frame.f_code.co_filename:
            time.sleep(1e-6)
            return switch

    threading.settrace(switch)
    yield
    threading.settrace(None)


@contextmanager
def running(work):
    """Calls `work(number)` in THREADS threads, which begin together."""
    barrier = threading.Barrier(THREADS)

    def begin(number):
        barrier.wait()
        work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(begin, number) for number in range(THREADS)]
        yield futures
    for future in futures:
        future.result()


def run(work):
    with running(work):
        pass


def waiting(args):
    """A callback in which another thread runs, as in much of torch."""
    time.sleep(1e-5)


def assert_consistent(profiler):
    """All times of a row are those of one moment."""
    for channel in profiler.to_dict().values():
        for times in (channel["scope"], channel["body"], *channel["hooks"]):
            least, most = (times["count"] * times[k] for k in ("min", "max"))
            assert least <= times["sum"] <= most
            assert times["min"] <= times["p50"] <= times["p95"]


def test_ranges_are_closed_by_the_thread_that_opened_them(hooks, monkeypatch):
    """Also where a hook runs itself."""
    opened = threading.local()
    wrong = []

    class Range:
        def __init__(self, name):
            pass

        def __enter__(self):
            self.outer = getattr(opened, "innermost", None)
            opened.innermost = self

        def __exit__(self, *error):
            if getattr(opened, "innermost", None) is not self:
                wrong.append(self)
            opened.innermost = self.outer

    monkeypatch.setattr(torch.profiler, "record_function", Range)

    def recurse(args):
        waiting(args)
        if args < 3:
            with hooks.begin("on_step", args + 1):
                pass

    hooks.register_hook("on_step", HookContext.from_callable("a", recurse))

    def work(_):
        for _ in range(20):
            with hooks.begin("on_step", 0):
                pass

    with HookProfiler(hooks, record_function=True) as profiler:
        run(work)
    assert wrong == []
    assert counts(profiler) == {("a", "before"): THREADS * 20 * 4}


class TestRows:
    @pytest.mark.usefixtures("switched_at_each_line")
    def test_no_time_is_lost_when_rows_are_made(self):
        for _ in range(10):
            hooks = PipelineHooks()
            for _ in range(5):
                hook = HookContext.from_callable("a", passing, passing)
                hooks.register_hook("on_step", hook)
            with HookProfiler(hooks) as profiler:
                run(lambda _, hooks=hooks: step(hooks))
            assert list(counts(profiler).values()) == 10 * [THREADS]

    def test_a_hook_that_waits_for_another_thread_while_it_is_named(
        self, hooks
    ):
        ended = []

        class Waiting(HookContext):
            @property
            def name(self):
                if not ended:
                    ended.append(False)
                    thread = threading.Thread(target=step, args=(hooks,))
                    thread.start()
                    thread.join(20)
                    ended[0] = not thread.is_alive()
                return "w"

            name = name.setter(lambda self, name: None)
            before = after = passing

        hooks.register_hook("on_step", Waiting())
        with HookProfiler(hooks):
            step(hooks)
        assert ended == [True]

    def test_while_threads_register_hooks(self, hooks):
        """The hooks that are being named are not freed: it once crashed."""

        def churn(number):
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                hook = [
                    HookContext.from_callable(None, passing) for _ in range(20)
                ]
                for handle in [
                    hooks.register_hook("on_step", h) for h in hook
                ]:
                    handle.remove()
                step(hooks)

        with HookProfiler(hooks):
            run(churn)

    def test_while_a_debugger_holds_all_objects(self, hooks):
        held = []

        def hold(frame, event, arg):
            if "_profiling" in frame.f_code.co_filename:
                held[:] = gc.get_objects()

        hooks.register_hook("on_step", HookContext.from_callable(None, id))
        before = sys.gettrace()
        with HookProfiler(hooks) as profiler:
            sys.settrace(hold)
            try:
                step(hooks)
            finally:
                sys.settrace(before)
        assert held and counts(profiler) == {("id", "before"): 1}


FORKS = """
import os, signal, threading, warnings
from robo_orchard_fasthooks import HookContext, HookProfiler, PipelineHooks

hooks = PipelineHooks()
warnings.simplefilter("ignore")
lines = set()
paused, forked = threading.Semaphore(0), threading.Semaphore(0)

def pause(frame, event, arg):
    if frame.f_code.co_filename.endswith("rows.py"):
        if frame.f_lineno not in lines:
            lines.add(frame.f_lineno)
            paused.release()
            forked.acquire()
        return pause

def step(name):
    hooks.register_hook("on_step", HookContext.from_callable(name, id))
    with hooks.begin("on_step", None):
        pass

def work():
    step("a")
    step("b")
    lines.clear()
    paused.release()

with HookProfiler(hooks, warn_above=0.001, window=1):
    threading.settrace(pause)
    threading.Thread(target=work, daemon=True).start()
    threading.settrace(None)
    count = 0
    while paused.acquire() and lines:
        child = os.fork()
        if not child:
            signal.alarm(20)
            step("c")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, "the child hung, or failed"
        count += 1
        forked.release()
print(count)
"""


def test_a_child_that_is_forked_meanwhile_goes_on():
    """At each line at which another thread may be."""
    out, _ = processes.run([sys.executable, "-c", FORKS])
    assert int(out) > 20


class TestReading:
    @pytest.fixture
    def work(self, hooks):
        """Hooks of ever new names, which come and go."""
        hooks.register_hook(
            "on_step", HookContext.from_callable("a", passing, passing)
        )

        def work(number):
            for turn in range(100):
                name = f"{number} {turn}"
                hook = HookContext.from_callable(name, after=passing)
                with hooks.register_hook("on_step", hook):
                    step(hooks)

        return work

    def test_tables_while_hooks_run(self, hooks, work):
        with HookProfiler(hooks) as profiler:
            with running(work) as futures:
                while not all(future.done() for future in futures):
                    profiler.table()
                    assert_consistent(profiler)
        assert profiler.to_dict()["on_step"]["scope"]["count"] == THREADS * 100
        assert counts(profiler)["a", "before"] == THREADS * 100

    @pytest.mark.usefixtures("switched_at_each_line")
    def test_all_times_of_a_row_are_of_one_moment(self, hooks):
        hooks.register_hook("on_step", HookContext.from_callable(None, id, id))
        enough = threading.Event()

        def work(number):
            if number:
                while not enough.is_set():
                    step(hooks)
                return
            try:
                for _ in range(5):
                    assert_consistent(profiler)
            finally:
                enough.set()

        with HookProfiler(hooks) as profiler:
            run(work)

    def test_resets_while_hooks_run(self, hooks, work):
        with HookProfiler(hooks, warn_above=0.99, window=3) as profiler:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with running(work) as futures:
                    while not all(future.done() for future in futures):
                        profiler.reset()
                        assert_consistent(profiler)
            profiler.reset()
            assert profiler.to_dict() == {}

    @pytest.mark.usefixtures("switched_at_each_line")
    def test_a_start_with_new_channels(self, hooks):
        profiler = HookProfiler(hooks)
        with profiler:
            step(hooks)
        for number in range(100):
            name = f"on_{number}"
            hooks.hooks[name] = HookContextChannel(name)
        enough = threading.Event()

        def work(number):
            if number:
                while not enough.is_set():
                    assert list(profiler.to_dict()) == ["on_step"]
                return
            try:
                profiler.start()
            finally:
                enough.set()

        run(work)
        profiler.stop()

    def test_starts_and_stops_while_hooks_run(self, hooks, work):
        began = time.monotonic_ns()
        enough = threading.Event()

        def work_on(number):
            while not enough.is_set():
                work(number)

        profiler = HookProfiler(hooks, record_function=True)
        with running(work_on):
            try:
                for turn in range(1000):
                    with profiler:
                        time.sleep(1e-4)
                    if turn > 20 and profiler.to_dict():
                        break
            finally:
                enough.set()
        whole = time.monotonic_ns() - began
        assert_consistent(profiler)
        found = profiler.to_dict()["on_step"]
        assert found["scope"]["count"]
        for times in (found["scope"], found["body"], *found["hooks"]):
            assert 0 <= times["min"] <= times["max"] <= whole


class TestWarning:
    @pytest.mark.usefixtures("switched_at_each_line")
    def test_is_given_once_for_each_hook(self, hooks):
        for name in range(10):
            hook = HookContext.from_callable(f"h{name}", waiting)
            hooks.register_hook("on_step", hook)

        def work(_):
            for _ in range(10):
                step(hooks)

        with HookProfiler(hooks, warn_above=1e-9, window=1):
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                run(work)
        assert len(found) == 10

    def test_when_scopes_end_together(self, hooks, clock, add):
        """No window is missed: the first to look may see both."""
        add("a", 0, 20)
        with HookProfiler(hooks, clock=clock, warn_above=0.1, window=4) as p:
            for _ in range(3):
                step(hooks, lambda: clock.spend(80))
            # What another thread adds in the very moment.
            p._channels["on_step"].recorder.scopes.record(100)
            with pytest.warns(UserWarning, match="takes 16% of 'on_step'"):
                step(hooks, lambda: clock.spend(80))
