from collections.abc import Callable
from typing import Any

def why_not_plain(cls: type) -> str | None: ...
def construct_quickly(cls: type) -> None: ...
def construct_as_before(cls: type) -> None: ...
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
