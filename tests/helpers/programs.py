"""Random programs of hooks, to compare an implementation with upstream.

A program registers, merges, patches and opens scopes, and so do its hooks
while they run. Each step is drawn from a seed: implementations that behave
alike run the same program, and write the same events.

Of what docs/contract.md lists as fixed, upstream is given F1 and F2 here.
Programs do without the rest: they keep to known channels (F5) and to hooks
(F4), enter no scope twice (F11), raise no StopIteration in a hook, and look at
neither `exception` (F3) nor notes (F7).
"""

import sys
from contextlib import ContextDecorator, closing, suppress
from functools import partial
from operator import iadd
from random import Random

from ordered_set import OrderedSet
from robo_orchard_core.utils import hook as core

CHANNELS = ("on_step", "on_batch")
PHASES = ("before", "after")
OPERATIONS = {
    "attempt": 4,
    "begin": 22,
    "fail": 6,
    "handle_error": 3,
    "patch": 6,
    "patch_begin": 2,
    "change": 28,
}
CHANGES = [
    lambda run: run.keep(run.channel().register(run.hook())),
    lambda run: run.keep(run.hooks().register_pipeline_hooks(run.hooks())),
    lambda run: run.keep(run.channel().register_hook_channel(run.channel())),
    lambda run: iadd(run.hooks(), run.hooks()),
    lambda run: iadd(run.channel(), run.channel()),
    lambda run: run.handle()(),
    lambda run: run.handle().remove(),
    lambda run: run.hooks().unregister_all(),
    lambda run: run.channel().unregister_all(),
    lambda run: vars(run.hook()).pop("before", None),
    lambda run: vars(run.hook()).pop("after", None),
    lambda run: vars(run.channel()).pop("begin", None),
]
SUSPENDED = ("thrown", "closed")
STYLES = [*["with"] * 6, "channel", "late", "decorator", *SUSPENDED]


class Fixed(core.RemoveableHandle):
    """F1."""

    def remove(self):
        if self.hook is not None:
            self.hook()
        super().remove()


class Snapshots(OrderedSet):
    """F2: iterates over the hooks as they are when the loop begins."""

    def __iter__(self):
        return iter(list(self.items))


class Announced(ContextDecorator):
    """A scope that says when it is entered, and is only then begun."""

    def __init__(self, program, what, begin):
        self.program, self.what, self.begin = program, what, begin

    def __enter__(self):
        self.program.write(self.what)
        self.scope = self.begin()
        return self.scope.__enter__()

    def __exit__(self, *info):
        return self.scope.__exit__(*info)


class PlannedError(Exception):
    pass


class Halt(BaseException):
    pass


EXPECTED = (PlannedError, Halt, GeneratorExit, RuntimeError, ValueError)


def told(error, met=()):
    """What an exception and those behind it say."""
    if error is None or any(error is other for other in met):
        return None
    behind = [
        told(each, (*met, error))
        for each in (error.__cause__, error.__context__)
    ]
    kind = type(error).__name__
    return kind, str(error), error.__suppress_context__, behind


