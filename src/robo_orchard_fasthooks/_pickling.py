"""How instances of compiled classes are pickled and copied."""

import copyreg
from collections.abc import Callable
from typing import Any

_copyreg: Any = copyreg  # typeshed lacks what pickles refer to.


def slots(instance: Any) -> dict[str, Any]:
    """The attributes that the class's Python subclasses keep in slots."""
    names = _copyreg._slotnames(type(instance))
    return {n: getattr(instance, n) for n in names if hasattr(instance, n)}


def reduce(instance: Any) -> tuple[Callable[..., Any], tuple[Any, ...], Any]:
    """As `object.__reduce_ex__`, which refuses protocols 0 and 1."""
    cls, state = type(instance), instance.__getstate__()
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if hasattr(instance, "__getnewargs_ex__"):
        args, kwargs = instance.__getnewargs_ex__()
    elif hasattr(instance, "__getnewargs__"):
        args = instance.__getnewargs__()
    if kwargs:
        return _copyreg.__newobj_ex__, (cls, args, kwargs), state
    return _copyreg.__newobj__, (cls, *args), state
