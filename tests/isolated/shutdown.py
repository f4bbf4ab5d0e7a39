"""The interpreter ends, quietly, with much of everything still alive."""

import gc
import sys
import threading
import time

from robo_orchard_fasthooks import (
    HookContext,
    PipelineHookArgs,
    PipelineHooks,
)

CASES = {}
alive = []


def case(function):
    CASES[function.__name__] = function
    return function


class Subclass(HookContext):
    def before(self, arg):
        pass

    def after(self, arg):
        pass


hooks = PipelineHooks()
for hook in (
    Subclass(),
    HookContext.from_callable(before=len.__class__, after=repr),
):
    hooks.register_hook("on_step", hook)
args = PipelineHookArgs(None, batch=[1, 2, 3])


def steps():
    with hooks.begin("on_step", args) as given:
        yield given


@case
def scopes():
    alive.append(hooks.begin("on_step", args))
    alive.append(hooks.begin("on_step", args)(print))


@case
def entered_scopes():
    for _ in range(3):
        scope = hooks.begin("on_step", args)
        scope.__enter__()
        alive.append(scope)


@case
def suspended_generators():
    for _ in range(3):
        generator = steps()
        next(generator)
        alive.append(generator)


@case
def suspended_generator_in_a_cycle():
    gc.disable()
    generator = steps()
    next(generator)
    args.generator = generator
    args.scope = hooks.begin("on_step", args)


@case
def inside_a_scope():
    with hooks.begin("on_step", args):
        sys.exit(0)


@case
def handles_and_cycles():
    alive.append(hooks.register_hook("on_batch", Subclass()))
    alive.append(hooks.register_pipeline_hooks(hooks))
    args.batch = args.extra = args
    hooks.hooks["on_step"].owner = hooks
    hooks.register_hook(
        "on_step", HookContext.from_callable(before=lambda _: alive)
    )
    copied = args.copy_with_updates(batch=alive)
    alive.append(copied)


@case
def many_arguments_that_were_freed():
    """The free lists of the compiled classes are full."""
    for _ in range(3):
        alive.extend(hooks.begin("on_step", args) for _ in range(100))
        alive.extend(PipelineHookArgs(None) for _ in range(100))
        alive.clear()


def start(work):
    def forever():
        while True:
            work()

    for _ in range(2):
        threading.Thread(target=forever, daemon=True).start()
    time.sleep(0.05)


@case
def daemon_threads_that_dispatch():
    def dispatch():
        with hooks.begin("on_step", PipelineHookArgs(None)):
            pass

    start(dispatch)


@case
def daemon_threads_that_fail():
    def dispatch():
        try:
            with hooks.begin("on_step", PipelineHookArgs(None)):
                raise ValueError
        except ValueError:
            pass

    start(dispatch)


@case
def daemon_threads_that_register():
    start(lambda: hooks.register_hook("on_step", Subclass()).remove())


@case
def daemon_thread_that_waits_in_a_scope():
    def wait():
        with hooks.begin("on_step", args):
            time.sleep(1000)

    start(wait)


@case
def scope_that_is_entered_at_exit():
    class Late:
        def __del__(self, begin=hooks.begin, args=args):
            with begin("on_step", args):
                pass

    alive.append(Late())


if __name__ == "__main__":
    CASES[sys.argv[1]]()
