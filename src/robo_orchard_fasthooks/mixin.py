"""Hooks that run around the parts of a training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from inspect import signature
from textwrap import indent
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    Optional,
    Protocol,
    TypeAlias,
    TypeVar,
    get_args,
    get_type_hints,
    runtime_checkable,
)

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from typing_extensions import Self

from robo_orchard_fasthooks import _args, _dispatch
from robo_orchard_fasthooks._args import PipelineHookArgs
from robo_orchard_fasthooks._checks import advice, named
from robo_orchard_fasthooks._core import (
    ClassConfig,
    ClassInitFromConfigMixin,
    ClassType,
    HookContext,
)
from robo_orchard_fasthooks._describe import boxed, describe
from robo_orchard_fasthooks._dispatch import (
    HookContextChannel,
    RemoveableHandle,
    check_merge,
    find_channel,
    undo_merge,
)

__all__ = [
    "ClassType",
    "HookContext",
    "HookContextChannel",
    "ModelOutput",
    "ModelOutputHasLossKeys",
    "PipelineHookArgs",
    "PipelineHookChanelType",
    "PipelineHooks",
    "PipelineHooksConfig",
    "RemoveableHandle",
]


@runtime_checkable
class ModelOutput(Protocol):
    """The output of a model: a mapping from keys to values."""

    def __getitem__(self, key: str, /) -> Any: ...

    def keys(self) -> Iterable[Any]:
        """Returns the keys."""

    def items(self) -> Iterable[tuple[Any, Any]]:
        """Returns pairs of a key and its value."""

    def values(self) -> Iterable[Any]:
        """Returns the values."""


@runtime_checkable
class ModelOutputHasLossKeys(ModelOutput, Protocol):
    """A model output that names the values that are losses."""

    def loss_keys(self) -> Iterable[str]:
        """Returns the keys of the losses."""


# For typing.get_type_hints; the compiled module must not import torch itself.
vars(_args).update(
    Accelerator=Accelerator,
    AcceleratedOptimizer=AcceleratedOptimizer,
    AcceleratedScheduler=AcceleratedScheduler,
    Any=Any,
    Iterable=Iterable,
    ModelOutput=ModelOutput,
    Optional=Optional,
    torch=torch,
)

PipelineHookChanelType: TypeAlias = Literal[
    "on_loop",
    "on_epoch",
    "on_step",
    "on_batch",
    "on_model_forward",
    "on_model_backward",
]
"""The parts of a training loop that hooks can run around, outermost first. The
spelling of the name is RoboOrchardLab's."""


_F = TypeVar("_F", bound=Callable[..., Any])


class _Scope(AbstractContextManager[PipelineHookArgs], Protocol):
    # What a function with @contextmanager returns, as a protocol.
    def __call__(self, function: _F, /) -> _F: ...


# RoboOrchardLab's hooks and configs, which are accepted too, are not
# subclasses of this package's. pydantic checks parameters by isinstance.
@runtime_checkable
class _HooksLike(Protocol):
    @property
    def hooks(self) -> Mapping[Any, Any]: ...
    def register_pipeline_hooks(self, hooks: Any) -> Any: ...


@runtime_checkable
class _HooksConfigLike(Protocol):
    @property
    def class_type(self) -> type[_HooksLike]: ...
    def __call__(self) -> _HooksLike: ...


_HooksOrConfig: TypeAlias = _HooksLike | _HooksConfigLike


