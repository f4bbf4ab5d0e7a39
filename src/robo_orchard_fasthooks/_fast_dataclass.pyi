"""Quick construction and copies of arguments that are a plain dataclass."""

from collections.abc import Callable
from typing import Any

def unsupported_reason(cls: type) -> str | None:
    """Says why calls and copies of a class cannot be made quick.

    They can if its instances have a dictionary and `__init__`, generated or
    written by hand, does nothing but set each field to the argument of its
    name. It may have more parameters, which it ignores.

    Args:
        cls (type): The class.

    Returns:
        str | None: The reason, None if they can.
    """

def enable(cls: type) -> None:
    """Makes calls of a class quick. One class at a time can be.

    Its subclasses are called as before.

    Args:
        cls (type): A class for which `unsupported_reason` returns None.
    """

def disable(cls: type) -> None:
    """Undoes `enable`.

    Args:
        cls (type): The class.
    """

def copying(cls: type, original: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a quick `copy_with_updates` for a class.

    Args:
        cls (type): A class for which `unsupported_reason` returns None.
        original (Callable): The `copy_with_updates` of the class. It is still
            called for subclasses, for instances with attributes that are not
            fields, and while the class is not enabled.

    Returns:
        Callable: The method.
    """

__test__: dict[str, str]