class Program:
    def __init__(self, lib, seed):
        self.lib, self.random = lib, Random(seed)
        self.events, self.handles, self.failures = [], [], []
        self.depth = self.running = 0
        self.args = [lib.PipelineHookArgs(None), lib.PipelineHookArgs(1), None]
        self.pool = self.make_pool()
        self.sets = [lib.PipelineHooks() for _ in range(2)]
        self.sets.append(self.overriding(lib.PipelineHooks)())
        own = self.overriding(lib.HookContextChannel)("on_batch")
        self.sets[1].hooks["on_batch"] = own
        self.sets[2].hooks["on_batch"] = self.sets[0].hooks["on_batch"]
        if lib.name == "upstream":
            for hooks in self.sets:
                for channel in hooks.hooks.values():
                    channel._context_handlers = Snapshots()

    def run(self):
        for hook in self.pool:
            self.keep(self.channel().register(hook))
        while len(self.events) < 120:
            with suppress(*EXPECTED):
                self.step()
        return self.events

    def step(self):
        (name,) = self.random.choices(list(OPERATIONS), OPERATIONS.values())
        self.depth += 1
        try:
            getattr(self, name)()
            self.write(name)
        except EXPECTED as error:
            self.write(name, told(error))
            raise
        finally:
            self.depth -= 1

    def body(self):
        if self.depth < 6 and len(self.events) < 200:
            for _ in range(self.random.randint(0, 3)):
                self.step()

    def write(self, what, *details):
        held = [
            self.numbers(channel)
            for hooks in self.sets
            for channel in hooks.hooks.values()
            if len(channel)
        ]
        self.events.append((what, details, held))

    def numbers(self, hooks):
        return [
            number
            for hook in hooks
            for number, known in enumerate(self.pool)
            if hook is known
        ]

    def make_pool(self):
        program = self

        class Subclass(core.HookContext):
            def before(self, arg):
                program.act(self, "before", arg)

            def after(self, arg):
                program.act(self, "after", arg)

        class Equal(Subclass):
            def __eq__(self, other):
                return type(other) is type(self)

            def __hash__(self):
                return 1

        callables = [core.HookContext.from_callable() for _ in range(5)]
        for number, hook in enumerate(callables):
            for phase in (PHASES, PHASES, ["before"], ["after"], ())[number]:
                setattr(hook, f"_{phase}", self.callback(hook, phase))
        return [*callables, Subclass(), Subclass(), Equal(), Equal()]

    def callback(self, hook, phase, name="own"):
        return lambda arg: self.act(hook, phase, arg, name)

    def act(self, hook, phase, arg, name=None):
        given = [arg is known for known in self.args]
        self.write(phase, self.numbers([hook]), given, name)
        if self.running < 4 and self.random.random() < 0.4:
            self.running += 1
            try:
                self.body()
            finally:
                self.running -= 1

    def overriding(self, base):
        program = self

        class Overriding(base):
            def begin(self, *args):
                begin = partial(super().begin, *args)
                return Announced(program, "overridden begin", begin)

        return Overriding

    def hooks(self):
        return self.random.choice(self.sets)

    def channel(self):
        return self.hooks().hooks[self.random.choice(CHANNELS)]

    def hook(self):
        return self.random.choice(self.pool)

    def handle(self):
        return self.random.choice(self.handles)

    def keep(self, handle):
        fixed = self.lib.name == "upstream"
        self.handles.append(Fixed(handle.hook) if fixed else handle)

    def change(self):
        number = self.random.choice([*[0] * 10, *range(len(CHANGES))])
        self.write("change", number)
        CHANGES[number](self)

    def patch(self):
        hook, phase = self.hook(), self.random.choice(PHASES)
        name = self.random.choice([phase, f"_{phase}"])
        setattr(hook, name, self.callback(hook, phase, "patched"))

    def patch_begin(self):
        channel = self.channel()

        def patched(arg):
            begin = partial(type(channel).begin, channel, arg)
            return Announced(self, "patched begin of a channel", begin)

        channel.begin = patched

    def fail(self):
        kind = self.random.choice([PlannedError, Halt, GeneratorExit])
        self.failures.append(kind(len(self.failures)))
        if self.random.random() < 0.2:
            raise self.failures[-1] from self.random.choice([None, KeyError()])
        raise self.random.choice([self.failures[-1], *self.failures])

    def attempt(self):
        try:
            self.body()
        except EXPECTED:
            self.write("caught")

    def handle_error(self):
        try:
            self.fail()
        except EXPECTED:
            self.body()

    def begin(self):
        hooks, channel = self.hooks(), self.random.choice(CHANNELS)
        arg = self.random.choice(self.args)
        style = self.random.choice(STYLES)
        if sys.exc_info()[0] and style in SUSPENDED:
            style = "with"  # contextlib chains the handled exception, too.
        if style == "channel":
            scope = hooks.hooks[channel].begin(arg)
        else:
            scope = hooks.begin(channel, arg)
        if style == "late":
            hooks.register_hook(channel, self.hook())
        if style == "decorator":
            scope(self.body)()
        elif style in SUSPENDED:
            with closing(self.suspended(scope)) as steps:
                self.write("entered", next(steps) is arg)
                self.attempt()
                if style == "thrown":
                    steps.throw(PlannedError())
        else:
            with scope as given:
                self.write("entered", given is arg)
                self.body()

    def suspended(self, scope):
        with scope as given:
            yield given
