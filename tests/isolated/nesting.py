"""Two hundred scopes inside one another, and structures as deep as that."""

import gc
import sys
import weakref
from contextlib import ExitStack

from robo_orchard_fasthooks import (
    HookContext,
    PipelineHookArgs,
    PipelineHooks,
)

CASES = {}
DEPTH = 200
DOWN = [("before", depth) for depth in range(DEPTH)]
UP = [("after", depth) for depth in reversed(range(DEPTH))]
log = []


def case(function):
    CASES[function.__name__] = function
    return function


class Failed(Exception):
    pass


def check_log(expected):
    if log != expected:
        sys.exit(f"ran {log}")
    log.clear()


def watched():
    hooks = PipelineHooks()
    hook = HookContext.from_callable(
        before=lambda args: log.append(("before", args.epoch_id)),
        after=lambda args: log.append(("after", args.epoch_id)),
    )
    hooks.register_hook("on_step", hook)
    return hooks


def nest(hooks, at_the_bottom, depth=0):
    if depth == DEPTH:
        at_the_bottom()
        return
    with hooks.begin("on_step", PipelineHookArgs(None, depth)):
        nest(hooks, at_the_bottom, depth + 1)


def fail():
    raise Failed


@case
def scopes():
    nest(watched(), lambda: log.append("body"))
    check_log([*DOWN, "body", *UP])


@case
def scopes_with_a_raise_at_the_bottom():
    """All afters run, from the innermost, and nothing is left behind."""
    hooks = watched()
    gc.disable()
    sizes = []
    for _ in range(20):
        try:
            nest(hooks, fail)
        except Failed as error:
            assert error.__context__ is None
        check_log(DOWN + UP)
        sizes.append(sys.getallocatedblocks())
    if sizes[-1] - sizes[9] > 20:
        sys.exit(f"blocks that are in use: {sizes}")


@case
def scopes_whose_afters_all_raise():
    """The errors are chained from the outermost in, and all are freed."""
    hooks = PipelineHooks()

    def fail_too(args):
        raise Failed(args.epoch_id)

    hooks.register_hook("on_step", HookContext.from_callable(after=fail_too))
    gc.disable()
    alive = []
    for _ in range(3):
        try:
            nest(hooks, fail)
        except Failed as error:
            alive.append(weakref.ref(error))
            chain = []
            while error is not None:
                chain.append(error.args)
                error = error.__context__
            assert chain == [*((depth,) for depth in range(DEPTH)), ()]
        assert alive.pop()() is None


@case
def scopes_in_an_exit_stack():
    hooks = watched()
    try:
        with ExitStack() as stack:
            for depth in range(DEPTH):
                stack.enter_context(
                    hooks.begin("on_step", PipelineHookArgs(None, depth))
                )
            raise Failed
    except Failed:
        check_log(DOWN + UP)


@case
def scopes_that_hooks_open():
    """Each of them in the `before` of the one around it."""
    hooks = watched()

    def deeper(args):
        if args.epoch_id < DEPTH - 1:
            inner = args.copy_with_updates(epoch_id=args.epoch_id + 1)
            with hooks.begin("on_step", inner):
                pass

    hooks.register_hook("on_step", HookContext.from_callable(before=deeper))
    with hooks.begin("on_step", PipelineHookArgs(None, 0)):
        pass
    check_log(DOWN + UP)


@case
def scopes_that_hooks_open_without_an_end():
    hooks = PipelineHooks()

    def again(args):
        with hooks.begin("on_step", args):
            pass

    hooks.register_hook("on_step", HookContext.from_callable(before=again))
    for _ in range(3):
        try:
            again(PipelineHookArgs(None))
        except RecursionError:
            continue
        sys.exit("it did not end in a RecursionError")


@case
def chains_that_are_freed():
    """Freeing the first frees the second, and so on: on no deep C stack."""
    hooks = watched()

    def by_scope(last):
        return hooks.begin("on_step", last)

    def by_field(last):
        return PipelineHookArgs(last)

    def by_attribute(last):
        args = PipelineHookArgs(None)
        args.extra = last
        return args

    def by_both(last):
        return PipelineHookArgs(hooks.begin("on_step", last))

    def by_handle(last):
        channel = PipelineHooks()
        channel.last = last
        return channel

    for link in (by_scope, by_field, by_attribute, by_both, by_handle):
        last = None
        for _ in range(100_000):
            last = link(last)
        del last


if __name__ == "__main__":
    CASES[sys.argv[1]]()
