"""Descriptions of hooks, channels and callbacks for people to read."""

import functools
import inspect
from collections.abc import Callable, Mapping
from textwrap import indent
from types import CodeType
from typing import Any, Literal

# Not from _core: the compiled modules import this one, and run without torch,
# which robo_orchard_core's configs import.
from robo_orchard_core.utils.hook import HookContext

Phase = Literal["before", "after"]
PHASES: tuple[Phase, ...] = ("before", "after")

_FromCallable = type(HookContext.from_callable())
_METHODS = {phase: vars(_FromCallable)[phase] for phase in PHASES}


def describe(channels: Mapping[Any, Any]) -> str:
    lines = []
    for name, channel in channels.items():
        for position, hook in enumerate(channel._context_handlers):
            if position == 0:
                lines.append(name)
            lines.append(f"  {position} {label(hook)}")
            for phase in PHASES:
                function = callback_of(hook, phase)
                if function is not None:
                    lines.append(f"      {phase:<6} {where(function)}")
    return "\n".join(lines) or "no hooks"


def add_note(
    error: BaseException, channel: str, position: int, hook: Any, phase: Phase
) -> None:
    """Notes the hook that raised an exception, once; fails on Python 3.10."""
    note = (
        f"raised by hook {position} of channel {channel!r}, in {phase}: "
        f"{where(callback_of(hook, phase))}"
    )
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def channel_repr(channel: Any, cls: type) -> str:
    """Returns the `repr` of a channel in robo_orchard_core's layout."""
    hooks = ",\n".join(
        f"{position}: {hook_repr(hook)}"
        for position, hook in enumerate(channel._context_handlers)
    )
    listed = f"[\n{indent(hooks, '  ')}\n]" if hooks else "[]"
    return boxed(cls, f"name={channel.name}, \nhooks={listed}")


def hook_repr(hook: Any) -> str:
    try:
        return repr(hook)
    except Exception:  # It reads the source code, which builtins do not have.
        lines = [f"name={getattr(hook, 'name', None)}"]
        for phase in PHASES:
            function = callback_of(hook, phase)
            shown = None if function is None else f"<{where(function)}>"
            lines.append(f"{phase}={shown}")
        return boxed(type(hook), ", \n".join(lines))


def boxed(cls: type, content: str) -> str:
    return f"<{cls.__module__}.{cls.__name__}(\n{indent(content, '  ')})>"


def callback_of(hook: Any, phase: Phase) -> Callable[..., Any] | None:
    """Returns the function that a hook calls in a phase, if there is one."""
    if (
        type(hook) is _FromCallable
        and phase not in vars(hook)
        and vars(_FromCallable)[phase] is _METHODS[phase]
    ):
        return getattr(hook, f"_{phase}", None)
    return getattr(hook, phase, None)


def label(hook: Any) -> str:
    """Returns the class of a hook or of its callbacks, and its name if any."""
    owner = hook
    if type(hook) is _FromCallable:
        functions = [callback_of(hook, phase) for phase in PHASES]
        methods = filter(inspect.ismethod, functions)
        owner = next((each.__self__ for each in methods), hook)
    cls = owner if isinstance(owner, type) else type(owner)
    name = getattr(hook, "name", None)
    shown = f" {name!r}" if isinstance(name, str) and name else ""
    return f"{cls.__name__}{shown}"


def where(function: Any) -> str:
    """Returns the name of a callable, with file and line if it has them."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        function = inspect.unwrap(function)
    except ValueError:  # A proxy with every attribute wraps itself endlessly.
        pass
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", None)
    if code is None and name is None:  # An instance with `__call__`.
        name = type(function).__qualname__
        code = getattr(type(function).__call__, "__code__", None)
    if isinstance(code, CodeType):
        return f"{name} ({code.co_filename}:{code.co_firstlineno})"
    return f"{name} ({getattr(function, '__module__', None) or 'builtins'})"
