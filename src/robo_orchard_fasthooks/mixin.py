"""Hooks around the pieces of a training loop."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
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
    runtime_checkable,
)
from weakref import WeakSet

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from robo_orchard_core.utils.config import (
    ClassConfig,
    ClassInitFromConfigMixin,
    ClassType,
)
from robo_orchard_core.utils.hook import HookContext

from robo_orchard_fasthooks import _args, _dispatch
from robo_orchard_fasthooks._args import PipelineHookArgs
from robo_orchard_fasthooks._describe import describe
from robo_orchard_fasthooks._dispatch import (
    HookContextChannel,
    RemoveableHandle,
    check_merge,
    find_channel,
)

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

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
    """What a model may return: values by key."""

    def __getitem__(self, key: str) -> Any: ...

    def keys(self) -> Iterable[Any]:
        """The keys."""

    def items(self) -> Iterable[tuple[Any, Any]]:
        """The keys with their values."""

    def values(self) -> Iterable[Any]:
        """The values."""


@runtime_checkable
class ModelOutputHasLossKeys(ModelOutput, Protocol):
    """A model output that says which of its values are losses."""

    def loss_keys(self) -> Iterable[str]:
        """The keys of the losses."""


# Where typing.get_type_hints looks up the annotations of PipelineHookArgs,
# which is compiled without torch.
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
"""The pieces of a training loop that hooks can run around, outermost first."""


if TYPE_CHECKING:
    _F = TypeVar("_F", bound=Callable[..., Any])

    class _Scope(Protocol):
        """A context manager that decorates too, as @contextmanager's do."""

        def __enter__(self) -> PipelineHookArgs: ...
        def __exit__(
            self,
            exc_type: type[BaseException] | None,
            exc_value: BaseException | None,
            traceback: TracebackType | None,
        ) -> bool | None: ...
        def __call__(self, function: _F, /) -> _F: ...


class PipelineHooks(ClassInitFromConfigMixin):
    """The hooks of a training loop, in one channel for each piece of it.

    Args:
        cfg (PipelineHooksConfig | None): The config that makes these hooks.
            Subclasses read their settings from it.
    """

    hooks: dict[PipelineHookChanelType, HookContextChannel[PipelineHookArgs]]
    """The channels by name: a plain dict, whose channels may be replaced."""

    def __init__(self, cfg: PipelineHooksConfig[Any] | None = None):
        self.hooks = {
            name: HookContextChannel(name)
            for name in get_args(PipelineHookChanelType)
        }

    if TYPE_CHECKING:

        def begin(
            self, channel: PipelineHookChanelType, arg: PipelineHookArgs
        ) -> _Scope:
            """Opens a scope."""

    else:
        begin = _dispatch.begin

    def register_hook(
        self,
        channel: PipelineHookChanelType,
        hook: HookContext[PipelineHookArgs],
    ) -> RemoveableHandle[Callable[[], None]]:
        """Adds a hook to a channel, after those that are there.

        Args:
            channel (PipelineHookChanelType): The channel.
            hook (HookContext): The hook. One that is there already keeps its
                place.

        Returns:
            RemoveableHandle: Call it, or its `remove`, to take the hook out.

        Raises:
            KeyError: There is no such channel.
            TypeError: The object has no callable `before` and `after`, or
                cannot be hashed.
        """
        registered = find_channel(self, channel)
        _warn_of_late_clipping(registered, (hook,))
        return registered.register(hook)

    def register_pipeline_hooks(
        self, hooks: PipelineHooks
    ) -> RemoveableHandle[Callable[[], None]]:
        """Adds all hooks of another set of hooks, channel by channel.

        Args:
            hooks (PipelineHooks): The other hooks.

        Returns:
            RemoveableHandle: Call it, or its `remove`, to take them all out.

        Raises:
            KeyError: The other hooks have a channel that these do not have.
            TypeError: They are no PipelineHooks, or hold what is no hook.
            ValueError: The names of two channels differ.
        """
        if isinstance(hooks, type) or not hasattr(hooks, "hooks"):
            raise TypeError(f"Expected PipelineHooks, but got {type(hooks)}")
        pairs = [
            (find_channel(self, name), theirs)
            for name, theirs in hooks.hooks.items()
        ]
        # Everything is checked before anything is registered.
        for mine, theirs in pairs:
            check_merge(mine, theirs)
        for mine, theirs in pairs:
            _warn_of_late_clipping(mine, theirs._context_handlers)
        handles = [
            mine.register_hook_channel(theirs) for mine, theirs in pairs
        ]

        def unregister() -> None:
            for handle in handles:
                handle()

        return RemoveableHandle(unregister)

    def __iadd__(self, other: PipelineHooks) -> Self:
        """Adds all hooks of another set, as `register_pipeline_hooks` does."""
        self.register_pipeline_hooks(other)
        return self

    def unregister_all(self) -> None:
        """Takes all hooks out of all channels."""
        for channel in self.hooks.values():
            channel.unregister_all()

    @classmethod
    def from_hooks(
        cls,
        hooks: (
            PipelineHooks
            | PipelineHooksConfig[Any]
            | Iterable[PipelineHooks | PipelineHooksConfig[Any]]
            | None
        ),
    ) -> Self:
        """Makes one set of hooks out of several, in their order.

        Args:
            hooks (PipelineHooks | PipelineHooksConfig | Iterable | None):
                Hooks, configs that make hooks, or any iterable of them. Those
                of RoboOrchardLab are taken too.

        Returns:
            PipelineHooks: The new set.

        Raises:
            TypeError: Something is neither hooks nor a config of hooks.
        """
        if hooks is None:
            return cls()
        given: Iterable[Any] = (
            [hooks]
            if isinstance(hooks, ClassConfig)
            or _is_pipeline_hooks(hooks)
            or not isinstance(hooks, Iterable)
            else hooks
        )
        made = [_make_hooks(each) for each in given]
        result = cls()
        for each in made:
            result += each
        return result

    def describe(self) -> str:
        """Lists the hooks in the order in which they run.

        Returns:
            str: Each channel that has hooks; under it each hook with its
                position; under that its callbacks with file and line.
        """
        return describe(self.hooks)

    def __repr__(self) -> str:
        shown = "".join(
            "\n" + indent(f"{name}: {channel}, ", "  ")
            for name, channel in self.hooks.items()
            if len(channel)
        )
        content = f"hooks={{{shown}\n}}" if shown else "hooks={}"
        cls = type(self)
        return f"<{cls.__module__}.{cls.__name__}(\n{indent(content, '  ')})>"