class PipelineHooks(ClassInitFromConfigMixin):
    """The hooks of a training loop, in one channel for each part of the loop.

    Args:
        cfg (PipelineHooksConfig | None): The config that these hooks are made
            from. Subclasses read their settings from it.
    """

    hooks: dict[PipelineHookChanelType, HookContextChannel[PipelineHookArgs]]
    """The channels by name. A channel in this dict may be replaced."""

    def __init__(self, cfg: PipelineHooksConfig[Any] | None = None):
        self.hooks = {
            name: HookContextChannel(name)
            for name in get_args(PipelineHookChanelType)
        }

    def begin(
        self, channel: PipelineHookChanelType, arg: PipelineHookArgs
    ) -> _Scope:
        """Returns a context manager that runs a channel's hooks around a body.

        The `before` callbacks run first, then the body of `with`, then the
        `after` callbacks, also if a `before` or the body raises; both in the
        order of registration. While the `after` callbacks run, `arg.exception`
        is the exception that was raised, or None; then it is restored.

        Args:
            channel (PipelineHookChanelType): The name of the channel.
            arg (PipelineHookArgs): Hooks are called with it; `with` yields it.

        Returns:
            AbstractContextManager: Can be entered once, or be a decorator.

        Raises:
            KeyError: The channel does not exist.
        """
        raise NotImplementedError  # The compiled one takes its place.

    if not TYPE_CHECKING:
        _dispatch.begin.__doc__ = begin.__doc__
        _dispatch.begin.__annotations__ = get_type_hints(begin)
        _dispatch.begin.__signature__ = signature(begin, eval_str=True)
        begin = _dispatch.begin

    def register_hook(
        self,
        channel: PipelineHookChanelType,
        hook: HookContext[PipelineHookArgs],
    ) -> RemoveableHandle[Callable[[], None]]:
        """Registers a hook at the end of a channel.

        Args:
            channel (PipelineHookChanelType): The name of the channel.
            hook (HookContext): The hook. If the channel already contains it,
                it keeps its position.

        Returns:
            RemoveableHandle: Calling or leaving it unregisters the hook.

        Raises:
            KeyError: The channel does not exist.
            TypeError: `hook` has no callable `before` and `after`, is a class
                in place of an instance, has a callback that is an async or
                generator function, or is not hashable.
        """
        return find_channel(self, channel).register(hook)

    def register_pipeline_hooks(
        self, hooks: _HooksLike
    ) -> RemoveableHandle[Callable[[], None]]:
        """Registers all hooks of another PipelineHooks, channel by channel.

        A channel of `hooks` that does not exist here is skipped if it is
        empty. If an error is raised, nothing has been registered.

        Args:
            hooks (PipelineHooks): The hooks to register, which may be
                RoboOrchardLab's.

        Returns:
            RemoveableHandle: Calling or leaving it unregisters all of them.

        Raises:
            KeyError: `hooks` has hooks in a channel that does not exist here.
            TypeError: `hooks` is not a PipelineHooks, or one of its channels
                contains an object that is not a hook.
            ValueError: Two channels under the same key have different names.
        """
        if isinstance(hooks, type) or not hasattr(hooks, "hooks"):
            raise TypeError(
                f"Expected PipelineHooks, but got {named(hooks)}"
                + (
                    ", whose __init__ has to call super().__init__()"
                    if _is_pipeline_hooks(hooks)
                    else advice(hooks)
                )
            )
        pairs = []
        for name, other in hooks.hooks.items():
            try:
                pairs.append((find_channel(self, name), other))
            except KeyError:
                # RoboOrchardLab 0.5 creates one channel more than 0.4.
                if len(other):
                    raise
        # Everything is checked before anything is registered.
        added = check_merge(pairs)
        handles: list[Callable[[], None]] = []

        def unregister() -> None:
            for handle in handles:
                handle()

        result = RemoveableHandle(unregister)
        try:
            for channel, other in pairs:
                handles.append(channel.register_hook_channel(other))
        except BaseException:  # Memory can run out.
            undo_merge(pairs, added)
            raise
        return result

    def __iadd__(self, other: _HooksLike) -> Self:
        """Registers all hooks of `other`; see `register_pipeline_hooks`."""
        self.register_pipeline_hooks(other)
        return self

    def unregister_all(self) -> None:
        """Unregisters all hooks from all channels."""
        for channel in self.hooks.values():
            channel.unregister_all()

    @classmethod
    def from_hooks(
        cls, hooks: _HooksOrConfig | Iterable[_HooksOrConfig] | None
    ) -> Self:
        """Combines several PipelineHooks into a new one, in their order.

        Args:
            hooks (PipelineHooks | PipelineHooksConfig | Iterable | None):
                Hooks, a config of hooks, or an iterable of hooks and configs,
                which may be RoboOrchardLab's. None gives a PipelineHooks
                without hooks.

        Returns:
            PipelineHooks: The new hooks, an instance of this class.

        Raises:
            KeyError: An object has hooks in a channel that this class lacks.
            TypeError: An object is neither hooks nor a config of hooks.
        """
        given: Iterable[Any] = () if hooks is None else (hooks,)
        if isinstance(hooks, Iterable) and not (
            isinstance(hooks, ClassConfig) or _is_pipeline_hooks(hooks)
        ):
            given = hooks
        result = cls()
        for position, each in enumerate(given):
            at = "" if each is hooks else f" at position {position}"
            result += _make_hooks(each, at)
        return result

    def describe(self) -> str:
        """Lists the hooks in the order in which they run.

        Returns:
            str: A line for each channel that has hooks, below it for each
                hook, and below that for each callback, with file and line.
        """
        return describe(self.hooks)

    def __repr__(self) -> str:
        shown = "".join(
            "\n" + indent(f"{name}: {channel}, ", "  ")
            for name, channel in self.hooks.items()
            if len(channel)
        )
        content = f"hooks={{{shown}\n}}" if shown else "hooks={}"
        return boxed(type(self), content)


PipelineHooksType_co = TypeVar(
    "PipelineHooksType_co", bound=PipelineHooks, covariant=True
)


class PipelineHooksConfig(ClassConfig[PipelineHooksType_co]):
    """The config of a PipelineHooks: `cfg()` returns `cfg.class_type(cfg)`."""


def _is_pipeline_hooks(given: Any) -> bool:
    # By method, so that RoboOrchardLab's hooks and proxies are accepted.
    return not isinstance(given, type) and hasattr(
        given, "register_pipeline_hooks"
    )


def _make_hooks(given: Any, at: str) -> Any:
    if isinstance(given, ClassConfig):
        makes = given.class_type
        # A class is checked before it is called, as a function cannot be.
        if not isinstance(makes, type) or hasattr(
            makes, "register_pipeline_hooks"
        ):
            given = given()
    if _is_pipeline_hooks(given):
        return given
    raise TypeError(
        "Expected PipelineHooks or PipelineHooksConfig, but got "
        f"{named(given)}{at}{advice(given)}"
    )
