from collections.abc import Callable
from typing import Any

def unsupported_reason(cls: type) -> str | None: ...
def enable(cls: type) -> None: ...
def disable(cls: type) -> None: ...
def copying(original: Callable[..., Any]) -> Callable[..., Any]: ...
def copy_with_updates(
    self: Any,
    *,
    batch: Any = ...,
    model_outputs: Any = ...,
    reduce_loss: Any = ...,
    **kwargs: Any,
) -> Any: ...

__test__: dict[str, str]
