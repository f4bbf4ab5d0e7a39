"""Hooks that run in several threads while they are profiled."""

import sys
import threading
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile, record_function

from helpers.fake_cuda import Stream
from helpers.profiling import counts, passing, rows, step
from robo_orchard_fasthooks import (
    HookContext,
    HookContextChannel,
    PipelineHooks,
)
from robo_orchard_fasthooks.profiler import HookProfiler

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


def all_threads():
    try:
        return _ExperimentalConfig(profile_all_threads=True)
    except TypeError:
        return None


class TestRanges:
    @pytest.mark.skipif(
        all_threads() is None, reason="needs a torch that traces all threads"
    )
    def test_each_holds_what_its_thread_did(self, hooks):
        """By torch's trace, in which a range ends where it was closed."""
        number = threading.local()

        def callback(args):
            with record_function(f"work:{number.value}"):
                waiting(args)

        hooks.register_hook(
            "on_step", HookContext.from_callable("a", after=callback)
        )

        def work(mine):
            number.value = mine
            for _ in range(50):
                step(hooks)

        with HookProfiler(hooks, record_function=True) as profiler:
            with profile(
                activities=[ProfilerActivity.CPU],
                experimental_config=all_threads(),
            ) as traced:
                run(work)
        ranges = [e for e in traced.events() if e.name == "on_step.after:a"]
        assert {event.cpu_parent for event in ranges} == {None}
        found = Counter(
            (event.thread, *[child.name for child in event.cpu_children])
            for event in ranges
        )
        assert list(found.values()) == THREADS * [50]
        assert {name for _, name in found} == {
            f"work:{number}" for number in range(THREADS)
        }
        assert counts(profiler) == {("a", "after"): THREADS * 50}

    def test_are_closed_by_the_thread_that_opened_them(
        self, hooks, monkeypatch
    ):
        """With any torch; also where a hook runs itself."""
        open_ranges = threading.local()
        wrong = []

        class Range:
            def __init__(self, name):
                self.name = name

            def __enter__(self):
                self.thread = threading.get_ident()
                self.outer = getattr(open_ranges, "innermost", None)
                open_ranges.innermost = self

            def __exit__(self, *error):
                innermost = getattr(open_ranges, "innermost", None)
                if innermost is not self:
                    wrong.append(self)
                open_ranges.innermost = self.outer

        monkeypatch.setattr(torch.profiler, "record_function", Range)

        def recurse(args):
            waiting(args)
            if args < 3:
                with hooks.begin("on_step", args + 1):
                    pass

        hooks.register_hook(
            "on_step", HookContext.from_callable("a", recurse, recurse)
        )

        def work(_):
            for _ in range(20):
                with hooks.begin("on_step", 0):
                    pass

        with HookProfiler(hooks, record_function=True):
            run(work)
        assert wrong == []


class TestDeviceTimes:
    """On a stand-in for CUDA: see helpers/fake_cuda.py."""

    def test_each_thread_has_its_own(self, hooks, fake_cuda):
        hooks.register_hook(
            "on_step", HookContext.from_callable("a", after=waiting)
        )

        def work(_):
            fake_cuda.set_stream(Stream(0))
            for _ in range(200):
                step(hooks)

        with HookProfiler(hooks, device_time=True) as profiler:
            run(work)
        device = rows(profiler)["a", "after"]["device"]
        assert device["count"] == THREADS * 200
        assert device["min"] == device["max"] == 1e6

    def test_are_counted_once_while_they_are_read(self, hooks, fake_cuda):
        hooks.register_hook(
            "on_step", HookContext.from_callable("a", after=waiting)
        )

        def work(number):
            fake_cuda.set_stream(Stream(number % 2))
            for turn in range(200):
                fake_cuda.keeps_up = turn % 3 == 0
                step(hooks)

        with HookProfiler(hooks, device_time=True) as profiler:
            with running(work) as futures:
                while not all(future.done() for future in futures):
                    profiler.to_dict()
        device = rows(profiler)["a", "after"]["device"]
        assert device["count"] == THREADS * 200
        assert device["min"] == device["max"] == 1e6


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
            def __init__(self):
                pass

            @property
            def name(self):
                if not ended:
                    ended.append(False)
                    thread = threading.Thread(target=step, args=(hooks,))
                    thread.start()
                    thread.join(20)
                    ended[0] = not thread.is_alive()
                return "w"

            def before(self, args):
                pass

            after = before

        hooks.register_hook("on_step", Waiting())
        with HookProfiler(hooks) as profiler:
            step(hooks)
        assert ended == [True]
        assert profiler.to_dict()["on_step"]["scope"]["count"] == 2


