"""The fields of PipelineHookArgs, from which setup.py generates its source.

The order is that of RoboOrchardLab 0.2; fields that later releases added
follow. A field that is added here has to be added by hand only to the types in
`_args.pyi`, which stubtest compares, and to the expectations in
`tests/hooks/test_args.py`.
"""

from typing import Any, NamedTuple


class Field(NamedTuple):
    """One field of PipelineHookArgs."""

    name: str
    annotation: str
    """Its type, as RoboOrchardLab annotates it."""
    default: Any
    type: str
    """Its type, as docstrings write it."""
    doc: str


REQUIRED = object()

FIELDS = [
    Field(
        "accelerator",
        *("Accelerator", REQUIRED, "Accelerator"),
        "The accelerator of the run.",
    ),
    Field(
        "epoch_id",
        *("int", 0, "int"),
        "Epochs completed, from 0.",
    ),
    Field(
        "step_id",
        *("int", 0, "int"),
        "Steps completed in this epoch, from 0.",
    ),
    Field(
        "global_step_id",
        *("int", 0, "int"),
        "Steps completed in all, from 0.",
    ),
    Field(
        "max_epoch",
        *("Optional[int]", None, "int | None"),
        "Epochs to train for, if limited.",
    ),
    Field(
        "max_step",
        *("Optional[int]", None, "int | None"),
        "Steps to train for, if limited.",
    ),
    Field(
        "start_epoch",
        *("int", 0, "int"),
        "Epoch that the run started or resumed at.",
    ),
    Field(
        "start_step",
        *("int", 0, "int"),
        "Step that the run started or resumed at.",
    ),
    Field(
        "dataloader",
        *("Optional[Iterable]", None, "Iterable | None"),
        "The source of the batches.",
    ),
    Field(
        "optimizer",
        *("Optional[AcceleratedOptimizer]", None),
        "torch.optim.Optimizer | None",
        "The prepared optimizer.",
    ),
    Field(
        "lr_scheduler",
        *("Optional[AcceleratedScheduler]", None),
        "AcceleratedScheduler | None",
        "The prepared scheduler.",
    ),
    Field(
        "batch",
        *("Optional[Any]", None, "Any"),
        "The current batch.",
    ),
    Field(
        "model_outputs",
        *("Optional[ModelOutput]", None, "Any"),
        "What the model returned for the batch.",
    ),
    Field(
        "reduce_loss",
        *("Optional[torch.Tensor]", None, "torch.Tensor | None"),
        "The loss, averaged over processes: a scalar.",
    ),
    Field(
        "model",
        *("Optional[torch.nn.Module]", None, "torch.nn.Module | None"),
        "The prepared model.",
    ),
    Field(
        "exception",
        *("Optional[BaseException]", None, "BaseException | None"),
        "While the `after` hooks of a scope run: the exception that the scope "
        "raised, or None.",
    ),
]

SIGNATURE = ", ".join(
    field.name
    if field.default is REQUIRED
    else f"{field.name}={field.default}"
    for field in FIELDS
)
