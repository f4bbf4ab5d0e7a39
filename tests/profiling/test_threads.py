"""Hooks that run in several threads while they are profiled."""

import gc
import sys
import threading
import time
import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

import pytest
import torch

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
def at_each_line():
    """Threads that begin now call a function at each line of the profiler."""

    def trace(frame, event, arg):
        if "robo_orchard_fasthooks" in frame.f_code.co_filename:
            calls[-1](frame)
            return trace

    calls = [lambda frame: time.sleep(1e-6)]  # Another thread's turn.
    threading.settrace(trace)
    yield calls.append
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
        yield lambda: not all(future.done() for future in futures)
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
            assert 0 <= least <= times["sum"] <= most
            mean = times["sum"] / (times["count"] or 1)
            assert times["mean"] == pytest.approx(mean)


def test_ranges_are_closed_by_the_thread_that_opened_them(
    hooks, add, monkeypatch
):
    opened, wrong = defaultdict(list), []

    @contextmanager
    def record(name):
        mine = object()
        opened[threading.get_ident()].append(mine)
        yield
        if opened[threading.get_ident()].pop() is not mine:
            wrong.append(name)

    def recurse(args):
        waiting(args)
        if args < 3:
            with hooks.begin("on_step", args + 1):
                pass

    def work(_):
        for _ in range(20):
            with hooks.begin("on_step", 0):
                pass

    monkeypatch.setattr(torch.profiler, "record_function", record)
    add("a", recurse)
    with HookProfiler(hooks, record_function=True) as profiler:
        run(work)
    assert wrong == []
    assert counts(profiler) == {("a", "before"): THREADS * 20 * 4}


class TestRows:
    @pytest.mark.usefixtures("at_each_line")
    def test_no_time_is_lost_when_rows_are_made(self):
        for _ in range(10):
            hooks = PipelineHooks()
            for _ in range(5):
                hook = HookContext.from_callable("a", passing, passing)
                hooks.register_hook("on_step", hook)
            with HookProfiler(hooks) as profiler:
                run(lambda _, hooks=hooks: step(hooks))
            assert list(counts(profiler).values()) == 10 * [THREADS]

    def test_a_hook_that_waits_for_a_thread_while_it_is_named(self, hooks):
        class Waiting:
            before = after = staticmethod(passing)
            threads = [threading.Thread(target=step, args=(hooks,))]

            @property
            def name(self):
                if self.threads:
                    thread = self.threads.pop()
                    thread.start()
                    thread.join(20)
                    assert not thread.is_alive()
                return "w"

        hooks.register_hook("on_step", Waiting())
        with HookProfiler(hooks) as profiler:
            step(hooks)
        assert counts(profiler)["Waiting 'w'", "after"] == 2

    def test_a_debugger_that_holds_all_objects(self, hooks, add):
        held = []

        def hold(frame, event, arg):
            if "_profiling" in frame.f_code.co_filename:
                held[:] = gc.get_objects()

        add("a", id)
        before = sys.gettrace()
        with HookProfiler(hooks) as profiler:
            sys.settrace(hold)
            try:
                step(hooks)
            finally:
                sys.settrace(before)
        assert held and counts(profiler) == {("a", "before"): 1}


@pytest.mark.filterwarnings("ignore:.* takes ", "ignore:.*fork:")
def test_a_child_that_is_forked_meanwhile_goes_on(hooks, add, at_each_line):
    """At each line of the profiler at which another thread may be."""
    lines = set()
    paused, forked = threading.Semaphore(0), threading.Semaphore(0)

    def pause(frame):
        if (line := (frame.f_code, frame.f_lineno)) not in lines:
            lines.add(line)
            paused.release()
            forked.acquire()

    def run(*names):
        for name in names:
            add(name, id)
            step(hooks)

    def work():
        run("a", "b")
        ended.append(True)
        paused.release()

    ended, fork = [], get_context("fork")
    at_each_line(pause)
    with HookProfiler(hooks, warn_above=0.001, window=1):
        threading.Thread(target=work, daemon=True).start()
        while paused.acquire() and not ended:
            child = fork.Process(target=run, args=["c"], daemon=True)
            child.start()
            child.join(20)
            assert child.exitcode == 0  # None if it hangs.
            forked.release()
    assert len(lines) > 20


@pytest.mark.filterwarnings("ignore:.* takes ")
@pytest.mark.parametrize("call", ["table", "reset", "stop start"])
def test_calls_while_hooks_run(hooks, add, call):
    """Hooks of ever new names, which come and go."""

    def work(number):
        for turn in range(100):
            with add(f"{number} {turn}", passing):
                step(hooks)

    began = time.monotonic_ns()
    profiler = HookProfiler(
        hooks, record_function=True, warn_above=0.99, window=3
    )
    with profiler, running(work) as goes_on:
        while goes_on():
            for name in call.split():
                getattr(profiler, name)()
            assert_consistent(profiler)
    for channel in profiler.to_dict().values():
        assert channel["scope"]["count"] <= THREADS * 100
        assert channel["scope"]["max"] <= time.monotonic_ns() - began
    profiler.reset()
    assert profiler.to_dict() == {}


@pytest.mark.usefixtures("at_each_line")
def test_all_times_of_a_row_are_of_one_moment(hooks, add):
    add(None, id, id)
    enough = threading.Event()

    def work(number):
        while number and not enough.is_set():
            step(hooks)
        try:
            for _ in range(10):
                assert_consistent(profiler)
        finally:
            enough.set()

    with HookProfiler(hooks) as profiler:
        step(hooks)
        run(work)


@pytest.mark.usefixtures("at_each_line")
def test_reading_during_a_start_with_new_channels(hooks):
    profiler = HookProfiler(hooks)
    for number in range(100):
        name = f"on_{number}"
        hooks.hooks[name] = HookContextChannel(name)

    def work(number):
        if number == 0:
            profiler.start()
        while not profiler._started:
            assert profiler.to_dict() == {}

    run(work)
    profiler.stop()


class TestWarning:
    @pytest.mark.usefixtures("at_each_line")
    def test_is_given_once_for_each_hook(self, hooks, add):
        def work(_):
            for _ in range(10):
                step(hooks)

        for name in range(10):
            add(f"h{name}", waiting)
        with HookProfiler(hooks, warn_above=1e-9, window=1):
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                run(work)
        assert len(found) == 10

    def test_when_scopes_end_together(self, hooks, add, clock):
        """No window is missed: the first to look may see both."""
        add("a", lambda _: clock.spend(20))
        with HookProfiler(hooks, clock=clock, warn_above=0.1, window=4) as p:
            for _ in range(3):
                step(hooks, lambda: clock.spend(80))
            # What another thread adds in the very moment.
            p._channels["on_step"].recorder.scopes.record(100)
            with pytest.warns(UserWarning, match="takes 16% of 'on_step'"):
                step(hooks, lambda: clock.spend(80))