PipelineHooksType_co = TypeVar(
    "PipelineHooksType_co", bound=PipelineHooks, covariant=True
)


class PipelineHooksConfig(ClassConfig[PipelineHooksType_co]):
    """What makes hooks: `cfg()` returns `cfg.class_type(cfg)`."""


def _is_pipeline_hooks(given: Any) -> bool:
    # By method, not by class: RoboOrchardLab's hooks are as good, and proxies.
    return not isinstance(given, type) and hasattr(
        given, "register_pipeline_hooks"
    )


def _make_hooks(given: Any) -> Any:
    if isinstance(given, ClassConfig):
        makes = given.class_type
        # A class is checked before it is called; a factory cannot be.
        if not isinstance(makes, type) or hasattr(
            makes, "register_pipeline_hooks"
        ):
            given = given()
    if _is_pipeline_hooks(given):
        return given
    raise TypeError(
        f"Expected PipelineHooks or PipelineHooksConfig, but got {type(given)}"
    )


_warned_of: WeakSet[HookContext] = WeakSet()


def _warn_of_late_clipping(channel: Any, added: Iterable[Any]) -> None:
    """Warns if a hook to add clips gradients after another has stepped."""
    for hook in added:
        if _runs(hook, "GradientClippingHook"):
            break
    else:
        return
    hooks = list(dict.fromkeys((*channel._context_handlers, *added)))
    stepping = [_runs(hook, "OptimizerHook") for hook in hooks]
    if True not in stepping:
        return
    first = stepping.index(True)
    for position in range(max(first, len(channel)), len(hooks)):
        hook = hooks[position]
        if _runs(hook, "GradientClippingHook") and hook not in _warned_of:
            warnings.warn(
                f"GradientClippingHook is at position {position} of "
                f"{channel.name!r}, after OptimizerHook at position {first}: "
                "the optimizer steps on unclipped gradients. Register "
                "GradientClippingHook first (with HookBasedTrainer: pass it "
                "as grad_clip=)",
                stacklevel=_caller(),
            )
            _warned_of.add(hook)


def _runs(hook: Any, name: str) -> bool:
    """Whether a hook calls a method of a class of that name, whoever's."""
    owner = getattr(getattr(hook, "_after", None), "__self__", hook)
    for cls in type(owner).__mro__:
        if cls.__name__ == name:
            return True
    return False


def _caller() -> int:
    """The `stacklevel`, for warnings.warn, of the code that called us.

    RoboOrchardLab's own is not it: with `lab.install` it calls ours.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith(
        (__name__, "robo_orchard_lab.")
    ):
        frame, level = frame.f_back, level + 1
    return level
