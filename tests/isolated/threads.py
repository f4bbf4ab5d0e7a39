"""Four threads that dispatch at once on the same hooks."""

import sys
import threading
from functools import partial

from robo_orchard_fasthooks import (
    HookContext,
    PipelineHookArgs,
    PipelineHooks,
)

CASES = {}
THREADS = 4
SCOPES = 20_000


def case(function):
    CASES[function.__name__] = function
    return function


class Failed(Exception):
    pass


class Counting(HookContext):
    """Counts by the thread that its arguments belong to."""

    def __init__(self):
        super().__init__()
        self.befores = [0] * THREADS
        self.afters = [0] * THREADS
        self.failures = [0] * THREADS

    def before(self, arg):
        self.befores[arg.epoch_id] += 1

    def after(self, arg):
        self.afters[arg.epoch_id] += 1
        if arg.exception is not None:
            assert arg.exception.args == (arg.epoch_id,)
            self.failures[arg.epoch_id] += 1


def run(work):
    """Runs `work(number)` in all threads; an error in one is ours."""
    errors = []
    start = threading.Barrier(THREADS)

    def guarded(number):
        try:
            start.wait()
            work(number)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [
        threading.Thread(target=guarded, args=(number,))
        for number in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        sys.exit(f"failed: {errors}")


def check(counts, expected):
    if counts != [expected] * THREADS:
        sys.exit(f"counted {counts}, not {expected} each")


def counted():
    hooks = PipelineHooks()
    subclass, callables = Counting(), Counting()
    from_callable = HookContext.from_callable(
        before=callables.before, after=callables.after
    )
    for hook in (subclass, from_callable):
        hooks.register_hook("on_step", hook)
    return hooks, (subclass, callables)


@case
def dispatch():
    hooks, counting = counted()

    def work(number):
        args = PipelineHookArgs(None, number)
        for _ in range(SCOPES):
            with hooks.begin("on_step", args) as given:
                assert given is args

    run(work)
    for each in counting:
        check(each.befores, SCOPES)
        check(each.afters, SCOPES)
        check(each.failures, 0)


@case
def dispatch_while_hooks_come_and_go():
    """A hook counts each scope that it is registered throughout.

    Of its own hook, which the others see come and go, each thread counts its
    own scopes.
    """
    hooks, counting = counted()
    other = PipelineHooks()
    other.register_hook("on_step", HookContext.from_callable(before=str))
    channel = hooks.hooks["on_step"]
    own = [Counting() for _ in range(THREADS)]

    def work(number):
        args = PipelineHookArgs(None, number)
        for _ in range(SCOPES // 10):
            handle = hooks.register_hook("on_step", own[number])
            merged = hooks.register_pipeline_hooks(other)
            with hooks.begin("on_step", args):
                pass
            handle.remove()
            merged()
            with hooks.begin("on_step", args):
                pass

    run(work)
    for each in counting:
        check(each.befores, SCOPES // 5)
        check(each.afters, SCOPES // 5)
    for number, each in enumerate(own):
        assert each.befores[number] == each.afters[number] == SCOPES // 10
    assert len(channel) == 2


@case
def failing_scopes():
    """Each sees its own exception, and nobody else's."""
    hooks, counting = counted()

    def work(number):
        args = PipelineHookArgs(None, number)
        for _ in range(SCOPES // 4):
            try:
                with hooks.begin("on_step", args):
                    raise Failed(number)
            except Failed as error:
                assert error.args == (number,)
            assert args.exception is None

    run(work)
    for each in counting:
        check(each.afters, SCOPES // 4)
        check(each.failures, SCOPES // 4)


@case
def registrations_are_all_there():
    hooks = PipelineHooks()
    channel = hooks.hooks["on_step"]
    handles = [[] for _ in range(THREADS)]

    def register(number):
        for _ in range(300):
            handles[number].append(channel.register(Counting()))

    def unregister(number):
        for handle in handles[number]:
            handle()

    run(register)
    assert len(channel) == THREADS * 300
    assert len(set(channel)) == THREADS * 300
    run(unregister)
    assert len(channel) == 0


@case
def decorated_functions():
    hooks, counting = counted()
    shared = hooks.begin("on_step", PipelineHookArgs(None, 0))(str)

    def work(number):
        own = hooks.begin("on_step", PipelineHookArgs(None, number))(str)
        for _ in range(SCOPES // 4):
            assert own(number) == str(number)

    run(work)
    for each in counting:
        check(each.afters, SCOPES // 4)
    calls = [shared] * THREADS
    run(lambda number: [calls[number](1) for _ in range(100)])


@case
def one_scope_is_entered_by_one_thread():
    hooks, counting = counted()
    for _ in range(200):
        scope = hooks.begin("on_step", PipelineHookArgs(None, 0))
        entered = []

        def work(number, scope, entered):
            try:
                with scope:
                    entered.append(number)
            except RuntimeError:
                pass

        run(partial(work, scope=scope, entered=entered))
        if len(entered) != 1:
            sys.exit(f"entered by {entered}")
    assert counting[0].befores == counting[0].afters == [200, 0, 0, 0]


if __name__ == "__main__":
    sys.setswitchinterval(1e-5)
    CASES[sys.argv[1]]()
