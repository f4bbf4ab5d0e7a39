"""A scope as a decorator, in Python: torch.compile can then trace it."""

from collections.abc import Callable
from functools import wraps
from typing import Any


def decorated(
    function: Callable[..., Any], channel: Any, arg: Any
) -> Callable[..., Any]:
    @wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        with channel.begin(arg):
            return function(*args, **kwargs)

    return inner
