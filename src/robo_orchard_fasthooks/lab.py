"""An installed RoboOrchardLab, accelerated in place."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    suppress,
)
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from threading import RLock
from types import MappingProxyType
from typing import Any

from robo_orchard_core.utils.hook import HookContextChannel
from torch import Tensor

from robo_orchard_fasthooks import _dispatch, _fast_dataclass
from robo_orchard_fasthooks._clipping.step import (
    ClipSettings,
    clip_at_step,
    clip_gradients,
)
from robo_orchard_fasthooks._lab.patching import (
    AppliedPatch,
    Patch,
    PatchError,
    check_home,
)
from robo_orchard_fasthooks.mixin import PipelineHooks

__all__ = ["Status", "install", "status", "uninstall"]

_LAB = "robo_orchard_lab"
_MIXIN = f"{_LAB}.pipeline.hooks.mixin"
_GRAD_CLIP = f"{_LAB}.pipeline.hooks.grad_clip"
_TRAINER = f"{_LAB}.pipeline.training.hook_based_trainer"


def install(verbose: bool = False) -> AbstractContextManager[None]:
    """Accelerates RoboOrchardLab's own classes, which stay what they are.

    PipelineHooks that are made from now on, of whatever subclass, dispatch
    through compiled channels; hooks and configs of this package are taken
    wherever RoboOrchardLab's are; GradientClippingHook clips as ours does.
    PipelineHooks that were made before keep the channels that they have.
    Pickles, checkpoints and configs load without this package.

    It holds in this process, and in those forked from it. A process that is
    spawned has to install for itself.

    A name of RoboOrchardLab that is not where 0.4 or 0.5 has it, or is patched
    by others, is left alone; one warning lists them. What is patched later
    counts, but for robo_orchard_core's HookContextChannel.

    Args:
        verbose (bool): Whether to print `status()`.

    Returns:
        AbstractContextManager: Leaving it uninstalls, unless it was installed
            before or has been installed anew.

    Raises:
        ImportError: RoboOrchardLab is not there, or cannot be imported.
    """
    global _installation
    made = None
    with _lock:
        if _installation is None:
            made = _installation = _install()
    leaving = _leaving(made)
    if verbose:
        try:
            print(status())
        except BaseException:
            with leaving:
                raise
    return leaving


def uninstall() -> None:
    """Puts back what `install` has replaced, the very same objects.

    PipelineHooks that were made in between go on working. What others have
    patched since is left to them, with a warning.
    """
    global _installation
    with _lock:
        if _installation is not None:
            installation, _installation = _installation, None
            installation.undo.close()


@dataclass(frozen=True)
class Status:
    """What is replaced in RoboOrchardLab; it reads well in print."""

    installed: bool
    """Whether `install` is on."""

    names: Mapping[str, str]
    """For each name of RoboOrchardLab: "replaced"; "original", with the reason
    if it was left alone; or "patched by others since"."""

    versions: Mapping[str, str | None]
    """The versions of both packages, None for one that is not there."""

    extension: str
    """The file that the compiled dispatch was loaded from."""

    def __str__(self) -> str:
        ours, lab = (
            f"{package} {number or '(not there)'}"
            for package, number in self.versions.items()
        )
        on = "" if self.installed else "not "
        names = {
            name.removeprefix(f"{_LAB}."): state
            for name, state in self.names.items()
            if self.versions[_LAB]
        }
        width = max(map(len, names), default=0)
        return "\n".join(
            [
                f"{ours} is {on}installed in {lab}",
                f"  compiled extension: {self.extension}",
                *(f"  {name:<{width}}  {names[name]}" for name in names),
            ]
        )


def status() -> Status:
    """Tells what is replaced. It imports nothing.

    Returns:
        Status: To be printed or asked.
    """
    if _installation is None:
        names = {patch.name: "original" for patch in _patches()}
    else:
        names = {
            name: f"original: {found}"
            if isinstance(found, str)
            else "replaced"
            if found.stands
            else "patched by others since"
            for name, found in _installation.names.items()
        }
    packages = ("robo_orchard_fasthooks", _LAB)
    return Status(
        installed=_installation is not None,
        names=MappingProxyType(names),
        versions=MappingProxyType({name: _version(name) for name in packages}),
        extension=_dispatch.__file__,
    )


@dataclass(frozen=True)
class _Installation:
    names: dict[str, AppliedPatch | str]
    """What was replaced, or why it was left alone."""

    undo: ExitStack


_installation: _Installation | None = None
_lock = RLock()


@contextmanager
def _leaving(installation: _Installation | None) -> Iterator[None]:
    try:
        yield
    finally:
        if installation is not None and installation is _installation:
            uninstall()


def _install() -> _Installation:
    names: dict[str, AppliedPatch | str] = {}
    try:
        import_module(_LAB)
        # All of them before anything is replaced, which they may import.
        for module in (_MIXIN, _GRAD_CLIP, _TRAINER):
            with suppress(ModuleNotFoundError):  # The patches will say.
                import_module(module)
        with ExitStack() as undo:
            for patch in _patches():
                try:
                    names[patch.name] = patch.replace(undo)
                except PatchError as change:
                    names[patch.name] = str(change)
            _warn_of({k: v for k, v in names.items() if isinstance(v, str)})
            return _Installation(names, undo.pop_all())
    except ImportError as error:
        if error.name == _LAB:
            raise ImportError(
                "RoboOrchardLab, which install() accelerates, is not "
                "installed: pip install robo_orchard_lab",
                name=_LAB,
            ) from None
        raise ImportError(
            f"RoboOrchardLab {_version(_LAB)} cannot be imported: {error}",
            name=error.name,
        ) from error


def _warn_of(left_alone: dict[str, str]) -> None:
    if left_alone:
        reasons = "; ".join(f"{k}: {v}" for k, v in left_alone.items())
        warnings.warn(
            f"RoboOrchardLab {_version(_LAB)} is not quite the one that "
            "robo_orchard_fasthooks knows, so these stay as they are: "
            f"{reasons}. All else is accelerated",
            stacklevel=4,
        )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return getattr(sys.modules.get(package), "__version__", None)


def _patches() -> list[Patch]:
    def ours(method: str, parameters: str) -> Patch:
        replacement = vars(PipelineHooks)[method]
        path = f"PipelineHooks.{method}"
        return Patch(_MIXIN, path, lambda *_: replacement, parameters)

    return [
        Patch(_MIXIN, "PipelineHooks.__init__", _compiled_channels),
        ours("begin", "self, channel, arg"),
        ours("register_hook", "self, channel, hook"),
        ours("register_pipeline_hooks", "self, hooks"),
        ours("from_hooks", "cls, hooks"),
        _Construction(_MIXIN, "PipelineHookArgs.__init__", _if_plain),
        Patch(
            _MIXIN,
            "PipelineHookArgs.copy_with_updates",
            _quick_copy,
            "self, **kwargs",
        ),
        *_clipping_patches(),
    ]


def _compiled_channels(owner: Any, original: Any) -> Any:
    for method in vars(HookContextChannel).values():
        if callable(method):
            check_home(method, HookContextChannel.__module__)
    args = getattr(sys.modules[_MIXIN], "PipelineHookArgs", None)
    publishes_exception = "exception" in getattr(
        args, "__dataclass_fields__", ()
    )

    @wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, *args, **kwargs)
        if isinstance(self.hooks, dict):
            for name, channel in self.hooks.items():
                # One that is not empty has handles, which would lose it.
                if type(channel) is HookContextChannel and not len(channel):
                    self.hooks[name] = _dispatch.in_place(
                        vars(channel), publishes_exception
                    )

    return __init__


def _if_plain(cls: Any, original: Any) -> Any:
    reason = _fast_dataclass.unsupported_reason(cls)
    if reason is not None:
        raise PatchError(f"{cls.__name__} is not a plain dataclass: {reason}")
    return original


def _quick_copy(cls: Any, original: Any) -> Any:
    return _fast_dataclass.copying(cls, _if_plain(cls, original))


class _Construction(Patch):
    """Makes calls of a class quick: its `__init__` stays, but is not run."""

    def replace(self, undo: ExitStack) -> AppliedPatch:
        replaced = super().replace(undo)
        undo.callback(_fast_dataclass.disable, replaced.owner)
        _fast_dataclass.enable(replaced.owner)
        return replaced


def _clipping_patches() -> list[Patch]:
    function = "_clip_optimizer_gradients"
    if hasattr(sys.modules.get(_GRAD_CLIP), function):  # From 0.5 on.
        parameters = ", ".join(signature(_clip_optimizer_gradients).parameters)
        return [
            Patch(
                module,
                function,
                lambda *_: _clip_optimizer_gradients,
                parameters,
            )
            for module in (_GRAD_CLIP, _TRAINER)
        ]
    return [
        Patch(
            _GRAD_CLIP,
            "GradientClippingHook._gradient_clipping",
            lambda *_: _gradient_clipping,
            "self, hook_args",
        )
    ]


def _gradient_clipping(self: Any, hook_args: Any) -> None:
    """Clips the gradients, as robo_orchard_fasthooks does."""
    # Others are taken for "do not clip" there, and may be set to say so.
    if self.clip_mode in ("norm", "value"):
        clip_at_step(self, hook_args)


def _clip_optimizer_gradients(
    accelerator: Any,
    optimizer: Any,
    clip_mode: str,
    clip_value: float | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
) -> Tensor | None:
    """Clips the gradients, as robo_orchard_fasthooks does."""
    settings = ClipSettings(clip_mode, clip_value, max_norm, norm_type)
    return clip_gradients(settings, accelerator, optimizer)
