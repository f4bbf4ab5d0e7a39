"""Errors for objects that are not hooks, which say what to do instead."""

import functools
import inspect
from types import CodeType, FunctionType, MethodType
from typing import Any

from robo_orchard_fasthooks._describe import (
    PHASES,
    callback_of,
    hook_repr,
    where,
)

_RUNS_LATER = (
    inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
)


def check_hook(hook: Any) -> None:
    """Raises TypeError unless an object can be registered as a hook."""
    for phase in PHASES:
        if not callable(getattr(hook, phase, None)):
            if known := advice(hook):
                raise TypeError(f"cannot register {named(hook)}{known}")
            raise TypeError(
                f"cannot register {hook_repr(hook)}: it has no callable "
                f"`{phase}`. A hook has the methods `before` and `after`; "
                "HookContext.from_callable makes one from functions"
            )
        if isinstance(hook, type) and isinstance(
            inspect.getattr_static(hook, phase, None), FunctionType
        ):
            raise TypeError(f"cannot register {named(hook)}{advice(hook)}")
    callbacks = {phase: callback_of(hook, phase) for phase in PHASES}
    has_none = all(each is None for each in callbacks.values())
    if has_none and callable(hook.name):  # Made by from_callable.
        raise TypeError(
            "cannot register a hook without callbacks whose name is "
            f"{where(hook.name)}: the first parameter of "
            "HookContext.from_callable is the name. Pass before= or after="
        )
    for phase, callback in callbacks.items():
        if _runs_later(callback):
            raise TypeError(
                f"cannot register a hook whose `{phase}` is an async or "
                f"generator function: {where(callback)}. Hooks do not await "
                "or iterate, so it would never run. Pass a plain function"
            )


def named(given: Any) -> str:
    """Names an object by its class, or a class by its own name."""
    is_class = isinstance(given, type)
    return f"the class {given.__name__}" if is_class else str(type(given))


def advice(given: Any) -> str:
    """Says how to pass an object that was given where another was expected."""
    if isinstance(given, type):
        return f": call it, {given.__name__}(), and pass what it returns"
    if hasattr(given, "register_pipeline_hooks"):
        return ": use register_pipeline_hooks or += for PipelineHooks"
    if hasattr(given, "register_hook_channel"):
        return ": use register_hook_channel or += for a channel"
    if callable(getattr(given, "class_type", None)):
        return ", which is a config: PipelineHooks.from_hooks([...]) takes it"
    if all(callable(getattr(given, phase, None)) for phase in PHASES):
        return ": use register_hook(channel, hook) for a hook"
    return ""


def _runs_later(callback: Any) -> bool:
    """Whether a call makes a coroutine or a generator, and runs nothing."""
    # By exact types: a mock claims to be what it stands for.
    while type(callback) in (functools.partial, MethodType):
        is_partial = type(callback) is functools.partial
        callback = callback.func if is_partial else callback.__func__
    if not hasattr(callback, "__code__"):  # An instance with `__call__`.
        callback = getattr(type(callback), "__call__", None)  # noqa: B004
    code = getattr(callback, "__code__", None)
    return type(code) is CodeType and bool(code.co_flags & _RUNS_LATER)
