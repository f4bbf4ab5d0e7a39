"""Python twins of compiled functions, which torch.compile traces instead.

They are registered once something else imports torch._dynamo: it is slow.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import wrapt

from robo_orchard_fasthooks import _dispatch

_LEFT_ALONE = object()


def substitute(compiled: Callable[..., Any], twin: Callable[..., Any]) -> None:
    """Has torch.compile trace `twin` wherever `compiled` is called."""

    def register(dynamo: Any) -> None:
        from unittest.mock import patch

        # torch refuses what `is_function` does not know, as Cython's
        # functions, and then handles those as any other. Where torch does this
        # otherwise, graphs break as if without a twin.
        with (
            suppress(Exception),
            patch.object(dynamo.decorators, "is_function", callable),
        ):
            dynamo.decorators.substitute_in_graph(
                compiled, skip_signature_check=True
            )(twin)

    wrapt.register_post_import_hook(register, "torch._dynamo")


@contextmanager
def _begin(self: Any, channel: str, arg: Any) -> Iterator[Any]:
    with self.hooks[channel].begin(arg) as yielded:
        yield yielded


@contextmanager
def _scope(self: Any, arg: Any) -> Iterator[Any]:
    if self._recorder is not None:
        torch._dynamo.graph_break("a HookProfiler times this channel")
    error = None
    try:
        for hook in self._context_handlers:
            hook.before(arg)
        yield arg
    except BaseException as raised:
        error = raised
        raise
    finally:
        if self._is_lab:
            if error is not None and self._publishes_exception:
                _set_exception(arg, error)
            for hook in self._context_handlers:
                hook.after(arg)
        else:
            previous = _set_exception(arg, error)
            try:
                for hook in self._context_handlers:
                    hook.after(arg)
            finally:
                _set_exception(arg, previous)


def _set_exception(arg: Any, error: Any) -> Any:
    if error is _LEFT_ALONE:
        return error
    try:
        previous = getattr(arg, "exception", _LEFT_ALONE)
        if previous is None or isinstance(previous, BaseException):
            if previous is not error:
                arg.exception = error
            return previous
    except Exception:  # The attribute cannot be read or set.
        pass
    return _LEFT_ALONE


substitute(_dispatch.Registrations.begin, _scope)
substitute(_dispatch.begin, _begin)
