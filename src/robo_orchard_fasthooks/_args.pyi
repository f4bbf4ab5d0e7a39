"""The arguments that hooks are called with."""

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
    """The state of the pipeline that a hook is called with.

    Behaves as the dataclass that it replaces: `dataclasses.fields`, `asdict`
    and `replace`, `repr`, `==`, pickling, `@dataclass` subclasses and extra
    attributes all work. `vars()` is a snapshot: what is written to it is set
    on the arguments, and later changes of them do not show in it.

    Attributes:
        accelerator (Accelerator): The accelerator of the run.
        epoch_id (int): Epochs completed, from 0.
        step_id (int): Steps completed in this epoch, from 0.
        global_step_id (int): Steps completed in all, from 0.
        max_epoch (int | None): Epochs to train for, if limited.
        max_step (int | None): Steps to train for, if limited.
        start_epoch (int): Epoch that the run started or resumed at.
        start_step (int): Step that the run started or resumed at.
        dataloader (Iterable | None): The source of the batches.
        optimizer (torch.optim.Optimizer | None): The prepared optimizer.
        lr_scheduler (AcceleratedScheduler | None): The prepared scheduler.
        batch (Any): The current batch.
        model_outputs (Any): What the model returned for the batch.
        reduce_loss (torch.Tensor | None): The loss, averaged over processes: a
            scalar.
        model (torch.nn.Module | None): The prepared model.
        exception (BaseException | None): While the `after` hooks of a scope
            run: the exception that the scope raised, or None.
    """

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

    def copy_with_updates(self, **kwargs: Any) -> Self:
        """Copies these arguments and sets some attributes of the copy.

        A subclass is copied by calling its constructor with all fields and
        extra attributes as keyword arguments. What else the subclass keeps in
        slots is set on the copy afterwards.

        Args:
            **kwargs: The attributes to set, by name.

        Returns:
            PipelineHookArgs: The copy, of the same class.

        Raises:
            AttributeError: A key is not an attribute.
        """

    def __replace__(self, **changes: Any) -> Self: ...
    def __reduce__(
        self,
    ) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]: ...
    def __getstate__(self) -> dict[str, Any]: ...
    def __setstate__(self, state: Any) -> None: ...
