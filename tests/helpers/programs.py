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
from contextlib import ContextDecorator, ExitStack, closing
from functools import partial
from random import Random
from unittest import mock

from ordered_set import OrderedSet
from robo_orchard_core.utils import hook as core

FromCallable = type(core.HookContext.from_callable())
CHANNELS = ("on_step", "on_batch")
PHASES = ("before", "after")
WEIGHTS = {
    **dict.fromkeys(
        ("add", "add_channel", "add_hook", "annotate", "clear", "look_up"), 1
    ),
    **dict.fromkeys(("clear_channel", "merge_channel", "undo_patches"), 1),
    **dict.fromkeys(("patch_begin", "patch_class", "patch_channels"), 1),
    **dict.fromkeys(("leave", "unpatch", "unpatch_begin"), 2),
    **dict.fromkeys(("handle_error", "merge", "patch_callback"), 3),
    **dict.fromkeys(("attempt", "call", "patch", "remove"), 4),
    **{"begin": 22, "fail": 6, "register": 16},
}
STYLES = {
    **{"with": 5, "channel": 2, "stack": 1, "late": 1, "decorator": 1},
    **{"finished": 1, "thrown": 1, "closed": 1},
}
SUSPENDED = ("finished", "thrown", "closed")


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
        self.patches = ExitStack()
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
        with self.patches:
            for hook in self.pool:
                self.keep(self.channel().register(hook))
            while len(self.events) < 120:
                try:
                    self.step()
                except EXPECTED:
                    pass
        for args in self.args:
            assert getattr(args, "exception", None) is None
        return self.events

    def step(self):
        (name,) = self.random.choices(list(WEIGHTS), WEIGHTS.values())
        self.depth += 1
        try:
            self.write(name, getattr(self, name)())
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

    # The hooks.

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

        class Overriding(FromCallable):
            def after(self, arg):
                program.write("overridden after")
                super().after(arg)

        class Duck:
            before, after = Subclass.before, Subclass.after

        self.classes = FromCallable, Subclass
        callables = [FromCallable() for _ in range(5)] + [Overriding()]
        for number, phases in enumerate(
            (PHASES, PHASES, PHASES[:1], PHASES[1:], (), PHASES)
        ):
            hook = callables[number]
            for phase in phases:
                setattr(hook, f"_{phase}", self.callback(hook, phase))
        return [*callables, Subclass(), Equal(), Equal(), Duck()]

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

    # What is drawn.

    def hooks(self):
        return self.random.choice(self.sets)

    def channel(self):
        return self.hooks().hooks[self.random.choice(CHANNELS)]

    def hook(self):
        return self.random.choice(self.pool)

    def handle(self):
        return self.random.choice(self.handles)

    def phase(self):
        return self.random.choice(PHASES)

    def keep(self, handle):
        fixed = self.lib.name == "upstream"
        self.handles.append(Fixed(handle.hook) if fixed else handle)

    # Registering.

    def register(self):
        channel = self.random.choice(CHANNELS)
        self.keep(self.hooks().register_hook(channel, self.hook()))

    def add_hook(self):
        channel = self.channel()
        channel += self.random.choice(self.pool[:-1])

    def call(self):
        self.handle()()

    def remove(self):
        self.handle().remove()

    def leave(self):
        with self.handle():
            self.body()

    def merge(self):
        self.keep(self.hooks().register_pipeline_hooks(self.hooks()))

    def add(self):
        hooks = self.hooks()
        hooks += self.hooks()

    def merge_channel(self):
        self.keep(self.channel().register_hook_channel(self.channel()))

    def add_channel(self):
        channel = self.channel()
        channel += self.channel()

    def clear(self):
        self.hooks().unregister_all()

    def clear_channel(self):
        self.channel().unregister_all()

    def look_up(self):
        item = self.random.choice([0, -1, 9, slice(None), slice(1, 3)])
        try:
            found = self.channel()[item]
        except IndexError as error:
            return str(error)
        return self.numbers(found if isinstance(item, slice) else [found])

    # Patching.

    def patch(self):
        hook, phase = self.hook(), self.phase()
        setattr(hook, phase, self.callback(hook, phase, "patched"))

    def unpatch(self):
        vars(self.hook()).pop(self.phase(), None)

    def patch_callback(self):
        hook, phase = self.random.choice(self.pool[:6]), self.phase()
        callback = self.random.choice([None, self.callback(hook, phase)])
        setattr(hook, f"_{phase}", callback)

    def annotate(self):
        self.hook().annotation = "of the user"

    def patch_class(self):
        if self.running == 0:  # During a phase it counts at the next one.
            self.wrap(self.random.choice(self.classes), self.phase())

    def patch_channels(self):
        if self.depth == 1:
            self.wrap_begin(self.lib.HookContextChannel)

    def undo_patches(self):
        if self.depth == 1:
            self.patches.close()

    def wrap(self, cls, name):
        original = getattr(cls, name)

        def patched(hook, arg):
            self.write(f"patched {name}")
            original(hook, arg)

        self.patches.enter_context(mock.patch.object(cls, name, patched))

    def wrap_begin(self, cls):
        original = cls.begin

        def patched(*args):
            begin = partial(original, *args)
            return Announced(self, "patched begin of a class", begin)

        self.patches.enter_context(mock.patch.object(cls, "begin", patched))

    def patch_begin(self):
        channel = self.channel()

        def patched(arg):
            begin = partial(type(channel).begin, channel, arg)
            return Announced(self, "patched begin of a channel", begin)

        channel.begin = patched

    def unpatch_begin(self):
        vars(self.channel()).pop("begin", None)

    # Raising.

    def fail(self):
        kind = self.random.choice(
            [PlannedError, Halt, GeneratorExit, RuntimeError, "again", "from"]
        )
        if kind == "again" and self.failures:
            raise self.random.choice(self.failures)
        if kind == "from":
            raise PlannedError from self.random.choice([None, KeyError("x")])
        self.failures.append(
            (PlannedError if kind == "again" else kind)(len(self.failures))
        )
        raise self.failures[-1]

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

    # Scopes.

    def begin(self):
        hooks, channel = self.hooks(), self.random.choice(CHANNELS)
        arg = self.random.choice(self.args)
        (style,) = self.random.choices(list(STYLES), STYLES.values())
        if sys.exc_info()[0] and style in SUSPENDED:
            style = "with"  # contextlib chains the handled exception, too.
        if style == "channel":
            scope = hooks.hooks[channel].begin(arg)
        else:
            scope = hooks.begin(channel, arg)
        if style == "late":
            hooks.register_hook(channel, self.hook())
        if style == "decorator":
            body = scope(self.body)
            body()
            body()
        elif style == "stack":
            with ExitStack() as stack:
                self.write("entered", stack.enter_context(scope) is arg)
                self.body()
        elif style in SUSPENDED:
            with closing(self.suspended(scope)) as steps:
                self.write("entered", next(steps) is arg)
                self.attempt()
                if style == "thrown":
                    steps.throw(PlannedError("thrown"))
                if style == "finished":
                    next(steps, None)
        else:
            with scope as given:
                self.write("entered", given is arg)
                self.body()

    def suspended(self, scope):
        with scope as given:
            yield given
