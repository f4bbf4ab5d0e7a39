"""Replaces functions of another package in place, and puts them back."""

from __future__ import annotations

import contextlib
import inspect
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple


class PatchError(Exception):
    """A function is missing, or is not the one that was expected."""


def check_home(function: Any, module: str) -> None:
    """Raises PatchError unless a module's package defined the function."""
    if getattr(function, "__globals__", None) is vars(contextlib):
        # @contextmanager wraps the function in a function of contextlib.
        function = inspect.getclosurevars(function).nonlocals.get("func")
    home = getattr(function, "__globals__", {}).get("__name__", "")
    if home.split(".")[0] != module.split(".")[0]:
        raise PatchError(f"it is patched by {home or repr(function)}")


class AppliedPatch(NamedTuple):
    patch: Patch
    owner: Any
    attribute: str
    original: Any
    replacement: Any

    @property
    def state(self) -> str:
        try:
            *_, now = self.patch.look_up(sys.modules.get(self.patch.module))
            if now is self.replacement:
                return "replaced"
            check_home(getattr(now, "__func__", now), self.patch.module)
        except PatchError:
            return "patched by others since"
        return "original"


@dataclass(frozen=True)
class Patch:
    """A function or method of another package, to be replaced."""

    module: str
    path: str
    """Its name within the module, such as `Class.method`."""

    make: Callable[[Any, Any], Any]
    """Makes the replacement from owner and original; may raise PatchError."""

    parameters: str | None = None
    """Those that the original has to have, such as `self, *, name`."""

    @property
    def name(self) -> str:
        return f"{self.module}.{self.path}"

    def replace(self, undo: contextlib.ExitStack) -> AppliedPatch:
        """Replaces the function, and has `undo` put the original back."""
        owner, attribute, original = self._find()
        replacement = self.make(owner, original)
        replaced = AppliedPatch(self, owner, attribute, original, replacement)
        setattr(owner, attribute, replacement)
        undo.callback(self._put_back, replaced)
        return replaced

    def look_up(self, module: Any) -> tuple[Any, str, Any]:
        owner = module
        *classes, attribute = self.path.split(".")
        try:
            for each in classes:
                owner = vars(owner)[each]
            return owner, attribute, vars(owner)[attribute]
        except (KeyError, TypeError):
            raise PatchError("there is no such name") from None

    def _find(self) -> tuple[Any, str, Any]:
        try:
            module = import_module(self.module)
        except ModuleNotFoundError as error:
            if f"{self.module}.".startswith(f"{error.name}."):
                raise PatchError("there is no such module") from None
            raise
        owner, attribute, original = self.look_up(module)
        function = getattr(original, "__func__", original)
        check_home(function, self.module)
        signature = inspect.signature(function)
        bare = signature.replace(
            parameters=[
                each.replace(annotation=each.empty, default=each.empty)
                for each in signature.parameters.values()
            ],
            return_annotation=signature.empty,
        )
        if self.parameters is not None and str(bare) != f"({self.parameters})":
            raise PatchError(f"its parameters are {bare}")
        return owner, attribute, original

    def _put_back(self, replaced: AppliedPatch) -> None:
        if (
            vars(replaced.owner).get(replaced.attribute)
            is replaced.replacement
        ):
            setattr(replaced.owner, replaced.attribute, replaced.original)
        elif replaced.state != "original":  # That of a reloaded module.
            warnings.warn(
                f"{self.name} was patched after it had been replaced, so the "
                "patch is left alone: undo patches in the reverse order",
                stacklevel=2,
            )
