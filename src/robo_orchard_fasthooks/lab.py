"""An installed RoboOrchardLab, accelerated in place."""

import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager as ContextManager
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from threading import RLock
from types import MappingProxyType

from robo_orchard_fasthooks import _dispatch
from robo_orchard_fasthooks._lab.patches import MODULES, PACKAGE, patches
from robo_orchard_fasthooks._lab.patching import AppliedPatch, PatchError

__all__ = ["Status", "install", "status", "uninstall"]

_TESTED = {
    "0.4.0": "supported, and tested with the published package",
    "0.5.0": "supported; its public repository of August 2026 was tested by "
    "hand, and a stand-in for it is tested on each change",
}


def install(verbose: bool = False) -> ContextManager[None]:
    """Accelerates RoboOrchardLab's own classes without replacing them.

    PipelineHooks that are created afterwards, of any subclass, dispatch
    through compiled channels, and PipelineHookArgs are built and copied by
    compiled code. Hooks and configs of this package are accepted wherever
    those of RoboOrchardLab are, and RoboOrchardLab's GradientClippingHook and
    trainer clip with the functions of this package. Pickles, checkpoints and
    configs that are written meanwhile load without this package.

    A process that is spawned, not forked, has to call `install` itself.

    A function that differs from those of 0.4 and 0.5, or that other code has
    patched, is left alone; one warning lists them all. Later patches take
    effect, except those of robo_orchard_core's HookContextChannel. After
    importlib.reload, another call replaces what the reload has restored.

    Args:
        verbose (bool): Whether to print `status()`.

    Returns:
        AbstractContextManager: Uninstalls on exit what this call installed.

    Raises:
        ImportError: RoboOrchardLab is not installed, or cannot be imported.
    """
    global _installation
    made = None
    with _lock:
        installation = _installation or (
            made := _Installation({}, ExitStack())
        )
        _install(installation)
        _installation = installation
    if verbose:
        print(status())
    return _uninstall_on_exit(made)


def uninstall() -> None:
    """Restores the original functions, the very same objects.

    PipelineHooks that were created since `install` keep working. A function
    that other code has patched since `install` is left alone, with a warning.
    """
    global _installation
    with _lock:
        if _installation is not None:
            installation, _installation = _installation, None
            installation.undo.close()


@dataclass(frozen=True)
class Status:
    """What is replaced in RoboOrchardLab; print it to read it."""

    installed: bool
    """Whether `install` is in effect."""

    names: Mapping[str, str]
    """The state of each function of RoboOrchardLab: "replaced"; "original",
    with the reason if it was left alone; or "patched by others since"."""

    versions: Mapping[str, str | None]
    """The versions of both packages; None for one that is not installed."""

    extension: str
    """The file that the compiled dispatch was loaded from."""

    @property
    def support(self) -> str:
        """Whether this version of RoboOrchardLab is supported and tested."""
        found = self.versions[PACKAGE]
        if found is None:
            return "not installed"
        # Without the local label of a private build, as in 0.5.0+abc123.
        return _TESTED.get(
            found.partition("+")[0],
            f"not one of the tested versions ({', '.join(_TESTED)}); what "
            "differs from them is left alone",
        )

    def __str__(self) -> str:
        this, lab = (
            f"{package} {number or '(not installed)'}"
            for package, number in self.versions.items()
        )
        lines = [
            f"{this} is {'' if self.installed else 'not '}active in {lab}",
            f"  compiled extension: {self.extension}",
        ]
        if self.versions[PACKAGE]:
            lines.append(f"  {lab}: {self.support}")
            prefix = f"{PACKAGE}."
            width = max(map(len, self.names)) - len(prefix)
            for name, state in self.names.items():
                lines.append(
                    f"  {name.removeprefix(prefix):<{width}}  {state}"
                )
        return "\n".join(lines)


def status() -> Status:
    """Reports what is replaced, without importing anything.

    Returns:
        Status: The state of each function, and the versions.
    """
    if _installation is None:
        names = {patch.name: "original" for patch in patches()}
    else:
        names = {
            name: f"original: {found}"
            if isinstance(found, str)
            else found.state
            for name, found in _installation.names.items()
        }
    packages = ("robo_orchard_fasthooks", PACKAGE)
    return Status(
        installed=_installation is not None,
        names=MappingProxyType(names),
        versions=MappingProxyType({name: _version(name) for name in packages}),
        extension=_dispatch.__file__,
    )


@dataclass
class _Installation:
    names: dict[str, AppliedPatch | str]
    """What was replaced, or why it was left alone."""
    undo: ExitStack


_installation: _Installation | None = None
_lock = RLock()
# A fork waits, so that the child has either all patches or none.
os.register_at_fork(
    before=_lock.acquire,
    after_in_parent=_lock.release,
    after_in_child=_lock.release,
)


@contextmanager
def _uninstall_on_exit(installation: _Installation | None) -> Iterator[None]:
    try:
        yield
    finally:
        if installation is not None and installation is _installation:
            uninstall()


def _install(installation: _Installation) -> None:
    names = dict(installation.names)
    try:
        import_module(PACKAGE)
        # All of them before the first patch: a module that is imported later
        # could import a replacement from another, and keep it.
        for module in MODULES:
            with suppress(ModuleNotFoundError):  # Its patches report it.
                import_module(module)
        with ExitStack() as undo:
            for patch in patches():
                found = names.get(patch.name, "")
                # Another call finds what a reload restored.
                if isinstance(found, str) or found.state == "original":
                    try:
                        names[patch.name] = patch.replace(undo)
                    except PatchError as change:
                        names[patch.name] = str(change)
            _warn_of_left_alone(names, installation.names)
            installation.undo.enter_context(undo.pop_all())
            installation.names = names
    except ImportError as error:
        if error.name == PACKAGE:
            raise ImportError(
                "RoboOrchardLab, which install() accelerates, is not "
                "installed: pip install robo_orchard_lab",
                name=PACKAGE,
            ) from None
        raise ImportError(
            f"RoboOrchardLab {_version(PACKAGE)} cannot be imported: {error}",
            name=error.name,
        ) from error


def _warn_of_left_alone(
    names: dict[str, AppliedPatch | str], before: dict[str, AppliedPatch | str]
) -> None:
    reasons = [
        f"{name}: {found}"
        for name, found in names.items()
        if isinstance(found, str) and found != before.get(name)
    ]
    if reasons:
        warnings.warn(
            f"RoboOrchardLab {_version(PACKAGE)} differs from the versions "
            "that robo_orchard_fasthooks supports. These functions are left "
            f"alone: {'; '.join(reasons)}. Everything else is accelerated",
            stacklevel=4,
        )


def _version(package: str) -> str | None:
    # What is imported may be a source tree beside an installed release.
    imported = getattr(sys.modules.get(package), "__version__", None)
    with suppress(PackageNotFoundError):
        return imported or version(package)
    return None
