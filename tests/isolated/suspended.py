"""Generators that are suspended inside a `with`, and then dropped."""

import gc
import sys
import weakref

from robo_orchard_fasthooks import (
    HookContext,
    PipelineHookArgs,
    PipelineHooks,
)

CASES = {}
log = []


def case(function):
    CASES[function.__name__] = function
    return function


class Holder:
    """Arguments that hold on to the generator which works with them."""

    exception = None
    generator = None


def watched():
    hooks = PipelineHooks()
    hook = HookContext.from_callable(
        after=lambda args: log.append(type(args.exception))
    )
    hooks.register_hook("on_step", hook)
    return hooks


def steps(scope):
    with scope:
        yield


def suspend(args):
    """A suspended generator that holds `args` by its scope alone."""
    generator = steps(watched().begin("on_step", args))
    next(generator)
    return generator


def check(reference, what):
    if reference() is not None:
        sys.exit(f"{what} is still alive")
    if log != [GeneratorExit]:
        sys.exit(f"the afters saw {log}")


@case
def dropped():
    gc.disable()
    args = PipelineHookArgs(None)
    alive = weakref.ref(args)
    generator = suspend(args)
    del args
    assert alive() is not None
    assert log == []
    del generator
    check(alive, "the argument")


@case
def closed():
    gc.disable()
    args = PipelineHookArgs(None)
    generator = suspend(args)
    generator.close()
    assert args.exception is None
    alive = weakref.ref(args)
    del args, generator
    check(alive, "the argument")


@case
def in_a_cycle_through_foreign_arguments():
    in_a_cycle(Holder())


@case
def in_a_cycle_through_the_arguments():
    in_a_cycle(PipelineHookArgs(None))


@case
def in_a_cycle_through_a_subclass_of_the_arguments():
    class Subclass(PipelineHookArgs):
        pass

    in_a_cycle(Subclass(None))


def in_a_cycle(args):
    args.generator = suspend(args)
    alive = weakref.ref(args)
    del args
    for _ in range(3):  # The afters bring it back to life once.
        gc.collect()
    check(alive, "the argument")


@case
def in_a_cycle_through_a_hook():
    hooks = PipelineHooks()
    hook = HookContext.from_callable(after=lambda _: log.append(GeneratorExit))
    hooks.register_hook("on_step", hook)
    hook.generator = steps(hooks.begin("on_step", None))
    next(hook.generator)
    alive = weakref.ref(hook)
    del hook, hooks
    for _ in range(3):
        gc.collect()
    check(alive, "the hook")


@case
def a_scope_in_a_cycle_of_its_own():
    args = PipelineHookArgs(None)
    args.scope = watched().begin("on_step", args)
    args.scope.__enter__()
    alive = weakref.ref(args)
    del args
    gc.collect()
    # Abandoned, it does not run its afters; that is the contract.
    log.append(GeneratorExit)
    check(alive, "the argument")


@case
def hooks_in_a_cycle_of_their_own():
    hooks = PipelineHooks()
    hooks.register_hook(
        "on_step", HookContext.from_callable(before=lambda _: hooks)
    )
    hooks.handle = hooks.register_pipeline_hooks(hooks)
    hooks.hooks["on_step"].owner = hooks
    alive = weakref.ref(hooks)
    log.append(GeneratorExit)
    del hooks
    gc.collect()
    check(alive, "the hooks")


if __name__ == "__main__":
    CASES[sys.argv[1]]()