def consistent(times):
    """Whether the times are those of one moment."""
    return (
        times["count"] * times["min"]
        <= times["sum"]
        <= times["count"] * times["max"]
        and times["mean"] * times["count"] == pytest.approx(times["sum"])
        and times["min"] <= times["p50"] <= times["p95"] <= times["max"]
    )


class TestReading:
    @pytest.fixture
    def work(self, hooks):
        """Hooks of ever new names, which come and go."""
        hooks.register_hook(
            "on_step", HookContext.from_callable("a", passing, passing)
        )

        def work(number):
            for turn in range(150):
                hook = HookContext.from_callable(
                    f"{number} {turn}", after=passing
                )
                with hooks.register_hook("on_step", hook):
                    step(hooks)

        return work

    def test_tables_while_hooks_run(self, hooks, work):
        with HookProfiler(hooks) as profiler:
            with running(work) as futures:
                while not all(future.done() for future in futures):
                    profiler.table()
                    for channel in profiler.to_dict().values():
                        assert consistent(channel["scope"])
                        assert consistent(channel["body"])
                        assert all(map(consistent, channel["hooks"]))
        assert profiler.to_dict()["on_step"]["scope"]["count"] == THREADS * 150
        assert counts(profiler)["a", "before"] == THREADS * 150

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
                for _ in range(20):
                    for channel in profiler.to_dict().values():
                        assert consistent(channel["scope"])
                        assert all(map(consistent, channel["hooks"]))
            finally:
                enough.set()

        with HookProfiler(hooks) as profiler:
            run(work)

    def test_resets_while_hooks_run(self, hooks, work):
        def read():
            while not all(future.done() for future in futures):
                for channel in profiler.to_dict().values():
                    assert consistent(channel["scope"])
                    assert all(map(consistent, channel["hooks"]))

        with HookProfiler(hooks, warn_above=0.99, window=3) as profiler:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with running(work) as futures:
                    with ThreadPoolExecutor(1) as pool:
                        reading = pool.submit(read)
                        while not all(future.done() for future in futures):
                            profiler.reset()
                        reading.result()
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
                    if turn > 50 and profiler.to_dict():
                        break
            finally:
                enough.set()
        whole = time.monotonic_ns() - began
        found = profiler.to_dict()["on_step"]
        assert found["scope"]["count"]
        for times in (found["scope"], found["body"], *found["hooks"]):
            assert 0 <= times["min"] <= times["max"] <= whole
        with profiler:
            profiler.reset()
            step(hooks)
        assert counts(profiler) == {("a", "before"): 1, ("a", "after"): 1}


class TestWarning:
    @pytest.mark.usefixtures("switched_at_each_line")
    def test_is_given_once_for_each_hook(self, hooks):
        for name in range(10):
            hooks.register_hook(
                "on_step", HookContext.from_callable(f"h{name}", waiting)
            )

        def work(_):
            for _ in range(10):
                step(hooks)

        with HookProfiler(hooks, warn_above=1e-9, window=1):
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                run(work)
        assert len(found) == 10

    def test_when_scopes_end_together(self, hooks, clock, spending):
        """No window is missed: the first to look may see both."""
        hooks.register_hook("on_step", spending("a", 0, 20))
        with HookProfiler(hooks, clock=clock, warn_above=0.1, window=4) as p:
            for _ in range(3):
                step(hooks, lambda: clock.spend(80))
            # What another thread adds in the very moment.
            p._channels["on_step"].recorder.scopes.record(100)
            with pytest.warns(UserWarning, match="takes 16% of 'on_step'"):
                step(hooks, lambda: clock.spend(80))
