"""The types of robo_orchard_core 0.4.0, which has no `py.typed`."""

from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, Literal, ParamSpec, TypeAlias, TypeVar

from pydantic import BaseModel
from typing_extensions import Self

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)
_CallableType = TypeVar("_CallableType", bound=Callable[..., Any])
_P = ParamSpec("_P")
_R = TypeVar("_R")
_Format: TypeAlias = Literal["json", "toml", "yaml"]

class RemoveableHandle(Generic[_CallableType]):
    hook: _CallableType | None
    def __init__(self, hook: _CallableType) -> None: ...
    def remove(self) -> None: ...
    # With the callable's own parameters; robo_orchard_core declares any.
    def __call__(
        self: RemoveableHandle[Callable[_P, _R]],
        *args: _P.args,
        **kwds: _P.kwargs,
    ) -> _R: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: object, exc_val: object, exc_tb: object
    ) -> None: ...

class HookContext(Generic[_T], metaclass=ABCMeta):
    name: str | None
    def __init__(self, name: str | None = None) -> None: ...
    @property
    def before_info(self) -> Any: ...
    @property
    def after_info(self) -> Any: ...
    @abstractmethod
    def before(self, arg: _T, /) -> None: ...
    @abstractmethod
    def after(self, arg: _T, /) -> None: ...
    @contextmanager
    def begin(self, arg: _T) -> Generator[_T, Any, None]: ...
    @staticmethod
    def from_callable(
        name: str | None = None,
        before: Callable[[_T], None] | None = None,
        after: Callable[[_T], None] | None = None,
    ) -> HookContext[_T]: ...

class HookContextChannel(Generic[_T]):
    name: str
    def __init__(self, name: str) -> None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, item: int) -> HookContext[_T]: ...
    def register(
        self, hook: HookContext[_T]
    ) -> RemoveableHandle[Callable[[], None]]: ...
    def register_hook_channel(
        self, channel: HookContextChannel[_T]
    ) -> RemoveableHandle[Callable[[], None]]: ...
    def __iadd__(
        self, other: HookContextChannel[_T] | HookContext[_T]
    ) -> Self: ...
    def unregister_all(self) -> None: ...
    def begin(self, arg: _T) -> AbstractContextManager[_T]: ...

class ClassInitFromConfigMixin:
    InitFromConfig: bool

ClassType: TypeAlias = type[_T]
"""The type of a config field that holds a class."""

class ClassConfig(BaseModel, Generic[_T_co]):
    class_type: ClassType[_T_co]
    def __post_init__(self) -> None: ...
    def model_post_init(self, *args: Any, **kwargs: Any) -> None: ...
    def to_dict(
        self,
        mode: Literal["python", "json"] = "python",
        exclude_unset: bool = False,
        exclude_defaults: bool = False,
        exclude_none: bool = False,
        include_config_type: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]: ...
    def to_str(
        self,
        format: _Format = "json",
        exclude_unset: bool = False,
        exclude_defaults: bool = False,
        exclude_none: bool = False,
        include_config_type: bool = True,
        round_trip: bool = False,
        **kwargs: Any,
    ) -> str: ...
    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self: ...
    @classmethod
    def from_str(
        cls, data: str, format: _Format = "json", **kwargs: Any
    ) -> Self: ...
    def copy(self) -> Self: ...  # type: ignore[override]
    def replace(self, **kwargs: Any) -> Self: ...
    def content_equal(self, other: Self) -> bool: ...
    def __call__(self, *args: Any, **kwargs: Any) -> _T_co: ...
    def create_instance_by_kwargs(
        self, *args: Any, **kwargs: Any
    ) -> _T_co: ...
    def create_instance_by_cfg(self, *args: Any, **kwargs: Any) -> _T_co: ...
