"""Fast construction and copies of arguments that are a plain dataclass."""

from collections.abc import Callable
from typing import Any

def unsupported_reason(cls: type) -> str | None:
    """Returns the reason why a class cannot be accelerated, if there is one.

    Its calls and copies can be if its instances have a dictionary and its
    `__init__`, generated or written by hand, does nothing but set each field
    to the argument of that name. It may have more parameters, which it
    ignores.

    Args:
        cls (type): The class.

    Returns:
        str | None: The reason, or None if the class can be accelerated.
    """

def enable(cls: type) -> None:
    """Accelerates calls of a class, in place of the class before it.

    Only one class can be accelerated at a time. Its subclasses are not.

    Args:
        cls (type): A class for which `unsupported_reason` returns None.
    """

def disable(cls: type) -> None:
    """Undoes `enable`.

    Args:
        cls (type): The class.
    """

def copying(cls: type, original: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a fast `copy_with_updates` for a class.

    Args:
        cls (type): A class for which `unsupported_reason` returns None.
        original (Callable): The `copy_with_updates` of the class. It is still
            called for subclasses, for instances with attributes that are not
            fields, and while the class is not enabled.

    Returns:
        Callable: The method.
    """

__test__: dict[str, str]
