"""What a scope worked with is freed when it should be, without the collector.

Garbage collection is off, so that what is in a cycle stays.
"""

import gc
import sys
import weakref

from robo_orchard_fasthooks import (
    HookContext,
    PipelineHookArgs,
    PipelineHooks,
)

CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


class Batch:
    pass


class Error(Exception):
    pass


class Foreign:
    """Arguments of the user's own, with the attribute that scopes set."""

    exception = None

    def __init__(self, accelerator, batch=None):
        self.batch = batch


class Watching(HookContext):
    def before(self, arg):
        pass

    def after(self, arg):
        assert arg.exception is not None


def from_callable(**callbacks):
    return HookContext.from_callable(**callbacks)


def fail(arg):
    raise Error


def make(*given):
    hooks = PipelineHooks()
    for hook in given:
        hooks.register_hook("on_step", hook)
    return hooks


def check(alive):
    left = [name for name, reference in alive.items() if reference()]
    if left:
        sys.exit(f"still alive: {left}")


def check_step(hooks, error, args_class=PipelineHookArgs):
    """Three steps that fail; each has to give back all that it had."""
    alive = {}

    def step():
        batch = Batch()
        args = args_class(None, batch=batch)
        alive.update(batch=weakref.ref(batch), args=weakref.ref(args))
        with hooks.begin("on_epoch", args), hooks.begin("on_step", args):
            activations = Batch()
            alive["activations"] = weakref.ref(activations)
            if error:
                raise error

    for _ in range(3):
        try:
            step()
        except Exception as error_:
            if isinstance(error_, Error):
                alive["error"] = weakref.ref(error_)
        check(alive)


@case
def step_that_ran_out_of_memory():
    check_step(make(Watching()), MemoryError)


@case
def step_that_ran_out_of_memory_with_foreign_arguments():
    check_step(make(Watching()), MemoryError, Foreign)


@case
def step_whose_exception_the_hooks_looked_at():
    looked_at = from_callable(after=lambda args: str(args.exception))
    check_step(make(looked_at, Watching()), Error)


@case
def step_whose_before_failed():
    check_step(make(from_callable(before=fail), Watching()), None)


@case
def step_whose_after_failed():
    check_step(make(from_callable(after=fail)), None)


@case
def step_whose_body_and_after_failed():
    check_step(make(from_callable(after=fail)), MemoryError)


@case
def step_whose_before_and_after_failed():
    check_step(make(from_callable(before=fail, after=fail)), None)


@case
def step_with_nested_scopes_in_its_afters():
    hooks = make()

    def nested(args):
        with hooks.begin("on_batch", args):
            pass

    hooks.register_hook("on_batch", from_callable(after=str))
    hooks.register_hook("on_step", from_callable(after=nested))
    hooks.register_hook("on_step", Watching())
    check_step(hooks, Error)


@case
def retry_inside_the_except_block_s_end():
    """The big object is free again before the smaller batch is tried."""
    hooks = make(Watching())
    alive = {}

    def step(size):
        batch = Batch()
        if size == 2:
            alive["batch"] = weakref.ref(batch)
        else:
            check(alive)
        args = PipelineHookArgs(None, batch=batch)
        with hooks.begin("on_step", args):
            raise MemoryError

    for size in (2, 1):
        try:
            step(size)
        except MemoryError:
            pass


@case
def scope_with_its_arguments():
    hooks = make(from_callable())
    for enter in (False, True):
        args = PipelineHookArgs(None)
        alive = {"args": weakref.ref(args)}
        scope = hooks.begin("on_step", args)
        if enter:
            with scope:
                pass
        del args, scope
        check(alive)


@case
def scope_that_was_never_left():
    hooks = make(from_callable())
    args = PipelineHookArgs(None)
    alive = {"args": weakref.ref(args)}
    hooks.begin("on_step", args).__enter__()
    del args
    check(alive)


@case
def decorated_function():
    hook, args = from_callable(), PipelineHookArgs(None)
    alive = {"hook": weakref.ref(hook), "args": weakref.ref(args)}
    decorated = make(hook).begin("on_step", args)(len)
    assert decorated("four") == 4
    alive["decorated"] = weakref.ref(decorated)
    del hook, args, decorated
    check(alive)


@case
def hooks_and_channels_with_their_owner():
    hook = Watching()
    hooks = make(hook)
    handle = hooks.register_hook("on_step", hook)
    try:
        with hooks.begin("on_step", PipelineHookArgs(None)):
            raise Error
    except Error:
        pass
    channel = hooks.hooks["on_step"]
    alive = {
        "hook": weakref.ref(hook),
        "hooks": weakref.ref(hooks),
        "channel": weakref.ref(channel),
        "handle": weakref.ref(handle),
    }
    del hook, hooks, channel, handle
    check(alive)


@case
def hook_that_was_unregistered():
    def undone(hooks, hook):
        hooks.register_hook("on_step", hook)()

    def removed(hooks, hook):
        handle = hooks.register_hook("on_step", hook)
        handle.remove()
        return handle  # Which has to let go of the hook.

    def cleared(hooks, hook):
        hooks.register_hook("on_step", hook)
        hooks.unregister_all()

    def cleared_channel(hooks, hook):
        hooks.register_hook("on_step", hook)
        hooks.hooks["on_step"].unregister_all()

    def merged(hooks, hook):
        handle = hooks.register_pipeline_hooks(make(hook))
        handle.remove()
        return handle

    for unregister in (undone, removed, cleared, cleared_channel, merged):
        hooks = make(from_callable())
        hook = Watching()
        alive = {unregister.__name__: weakref.ref(hook)}
        kept = unregister(hooks, hook)
        del hook
        check(alive)
        del kept


@case
def hook_that_unregistered_itself():
    def unregister(args):
        handles.pop()()

    hooks = make()
    hook = from_callable(before=unregister)
    alive = {"hook": weakref.ref(hook)}
    handles = [hooks.register_hook("on_step", hook)]
    del hook
    with hooks.begin("on_step", None):
        pass
    check(alive)


@case
def what_is_refused():
    hooks = make()
    refused, args = Batch(), PipelineHookArgs(None)
    alive = {"refused": weakref.ref(refused), "args": weakref.ref(args)}
    for attempt in (
        lambda: hooks.register_hook("on_step", refused),
        lambda: hooks.begin("nope", args),
        lambda: args.copy_with_updates(batch=refused, nope=refused),
    ):
        try:
            attempt()
        except (AttributeError, KeyError, TypeError):
            pass
    del refused, args, attempt
    check(alive)


if __name__ == "__main__":
    gc.collect()
    gc.disable()
    CASES[sys.argv[1]]()
