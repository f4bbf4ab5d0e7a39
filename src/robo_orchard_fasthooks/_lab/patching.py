"""Functions of another package, replaced where they stand and put back."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

__all__ = ["PatchError", "AppliedPatch", "Patch", "check_home"]


_STARS: dict[Any, str] = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
}


class PatchError(Exception):
    """A function is not what it is expected to be."""


def check_home(function: Any, module: str) -> None:
    """Checks that a function is of a package, and not patched by another.

    Args:
        function (Callable): The function.
        module (str): A module of the package.

    Raises:
        PatchError: It is of another package.
    """
    if getattr(function, "__globals__", None) is vars(contextlib):
        # What @contextmanager makes calls what it was made of.
        function = inspect.getclosurevars(function).nonlocals.get("func")
    home = getattr(function, "__globals__", {}).get("__name__", "")
    if home.split(".")[0] != module.split(".")[0]:
        raise PatchError(f"it is patched by {home or repr(function)}")


class AppliedPatch(NamedTuple):
    """An attribute that was replaced."""

    owner: Any
    attribute: str
    original: Any
    replacement: Any

    @property
    def stands(self) -> bool:
        """Whether nobody has replaced it since."""
        return vars(self.owner).get(self.attribute) is self.replacement


@dataclass(frozen=True)
class Patch:
    """A function or method of another package, to be replaced."""

    module: str
    path: str
    """Its name in the module, as `Class.method`."""

    make: Callable[[Any, Any], Any]
    """Makes the replacement, of the owner and the original; it may raise
    PatchError."""

    parameters: str | None = None
    """Those of the original, where the replacement counts on them."""

    @property
    def name(self) -> str:
        """The full name."""
        return f"{self.module}.{self.path}"

    def replace(self, undo: contextlib.ExitStack) -> AppliedPatch:
        """Replaces it.

        Args:
            undo (contextlib.ExitStack): Gets what puts it back.

        Returns:
            AppliedPatch: What was replaced, by what.

        Raises:
            PatchError: It is not there, not as expected, or patched.
            ImportError: Its module needs another one that is not there.
        """
        owner, attribute, original = self.find()
        replacement = self.make(owner, original)
        replaced = AppliedPatch(owner, attribute, original, replacement)
        setattr(owner, attribute, replacement)
        undo.callback(self._put_back, replaced)
        return replaced

    def find(self) -> tuple[Any, str, Any]:
        """Finds it.

        Returns:
            tuple[Any, str, Any]: The owner, a class or a module; the name of
                the attribute in it; and what is there.

        Raises:
            PatchError: It is not there, not as expected, or patched.
            ImportError: Its module needs another one that is not there.
        """
        try:
            owner: Any = import_module(self.module)
        except ModuleNotFoundError as error:
            if f"{self.module}.".startswith(f"{error.name}."):
                raise PatchError("there is no such module") from None
            raise
        *classes, attribute = self.path.split(".")
        try:
            for each in classes:
                owner = vars(owner)[each]
            original = vars(owner)[attribute]
        except (KeyError, TypeError):
            raise PatchError("there is no such name") from None
        function = getattr(original, "__func__", original)
        check_home(function, self.module)
        parameters = ", ".join(
            _STARS.get(parameter.kind, "") + name
            for name, parameter in inspect.signature(
                function
            ).parameters.items()
        )
        if self.parameters not in (None, parameters):
            raise PatchError(f"its parameters are ({parameters})")
        return owner, attribute, original

    def _put_back(self, replaced: AppliedPatch) -> None:
        if replaced.stands:
            setattr(replaced.owner, replaced.attribute, replaced.original)
        else:
            warnings.warn(
                f"{self.name} was patched after it had been replaced, and is "
                "left so: take patches back in the reverse order",
                stacklevel=2,
            )
