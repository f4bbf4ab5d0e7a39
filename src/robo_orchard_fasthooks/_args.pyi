from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from typing_extensions import Self, disjoint_base

@disjoint_base
@dataclass
class PipelineHookArgs:
    accelerator: Accelerator
    epoch_id: int = 0
    step_id: int = 0
    global_step_id: int = 0
    max_epoch: int | None = None
    max_step: int | None = None
    start_epoch: int = 0
    start_step: int = 0
    dataloader: Iterable[Any] | None = None
    optimizer: AcceleratedOptimizer | torch.optim.Optimizer | None = None
    lr_scheduler: AcceleratedScheduler | None = None
    batch: Any = None
    model_outputs: Any = None
    reduce_loss: torch.Tensor | None = None
    model: torch.nn.Module | None = None
    exception: BaseException | None = None

    def copy_with_updates(self, **kwargs: Any) -> Self: ...
    def __replace__(self, **changes: Any) -> Self: ...
    def __reduce__(
        self,
    ) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]: ...
    def __getstate__(self) -> dict[str, Any]: ...
    def __setstate__(self, state: dict[str, Any]) -> None: ...

__test__: dict[str, str]
