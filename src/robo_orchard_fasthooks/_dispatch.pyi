"""Compiled hook dispatch: channels, scopes and handles."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Generic, TypeVar, final

from typing_extensions import disjoint_base

from robo_orchard_fasthooks import _core as core
from robo_orchard_fasthooks._record import Recorder

T = TypeVar("T")
CallableType = TypeVar("CallableType", bound=Callable[..., Any])
_F = TypeVar("_F", bound=Callable[..., Any])

@disjoint_base
class Registrations(Generic[T]):
    """The hooks of a channel, in the order of their registration."""

    @property
    def _context_handlers(self) -> tuple[core.HookContext[T], ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, item: int, /) -> core.HookContext[T]: ...
    def begin(self, arg: T) -> Scope[T]:
        """Returns a context manager that runs the hooks around a body.

        Args:
            arg: The object that every hook is called with, and that `with`
                yields.

        Returns:
            Scope: A context manager that can be entered once, or a decorator.
                No hook runs before it is entered.
        """

    def register(
        self, hook: core.HookContext[T]
    ) -> RemoveableHandle[Callable[[], None]]:
        """Registers a hook at the end of the channel.

        Args:
            hook (HookContext): The hook, or any hashable object that has
                callable `before` and `after`. If an equal hook is registered,
                that one stays, at its position.

        Returns:
            RemoveableHandle: Calling it, calling its `remove` method, or
                leaving it as a context manager unregisters the hook.

        Raises:
            TypeError: The object is not a hook, or is not hashable.
        """

    def register_hook_channel(
        self, channel: core.HookContextChannel[T]
    ) -> RemoveableHandle[Callable[[], None]]:
        """Registers the hooks of another channel, in their order.

        If an error is raised, none of them has been registered.

        Args:
            channel (HookContextChannel): The other channel.

        Returns:
            RemoveableHandle: Calling it, calling its `remove` method, or
                leaving it as a context manager unregisters all of them.

        Raises:
            ValueError: The channels have different names.
            TypeError: An object in the other channel is not a hook, or is not
                hashable.
        """

    def unregister_all(self) -> None:
        """Unregisters all hooks."""

class HookContextChannel(Registrations[T], core.HookContextChannel[T]):
    """An ordered set of hooks that run around a part of the training loop.

    Args:
        name (str): The name of the channel.
    """

    name: str
    def __init__(self, name: str) -> None: ...

class LabChannel(HookContextChannel[T]):
    """The channel of RoboOrchardLab's own PipelineHooks after `lab.install()`.

    It replaces robo_orchard_core's channel. A pickled LabChannel is loaded as
    robo_orchard_core's channel, for which this package need not be installed.
    """

    def __copy__(self) -> LabChannel[T]: ...
    def __deepcopy__(self, memo: dict[int, Any]) -> LabChannel[T]: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

@final
class Scope(Generic[T]):
    """The context manager, or decorator, that `begin` returns."""

    def __enter__(self) -> T: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def __call__(self, function: _F) -> _F: ...

class RemoveableHandle(core.RemoveableHandle[CallableType]):
    """Unregisters what was registered.

    Calling the handle unregisters the hook, even if it has been registered
    again since; if it is not registered, nothing happens. `remove()`, and
    leaving the handle as a context manager, do the same and disable the
    handle.

    Args:
        hook (Callable): The function that unregisters.
    """

    def remove(self) -> None:
        """Unregisters the hook; calling the handle then raises RuntimeError.

        Calling `remove` again does nothing.
        """

def begin(self: Any, channel: str, arg: T) -> Scope[T]:
    """Returns a context manager that runs a channel's hooks around a body.

    The `before` callbacks run first, then the body of the `with` statement,
    then the `after` callbacks, which run also if a `before` or the body
    raises. Both run in the order in which the hooks were registered.

    While the `after` callbacks run, `arg.exception` is the exception that a
    `before` or the body raised, or None. Afterwards it is restored.

    Args:
        self (PipelineHooks): The hooks.
        channel (PipelineHookChanelType): The name of the channel.
        arg (PipelineHookArgs): The object that every hook is called with, and
            that `with` yields.

    Returns:
        AbstractContextManager: It can be entered once, or used as a decorator.
            No hook runs before it is entered.

    Raises:
        KeyError: The channel does not exist.
    """

def in_place(
    state: Mapping[str, Any], publishes_exception: bool
) -> LabChannel[Any]:
    """Returns a LabChannel in place of a channel of robo_orchard_core.

    Args:
        state (dict): The attributes of the channel to replace.
        publishes_exception (bool): Whether a scope whose body raises sets
            `arg.exception` and leaves it set, as in RoboOrchardLab 0.5 and
            later.

    Returns:
        LabChannel: A channel with the same name and hooks.
    """

def recorder_of(channel: Registrations[Any]) -> Recorder | None:
    """Returns the recorder that times a channel, or None."""

def set_recorder(
    channel: Registrations[Any], recorder: Recorder | None
) -> None:
    """Sets the recorder that times a channel; None stops timing.

    A scope is timed if it is entered and left during one recording, the time
    from setting a recorder to setting another one or None.
    """

def find_channel(hooks: Any, name: str) -> HookContextChannel[Any]:
    """Returns a channel of PipelineHooks by its name.

    Args:
        hooks (PipelineHooks): The hooks.
        name (str): The name of the channel.

    Returns:
        HookContextChannel: The channel.

    Raises:
        AttributeError: The `__init__` of `hooks` did not call that of
            PipelineHooks.
        KeyError: The channel does not exist. The message lists the channels.
    """

def check_merge(
    channel: core.HookContextChannel[T], other: core.HookContextChannel[T]
) -> None:
    """Raises the error that merging two channels would raise, if any.

    Args:
        channel (HookContextChannel): The channel to register the hooks on, of
            this package, of robo_orchard_core, or with the same interface.
        other (HookContextChannel): The channel that has the hooks.

    Raises:
        ValueError: The channels have different names.
        TypeError: An object in `other` is not a hook, or is not hashable.
    """

def running_phases(
    arg: object,
) -> list[
    tuple[HookContextChannel[Any], tuple[core.HookContext[Any], ...], int]
]:
    """Finds the phases that are running on an argument.

    No record of them is kept, which would cost each scope time. Instead, this
    searches all objects that the garbage collector tracks: 50 ms for 170,000.

    Args:
        arg (PipelineHookArgs): The argument that hooks are called with.

    Returns:
        list[tuple]: For each phase its channel, its hooks, and the position
            of the hook that is running.
    """

__test__: dict[str, str]
