"""Random programs on upstream's hooks, on ours and on a model of the rules.

Hypothesis generates programs: registrations, merges, patches and nested
scopes, with hooks that do all of this too while they run. `Run` interprets
one on an implementation and writes down all there is to see after each
operation. Upstream has to do what the kept rules (K) say and ours what the
kept and the mended rules (F) say, as `Kept...` and `Mended...` below put them
in plain Python. So each difference between the two has a name and a value
that is expected; where none took effect, the two have to be the same.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing, contextmanager
from functools import partial, wraps
from itertools import zip_longest
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from hypothesis import strategies as st
from robo_orchard_core.utils import hook as core

import robo_orchard_fasthooks as fasthooks
import upstream

CHANNELS = (
    *("on_loop", "on_epoch", "on_step"),
    *("on_batch", "on_model_forward", "on_model_backward"),
)
FromCallable = type(core.HookContext.from_callable())

seen: Counter[str] = Counter()
"""How often each operation and each situation came up, in all programs."""
SITUATIONS = [
    *("body failed", "before failed", "after failed"),
    *("body and after failed", "before and after failed"),
    *("hooks changed in before", "hooks changed in after"),
    # Of a scope that an `after` opens on the argument that it was called with.
    "nothing failed within a failed scope",
    "before failed within a failed scope",
    "body failed within a failed scope",
    *("notes on one exception", "5 scopes deep", "a hook's own argument"),
    *("F1", "F5", "F11", "a merge of other names"),
    "programs without a difference",
    *("begin in a hook", "register in a hook", "call in a hook"),
    *("remove in a hook", "clear in a hook", "patch in a hook"),
    *("add", "add_channel", "add_hook", "annotate", "clear_channel"),
    *("discard", "handling", "leave", "look_up", "merge", "merge_channel"),
    *("patch_begin", "patch_begin_of_class", "patch_callback", "patch_class"),
    *("register_on_channel", "replace", "teach", "unpatch", "unpatch_begin"),
]


class KeptHandle:
    def __init__(self, undo):
        self.undo = undo

    def __call__(self):
        if self.undo is None:
            raise RuntimeError("The handle has been removed")
        self.undo()

    def remove(self):
        self.undo = None

    def __enter__(self):
        return self

    def __exit__(self, *info):
        self.remove()


class KeptChannel:
    handle = KeptHandle

    def __init__(self, name):
        self.name = name
        # A dictionary is a set in order: of equal hooks the first one stays.
        self._context_handlers = {}

    def __len__(self):
        return len(self._context_handlers)

    def __getitem__(self, item):
        return list(self._context_handlers)[item]

    def __iadd__(self, other):
        if hasattr(other, "register_hook_channel"):
            self.register_hook_channel(other)
        else:
            self.register(other)
        return self

    def register(self, hook):
        return self._add([hook])

    def register_hook_channel(self, other):
        if other.name != self.name:
            raise ValueError(
                f"Cannot register hook channel {other.name} to {self.name}"
            )
        return self._add(list(other._context_handlers))

    def unregister_all(self):
        self._context_handlers.clear()

    def _add(self, hooks):
        for hook in hooks:
            self._context_handlers.setdefault(hook)
        return self.handle(partial(self._discard, hooks))

    def _discard(self, hooks):
        for hook in hooks:
            self._context_handlers.pop(hook, None)

    @contextmanager
    def begin(self, arg):
        try:
            self._run("before", arg)
            yield arg
        finally:
            self._run("after", arg)

    def _run(self, phase, arg):
        position = 0
        while position < len(self):
            getattr(self[position], phase)(arg)
            position += 1


class KeptHooks:
    channel = KeptChannel
    handle = KeptHandle

    def __init__(self):
        self.hooks = {name: self.channel(name) for name in CHANNELS}

    @contextmanager
    def begin(self, channel, arg):
        with self.hooks[channel].begin(arg) as given_back:
            yield given_back

    def register_hook(self, channel, hook):
        return self.hooks[channel].register(hook)

    def register_pipeline_hooks(self, other):
        handles = [
            self.hooks[name].register_hook_channel(theirs)
            for name, theirs in other.hooks.items()
        ]
        return self.handle(lambda: [handle() for handle in handles])

    def __iadd__(self, other):
        self.register_pipeline_hooks(other)
        return self

    def unregister_all(self):
        for channel in self.hooks.values():
            channel.unregister_all()


class MendedHandle(KeptHandle):
    def remove(self):
        if self.undo is not None:
            seen["F1"] += 1
            self.undo()
        super().remove()


class MendedScope:
    """F11: it is entered once. It decorates with a new one for each call."""

    def __init__(self, channel, arg):
        self.channel, self.arg = channel, arg
        self.entered = None

    def __call__(self, function):
        @wraps(function)
        def inner(*args):
            with self.channel.begin(self.arg):
                return function(*args)

        return inner

    def __enter__(self):
        if self.entered is not None:
            seen["F11"] += 1
            raise RuntimeError("a scope can be entered once")
        self.entered = self.channel.scope(self.arg)
        return self.entered.__enter__()

    def __exit__(self, *info):
        return self.entered.__exit__(*info)


class MendedChannel(KeptChannel):
    handle = MendedHandle

    def begin(self, arg):
        return MendedScope(self, arg)

    @contextmanager
    def scope(self, arg):
        raised = failed = None
        try:
            failed = "before"
            self._run("before", arg)
            failed = "body"
            yield arg
            failed = None
        except BaseException as error:
            raised = error
            seen[f"{failed} failed"] += 1
            raise
        finally:
            self._leave(arg, raised, failed)

    def _leave(self, arg, raised, failed):
        previous = getattr(arg, "exception", None)
        self._tell(arg, raised)
        try:
            self._run("after", arg)
        except BaseException:
            seen["after failed"] += 1
            if failed:
                seen[f"{failed} and after failed"] += 1
            raise
        finally:
            self._tell(arg, previous)
            if len(self) and previous is not None:
                within = f"{failed} failed" if failed else "nothing failed"
                seen[f"{within} within a failed scope"] += 1

    def _run(self, phase, arg):
        hooks = list(self._context_handlers)  # F2
        for position, hook in enumerate(hooks):
            try:
                getattr(hook, phase)(arg)
            except BaseException as error:
                self._note(error, position, hook, phase)
                raise
            finally:
                if list(self._context_handlers) != hooks:
                    seen[f"hooks changed in {phase}"] += 1

    def _tell(self, arg, error):  # F3
        if hasattr(arg, "exception"):
            try:
                arg.exception = error
            except AttributeError:
                pass

    def _note(self, error, position, hook, phase):  # F7
        name = callback_name(hook, phase)
        note = (str(position), self.name, phase, name)
        notes = vars(error).setdefault("expected_notes", [])
        if note not in notes and sys.version_info >= (3, 11):
            notes.append(note)
            seen["notes on one exception"] += len(notes) > 1


class MendedHooks(KeptHooks):
    channel = MendedChannel
    handle = MendedHandle

    def begin(self, channel, arg):
        # Looked up now and not when the scope is entered: not kept, on
        # purpose.
        return self._channel(channel).begin(arg)

    def register_hook(self, channel, hook):
        return self._channel(channel).register(hook)

    def register_pipeline_hooks(self, other):
        # A merge that fails adds nothing.
        pairs = [
            (self._channel(name), theirs)
            for name, theirs in other.hooks.items()
        ]
        for mine, theirs in pairs:
            if mine.name != theirs.name:
                seen["a merge of other names"] += 1
                mine.register_hook_channel(theirs)
        return super().register_pipeline_hooks(other)

    def _channel(self, name):
        try:
            return self.hooks[name]
        except KeyError:
            seen["F5"] += 1
            listed = ", ".join(map(repr, self.hooks))
            raise KeyError(
                f"there is no channel {name!r}; the channels are {listed}"
            ) from None


def callback_name(hook, phase):
    """The name of the function that a hook has for a phase."""
    if type(hook) is FromCallable and phase not in vars(hook):
        phase = f"_{phase}"
    function = getattr(hook, phase)
    return getattr(function, "__qualname__", type(function).__qualname__)


class Library(NamedTuple):
    hooks: Callable[[], Any]
    channel: Callable[[str], Any]
    foreign_channel: Callable[[str], Any]
    args: Callable[[], Any]


THEIRS = Library(
    upstream.mixin.PipelineHooks,
    core.HookContextChannel,
    core.HookContextChannel,
    partial(upstream.mixin.PipelineHookArgs, None),
)
OURS = Library(
    fasthooks.PipelineHooks,
    fasthooks.HookContextChannel,
    core.HookContextChannel,
    partial(fasthooks.PipelineHookArgs, None),
)
KEPT = Library(KeptHooks, KeptChannel, KeptChannel, SimpleNamespace)
MENDED = Library(
    MendedHooks,
    MendedChannel,
    KeptChannel,
    partial(SimpleNamespace, exception=None),
)


class PlannedError(Exception):
    pass


class Halt(BaseException):
    pass


EXPECTED = (
    *(PlannedError, Halt, GeneratorExit, RuntimeError),
    # Of a channel or a merge; AttributeError is upstream's F11.
    *(KeyError, ValueError, AttributeError),
)
NOTE = re.compile(
    r"raised by hook (\d+) of channel '(\w+)', in (before|after): "
    r"(\S+) \((?:.+:\d+|builtins)\)"
)


def told(error):
    """What an exception and those behind it say, and apart their notes."""
    notes, met = [], []

    def tell(error):
        if error is None:
            return None
        if any(error is other for other in met):
            return "again"
        met.append(error)
        found = [
            NOTE.fullmatch(note).groups()
            for note in getattr(error, "__notes__", ())
        ]
        notes.append(found + vars(error).get("expected_notes", []))
        return (
            *(type(error).__name__, str(error), error.__suppress_context__),
            *(tell(error.__cause__), tell(error.__context__)),
        )

    return tell(error), notes


class ReadOnly:
    @property
    def exception(self):
        return None


class Run:
    """Interprets a program on one implementation.

    An operation is the name of a method and its arguments. Those inside
    others, in the body of a scope or in what a hook does, raise into them.
    """

    def __init__(self, library):
        self.library = library
        self.seen = Counter()
        self.events = []
        # What the rules F3 and F7 add to the event of the same position.
        self.mended = []
        self.patches = ExitStack()
        self.begin_as_made = library.channel.begin
        self.hooks = [library.hooks(), library.hooks(), self.overriding()]
        self.pool = self.make_pool()
        self.numbers = {id(hook): n for n, hook in enumerate(self.pool)}
        self.args = {
            "args": library.args(),
            "other args": library.args(),
            "settable": SimpleNamespace(exception=None),
            "bare": SimpleNamespace(),
            "read-only": ReadOnly(),
            "none": None,
        }
        self.scripts = {}
        self.handles = []
        self.latest_handle = {}
        self.running = []
        self.depth = 0
        self.handled = 0
        self.failures = 0
        self.kept_failure = PlannedError("kept")

    def run(self, program):
        for script in program["scripts"]:
            self.teach(*script)
        with self.patches:
            for operation in [
                *program["registrations"],
                *program["operations"],
            ]:
                try:
                    self.step(operation)
                except EXPECTED:
                    self.write("out")
        return self

    def step(self, operation):
        name, *params = operation
        self.seen[name] += 1
        self.seen[f"{name} in a hook"] += len(self.running) > 0
        try:
            result = getattr(self, name)(*params)
        except EXPECTED as error:
            self.write(f"{name} raised", *told(error))
            raise
        self.write(name, result)

    def perform(self, operations):
        for operation in operations:
            self.step(operation)

    def write(self, what, result=None, notes=None):
        standing = [
            (index, key, channel.name, len(channel), self.numbered(channel))
            for index, hooks in enumerate(self.hooks)
            for key, channel in hooks.hooks.items()
            if len(channel) > 0
        ]
        self.events.append((what, result, standing))
        watched = [
            repr(getattr(a, "exception", 0)) for a in self.args.values()
        ]
        self.mended.append((notes, watched))

    def numbered(self, hooks):
        return [self.numbers[id(hook)] for hook in hooks]

    # What the hooks are and do.

    def make_pool(self):
        run = self

        class Subclass(core.HookContext):
            def before(self, arg):
                run.act(self, "before", arg)

            def after(self, arg):
                run.act(self, "after", arg)

        class Equal(Subclass):
            def __eq__(self, other):
                return type(other) is type(self)

            def __hash__(self):
                return 1

        class Overriding(FromCallable):
            def after(self, arg):
                run.write("overridden after")
                super().after(arg)

        class Duck:
            before = Subclass.before
            after = Subclass.after

        self.subclass = Subclass
        return [
            self.make_hook(FromCallable, "before", "after"),
            self.make_hook(FromCallable, "before", "after"),
            self.make_hook(FromCallable, "before"),
            self.make_hook(FromCallable, "after"),
            self.make_hook(FromCallable),
            self.make_hook(Overriding, "before", "after"),
            *(Subclass(), Equal(), Equal(), Duck()),
        ]

    def make_hook(self, cls, *phases):
        hook = cls()
        for phase in phases:
            setattr(hook, f"_{phase}", self.callback(hook, phase, "own"))
        return hook

    def callback(self, hook, phase, name):
        def call(arg):
            self.act(hook, phase, arg, name)

        call.__qualname__ = name
        return call

    def act(self, hook, phase, arg, name=None):
        number = self.numbers[id(hook)]
        label = next(key for key, known in self.args.items() if known is arg)
        self.write(phase, (number, name, label))
        # Hooks that open scopes around themselves have to end somewhere.
        if len(self.running) < 4 and len(self.events) < 250:
            self.running.append((number, label))
            try:
                self.perform(self.scripts.get((number, phase), ()))
            finally:
                self.running.pop()

    def teach(self, hook, phase, script):
        self.scripts[hook, phase] = script

    def overriding(self):
        run = self

        class Overriding(self.library.hooks):
            def begin(self, channel, arg):
                run.write("overridden begin")
                return super().begin(channel, arg)

        return Overriding()

    # Registering and unregistering.

    def register(self, hooks, channel, hook):
        hook = self.hook(hook)
        handle = self.hooks[hooks].register_hook(channel, self.pool[hook])
        self.latest_handle[hook] = handle
        self.handles.append(handle)

    def register_on_channel(self, hooks, channel, hook):
        channel = self.hooks[hooks].hooks[channel]
        self.handles.append(channel.register(self.pool[self.hook(hook)]))

    def add_hook(self, hooks, channel, hook):
        hook = self.pool[self.hook(hook)]
        if isinstance(hook, core.HookContext):
            self.hooks[hooks].hooks[channel] += hook

    def discard(self, hooks, channel, hook):
        self.hooks[hooks].register_hook(channel, self.pool[self.hook(hook)])()

    def call(self, handle):
        self.handle(handle)()

    def remove(self, handle):
        self.handle(handle).remove()

    def leave(self, handle, body):
        with self.handle(handle):
            self.perform(body)

    def merge(self, hooks, others):
        merged = self.hooks[hooks].register_pipeline_hooks(self.hooks[others])
        self.handles.append(merged)

    def add(self, hooks, others):
        self.hooks[hooks] += self.hooks[others]

    def merge_channel(self, hooks, channel, others, other):
        self.handles.append(
            self.hooks[hooks]
            .hooks[channel]
            .register_hook_channel(self.hooks[others].hooks[other])
        )

    def add_channel(self, hooks, channel, others, other):
        self.hooks[hooks].hooks[channel] += self.hooks[others].hooks[other]

    def clear(self, hooks):
        self.hooks[hooks].unregister_all()

    def clear_channel(self, hooks, channel):
        self.hooks[hooks].hooks[channel].unregister_all()

    def look_up(self, hooks, channel, item):
        channel = self.hooks[hooks].hooks[channel]
        if isinstance(item, slice):
            return self.numbered(channel[item])
        try:
            return self.numbered([channel[item]])
        except IndexError:  # Its words are in a test of their own.
            return "none there"

    def replace(self, hooks, channel, kind):
        channels = self.hooks[hooks].hooks
        if kind == "gone":
            channels.pop(channel, None)
        elif kind == "shared":
            channels[channel] = self.hooks[1].hooks[channel]
        elif kind == "renamed":
            channels[channel] = self.library.channel("renamed")
        else:
            made = self.make_channel(kind, channel)
            if channel in channels and channels[channel].name == channel:
                made.register_hook_channel(channels[channel])
            channels[channel] = made

    def make_channel(self, kind, name):
        if kind == "foreign":
            return self.library.foreign_channel(name)
        run = self

        class Overriding(self.library.channel):
            def begin(self, arg):
                run.write("overridden begin of a channel")
                return super().begin(arg)

        return (Overriding if kind == "overriding" else self.library.channel)(
            name
        )

    # Patching.

    def patch(self, hook, phase):
        hook = self.pool[self.hook(hook)]
        setattr(hook, phase, self.callback(hook, phase, "patched"))

    def unpatch(self, hook, phase):
        vars(self.pool[self.hook(hook)]).pop(phase, None)

    def patch_callback(self, hook, phase, name):
        hook = self.pool[self.hook(hook)]
        function = self.callback(hook, phase, name) if name else None
        setattr(hook, f"_{phase}", function)

    def annotate(self, hook):
        self.pool[self.hook(hook)].annotation = "of the user"

    def patch_class(self, which, phase):
        if self.running:  # A test of its own is below.
            return
        cls = self.subclass if which == "subclass" else FromCallable
        original = getattr(cls, phase)

        def patched(hook, arg):
            self.write(f"patched {which}")
            original(hook, arg)

        self.patches.enter_context(mock.patch.object(cls, phase, patched))

    def patch_begin(self, hooks, channel):
        channel = self.hooks[hooks].hooks[channel]

        def patched(arg):
            self.write("patched begin of a channel")
            return type(channel).begin(channel, arg)

        channel.begin = patched

    def unpatch_begin(self, hooks, channel):
        channel = self.hooks[hooks].hooks[channel]
        if "begin" in vars(channel):
            del channel.begin

    def patch_begin_of_class(self):
        original = self.begin_as_made

        def patched(channel, arg):
            self.write("patched begin of the class")
            return original(channel, arg)

        self.patches.enter_context(
            mock.patch.object(self.library.channel, "begin", patched)
        )

    def undo_class_patches(self):
        if not self.running:
            self.patches.close()

    # Raising.

    def fail(self, kind):
        self.failures += 1
        error = PlannedError(self.failures)
        if kind == "halt":
            raise Halt(self.failures)
        if kind == "exit":
            raise GeneratorExit(self.failures)
        if kind == "again":
            raise self.kept_failure
        if kind == "runtime":
            raise RuntimeError(self.failures)
        if kind == "cause":
            raise error from PlannedError("cause")
        if kind == "alone":
            raise error from None
        raise error

    def attempt(self, body):
        try:
            self.perform(body)
        except EXPECTED:
            self.write("caught")

    def handling(self, kind, body):
        try:
            self.fail(kind)
        except EXPECTED:
            self.handled += 1
            try:
                self.perform(body)
            finally:
                self.handled -= 1

    # Scopes.

    def begin(self, style, hooks, channel, arg, body):
        if arg == "same":
            arg = self.running[-1][1] if self.running else "args"
            self.seen["a hook's own argument"] += len(self.running) > 0
        begin = partial(self.hooks[hooks].begin, channel, self.args[arg])
        if style == "channel":
            begin = partial(
                self.hooks[hooks].hooks[channel].begin, self.args[arg]
            )
            style = "with"
        if self.handled and style in ("generator", "thrown", "closed"):
            style = "with"  # A test of its own is below.
        self.depth += 1
        self.seen[f"{self.depth} scopes deep"] += 1
        try:
            return getattr(self, f"begin_{style}")(begin, self.args[arg], body)
        finally:
            self.depth -= 1

    def begin_with(self, begin, arg, body):
        with begin() as yielded:
            self.write("entered", yielded is arg)
            self.perform(body)

    def begin_stack(self, begin, arg, body):
        with ExitStack() as stack:
            yielded = stack.enter_context(begin())
            self.write("entered", yielded is arg)
            self.perform(body)

    def begin_late(self, begin, arg, body):
        scope = begin()
        self.perform(body[:1])
        with scope as yielded:
            self.write("entered", yielded is arg)
            self.perform(body[1:])

    def begin_again(self, begin, arg, body):
        scope = begin()
        with scope:
            self.perform(body[:1])
        with scope:
            self.perform(body[1:])

    def begin_inside(self, begin, arg, body):
        scope = begin()
        with scope, scope:
            self.perform(body)

    def begin_decorator(self, begin, arg, body):
        @begin()
        def decorated(given):
            self.write("decorated", given)
            self.perform(body)
            return "result"

        return decorated(1), decorated(2)

    def begin_generator(self, begin, arg, body):
        def steps():
            with begin() as yielded:
                yield yielded
                self.perform(body)

        for yielded in steps():
            self.write("entered", yielded is arg)

    def begin_thrown(self, begin, arg, body):
        def steps():
            with begin() as yielded:
                yield yielded

        with closing(steps()) as suspended:
            next(suspended)
            self.perform(body)
            self.failures += 1
            suspended.throw(PlannedError(self.failures))

    def begin_closed(self, begin, arg, body):
        def steps():
            with begin() as yielded:
                yield yielded

        with closing(steps()) as suspended:
            next(suspended)
            self.perform(body)

    def hook(self, hook):
        """A number in the pool; -1 is the hook that runs."""
        if hook >= 0:
            return hook
        return self.running[-1][0] if self.running else 0

    def handle(self, handle):
        """One of the handles; -1 is the latest of the hook that runs."""
        if handle < 0 and self.hook(-1) in self.latest_handle:
            return self.latest_handle[self.hook(-1)]
        if not self.handles:
            self.register(0, "on_step", 0)
        return self.handles[handle % len(self.handles)]


def weighted(**weights):
    return st.sampled_from(
        [key for key in weights for _ in range(weights[key])]
    )


HOOKS = st.sampled_from([0, 0, 0, 0, 1, 2])
ON = weighted(on_step=26, on_batch=12, extra=1)
HOOK = st.sampled_from([-1, -1, *range(10)])
HANDLE = st.sampled_from([-1, -1, *range(10)])
KNOWN_HOOK = st.integers(0, 9)
PHASE = st.sampled_from(["before", "after"])
FAILURE = weighted(
    plain=3, halt=1, exit=1, again=1, runtime=1, cause=1, alone=1
)
ITEM = st.sampled_from([0, 0, 1, -1, 9, slice(None), slice(1, 3)])
CHANNEL = weighted(new=1, foreign=2, overriding=2, shared=1, renamed=3, gone=1)
STYLE = st.sampled_from(
    [
        *["with"] * 6,
        *("channel", "stack", "late", "again", "inside", "decorator"),
        *("generator", "thrown", "closed"),
    ]
)
ARG = st.sampled_from(
    [
        *["args", "same"] * 3,
        *("other args", "settable", "bare", "read-only", "none"),
    ]
)
# How many of 101 operations each is, where it is not one.
WEIGHTS = {
    "begin": 22,
    **dict.fromkeys(["fail", "register"], 8),
    **dict.fromkeys(["call", "remove", "patch", "teach", "attempt"], 4),
    **dict.fromkeys(["patch_callback", "handling", "merge", "replace"], 3),
    **dict.fromkeys(["discard", "leave", "unpatch"], 2),
}


def operations(body, script):
    """One operation; `body` and `script` are lists of those inside it."""
    params = {
        "add": [HOOKS, HOOKS],
        "add_channel": [HOOKS, ON, HOOKS, ON],
        "add_hook": [HOOKS, ON, HOOK],
        "annotate": [HOOK],
        "attempt": [body],
        "begin": [STYLE, HOOKS, ON, ARG, body],
        "call": [HANDLE],
        "clear": [HOOKS],
        "clear_channel": [HOOKS, ON],
        "discard": [HOOKS, ON, HOOK],
        "fail": [FAILURE],
        "handling": [FAILURE, body],
        "leave": [HANDLE, body],
        "look_up": [HOOKS, ON, ITEM],
        "merge": [HOOKS, HOOKS],
        "merge_channel": [HOOKS, ON, HOOKS, ON],
        "patch": [HOOK, PHASE],
        "patch_begin": [HOOKS, ON],
        "patch_begin_of_class": [],
        "patch_callback": [
            st.integers(0, 5),
            PHASE,
            st.sampled_from([None, "own", "late", "late"]),
        ],
        "patch_class": [st.sampled_from(["callable", "subclass"]), PHASE],
        "register": [HOOKS, ON, HOOK],
        "register_on_channel": [HOOKS, ON, HOOK],
        "remove": [HANDLE],
        "replace": [HOOKS, ON, CHANNEL],
        "teach": [KNOWN_HOOK, PHASE, script],
        "undo_class_patches": [],
        "unpatch": [HOOK, PHASE],
        "unpatch_begin": [HOOKS, ON],
    }
    made = {name: st.tuples(st.just(name), *params[name]) for name in params}
    return weighted(**{name: WEIGHTS.get(name, 1) for name in params}).flatmap(
        made.__getitem__
    )


def several(operation, least, most):
    return st.lists(operation, min_size=least, max_size=most)


FLAT = operations(st.just([]), st.just([]))
DEEP = operations(several(FLAT, 1, 2), several(FLAT, 0, 2))
DEEPER = operations(several(DEEP, 1, 3), several(FLAT, 0, 2))
DEEPEST = operations(several(DEEPER, 1, 4), several(DEEP, 1, 2))
PROGRAMS = st.fixed_dictionaries(
    {
        "scripts": st.lists(
            st.tuples(KNOWN_HOOK, PHASE, several(DEEP, 1, 2)),
            min_size=4,
            max_size=9,
        ),
        "registrations": st.lists(
            st.tuples(st.just("register"), HOOKS, ON, KNOWN_HOOK),
            min_size=5,
            max_size=12,
        ),
        "operations": several(DEEPEST, 3, 9),
    }
)


def assert_same(run, model):
    for done, expected in zip_longest(run.events, model.events):
        assert done == expected
    for done, expected in zip_longest(run.mended, model.mended):
        assert done == expected
