from collections.abc import Callable, Iterable
from dataclasses import Field
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from typing_extensions import Self, disjoint_base

@disjoint_base
class PipelineHookArgs:
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    __dataclass_params__: ClassVar[Any]
    __match_args__: ClassVar[tuple[str, ...]]

    accelerator: Accelerator
    epoch_id: int
    step_id: int
    global_step_id: int
    max_epoch: int | None
    max_step: int | None
    start_epoch: int
    start_step: int
    dataloader: Iterable[Any] | None
    optimizer: AcceleratedOptimizer | torch.optim.Optimizer | None
    lr_scheduler: AcceleratedScheduler | None
    batch: Any
    model_outputs: Any
    reduce_loss: torch.Tensor | None
    model: torch.nn.Module | None
    exception: BaseException | None

    def __init__(
        self,
        accelerator: Accelerator,
        epoch_id: int = 0,
        step_id: int = 0,
        global_step_id: int = 0,
        max_epoch: int | None = None,
        max_step: int | None = None,
        start_epoch: int = 0,
        start_step: int = 0,
        dataloader: Iterable[Any] | None = None,
        optimizer: AcceleratedOptimizer | torch.optim.Optimizer | None = None,
        lr_scheduler: AcceleratedScheduler | None = None,
        batch: Any = None,
        model_outputs: Any = None,
        reduce_loss: torch.Tensor | None = None,
        model: torch.nn.Module | None = None,
        exception: BaseException | None = None,
    ) -> None: ...
    def copy_with_updates(self, **kwargs: Any) -> Self: ...
    def __eq__(self, other: object, /) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]
    def __replace__(self, **changes: Any) -> Self: ...
    def __reduce__(
        self,
    ) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]: ...
    def __getstate__(self) -> dict[str, Any]: ...
    def __setstate__(self, state: dict[str, Any]) -> None: ...

__test__: dict[str, str]
