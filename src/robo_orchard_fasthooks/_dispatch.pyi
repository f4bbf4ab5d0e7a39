from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar, final

from robo_orchard_core.utils import hook as core
from typing_extensions import disjoint_base

T = TypeVar("T")
CallableType = TypeVar("CallableType", bound=Callable[..., Any])
_F = TypeVar("_F", bound=Callable[..., Any])

@disjoint_base
class Registrations(Generic[T]):
    @property
    def _context_handlers(self) -> tuple[core.HookContext[T], ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, item: int, /) -> core.HookContext[T]: ...
    def begin(self, arg: T) -> Scope[T]: ...
    def register(
        self, hook: core.HookContext[T]
    ) -> RemoveableHandle[Callable[[], None]]: ...
    def register_hook_channel(
        self, channel: core.HookContextChannel[T]
    ) -> RemoveableHandle[Callable[[], None]]: ...
    def unregister_all(self) -> None: ...

class HookContextChannel(Registrations[T], core.HookContextChannel[T]):
    name: str
    def __init__(self, name: str) -> None: ...

@final
class Scope(Generic[T]):
    def __enter__(self) -> T: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def __call__(self, function: _F) -> _F: ...

class RemoveableHandle(core.RemoveableHandle[CallableType]):
    def remove(self) -> None: ...

def begin(self: Any, channel: str, arg: T) -> Scope[T]: ...
def check_hook(hook: object) -> None: ...

__test__: dict[str, str]
