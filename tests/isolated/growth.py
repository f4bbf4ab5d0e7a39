"""Repeats one thing up to a million times: nothing may be left behind.

Neither memory nor a reference to what is there all the time. Garbage
collection is off meanwhile, so that a cycle in each repetition is a leak too.
"""

import gc
import sys
from types import SimpleNamespace

from robo_orchard_fasthooks import (
    HookContext,
    PipelineHookArgs,
    PipelineHooks,
)

CASES = {}
SPARE = 20
"""Blocks and references by which the interpreter's own caches may differ."""


def quiet(arg):
    pass


def fail(arg):
    raise ValueError


def from_callable(before=quiet, after=quiet):
    return HookContext.from_callable(before=before, after=after)


class Subclass(HookContext):
    def before(self, arg):
        pass

    def after(self, arg):
        pass


class FailingBefore(Subclass):
    def before(self, arg):
        raise ValueError


class FailingAfter(Subclass):
    def after(self, arg):
        raise ValueError


class Foreign:
    exception = None


class MoreArgs(PipelineHookArgs):
    pass


class Made:
    """What a case works with: some hooks, arguments and another hook."""

    def __init__(self, hooks):
        self.hooks = PipelineHooks()
        for hook in hooks:
            self.hooks.register_hook("on_step", hook)
        self.args = PipelineHookArgs(None)
        self.more_args = MoreArgs(None)
        self.foreign = Foreign()
        self.bare = SimpleNamespace()
        self.other = PipelineHooks()
        self.hook = Subclass()
        self.other.register_hook("on_step", self.hook)
        self.channel = self.hooks.hooks["on_step"]
        self.other_channel = self.other.hooks["on_step"]

    def references(self):
        shared = [None, quiet, fail, Subclass, *self.channel]
        shared += vars(self).values()
        return [sys.getrefcount(each) for each in shared]


def case(count, *hooks):
    def decorate(function):
        def repeat(made, times):
            for _ in range(times):
                function(made)

        def run():
            made = Made([make() for make in hooks])
            gc.collect()
            gc.disable()
            for _ in range(3):  # Fills the interpreter's own caches.
                repeat(made, 1000)
                references = made.references()
            blocks = sys.getallocatedblocks()
            repeat(made, count)
            grown = sys.getallocatedblocks() - blocks
            kept = [
                after - before
                for before, after in zip(
                    references, made.references(), strict=True
                )
            ]
            if grown > SPARE:
                sys.exit(f"{grown} blocks more after {count} times")
            if any(abs(each) > SPARE for each in kept):
                sys.exit(f"references after {count} times: {kept}")

        CASES[function.__name__] = run
        return function

    return decorate


@case(1_000_000)
def no_hooks(made):
    with made.hooks.begin("on_step", made.args):
        pass


@case(1_000_000, from_callable, from_callable)
def hooks_from_callables(made):
    with made.hooks.begin("on_step", made.args):
        pass


@case(1_000_000, Subclass, Subclass)
def subclassed_hooks(made):
    with made.hooks.begin("on_step", made.args):
        pass


@case(1_000_000, from_callable, Subclass)
def failing_body(made):
    try:
        with made.hooks.begin("on_step", made.args):
            raise ValueError
    except ValueError:
        pass


# A hook that fails takes some 15 microseconds, for the note: 100,000 of them.


@case(100_000, from_callable, lambda: from_callable(before=fail))
def failing_before(made):
    try:
        with made.hooks.begin("on_step", made.args):
            pass
    except ValueError:
        pass


@case(100_000, lambda: from_callable(after=fail), Subclass)
def failing_after(made):
    try:
        with made.hooks.begin("on_step", made.args):
            pass
    except ValueError:
        pass


@case(100_000, FailingBefore, FailingAfter)
def failing_before_and_after(made):
    try:
        with made.hooks.begin("on_step", made.args):
            pass
    except ValueError:
        pass


@case(100_000, FailingAfter)
def failing_body_and_after(made):
    try:
        with made.hooks.begin("on_step", made.args):
            raise KeyError
    except ValueError:
        pass


@case(1_000_000, Subclass)
def nested_scopes_on_the_same_arguments(made):
    with made.hooks.begin("on_step", made.args):
        with made.hooks.begin("on_step", made.args):
            pass


@case(300_000, Subclass)
def arguments_of_others(made):
    for arg in (made.more_args, made.foreign, made.bare, None, 1):
        with made.hooks.begin("on_step", arg):
            pass


@case(300_000, Subclass)
def failing_body_with_arguments_of_others(made):
    for arg in (made.more_args, made.foreign, made.bare, None):
        try:
            with made.hooks.begin("on_step", arg):
                raise ValueError
        except ValueError:
            pass


@case(1_000_000, Subclass)
def scope_that_is_not_entered(made):
    made.hooks.begin("on_step", made.args)


@case(300_000, Subclass)
def scope_entered_twice(made):
    scope = made.hooks.begin("on_step", made.args)
    with scope:
        try:
            with scope:
                pass
        except RuntimeError:
            pass


@case(300_000, Subclass)
def decorator(made):
    made.hooks.begin("on_step", made.args)(quiet)(1)


@case(300_000, Subclass)
def suspended_generator(made):
    def run():
        with made.hooks.begin("on_step", made.args):
            yield

    next(run())


@case(100_000)
def unknown_channel(made):
    try:
        made.hooks.begin("nope", made.args)
    except KeyError:
        pass


@case(1_000_000)
def arguments(made):
    PipelineHookArgs(made.args, 1, batch=made.hook, model=made.other)


@case(1_000_000)
def copies(made):
    made.args.copy_with_updates(batch=made.hook, reduce_loss=made.other)


@case(300_000)
def copies_with_extra_attributes(made):
    args = PipelineHookArgs(None)
    args.extra = args.batch = made.hook
    args.copy_with_updates(extra=made.other, epoch_id=1)


@case(300_000)
def copies_of_a_subclass(made):
    made.more_args.copy_with_updates(model_outputs=made.hook, epoch_id=1)


@case(300_000)
def copies_that_are_refused(made):
    try:
        made.args.copy_with_updates(batch=made.hook, nope=made.hook)
    except AttributeError:
        pass


@case(300_000)
def arguments_that_are_refused(made):
    for arguments in ({}, {"accelerator": 1, "nope": made.hook}):
        try:
            PipelineHookArgs(**arguments)
        except TypeError:
            pass


@case(100_000)
def arguments_that_are_shown_and_compared(made):
    vars(made.args)
    repr(made.args)
    assert made.args == PipelineHookArgs(None)


@case(300_000, Subclass)
def registering(made):
    handle = made.hooks.register_hook("on_step", made.hook)
    handle()
    handle()
    handle.remove()


@case(300_000, Subclass)
def registering_what_is_there(made):
    made.hooks.register_hook("on_step", made.channel[0])


@case(300_000)
def registering_what_is_no_hook(made):
    try:
        made.channel.register(made.args)
    except TypeError:
        pass


@case(100_000, Subclass)
def merging(made):
    made.hooks.register_pipeline_hooks(made.other)()
    with made.hooks.register_pipeline_hooks(made.other):
        pass
    made.hooks += made.other
    made.hooks.unregister_all()


@case(300_000, Subclass)
def merging_channels(made):
    made.channel.register_hook_channel(made.other_channel).remove()
    made.channel += made.other_channel
    made.channel.unregister_all()


@case(100_000, Subclass)
def hooks_that_come_and_go(made):
    hooks = PipelineHooks()
    hooks += made.other
    with hooks.begin("on_step", made.args):
        pass


if __name__ == "__main__":
    CASES[sys.argv[1]]()
