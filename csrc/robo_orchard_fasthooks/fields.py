"""The fields of PipelineHookArgs, from which setup.py generates its source.

The order is that of RoboOrchardLab 0.2; fields that later releases added
follow. The docstrings are those of the stub, `_args.pyi`, which also has the
types that type checkers see.
"""

import ast
from pathlib import Path
from typing import Any, NamedTuple


class Field(NamedTuple):
    """One field of PipelineHookArgs."""

    name: str
    annotation: str
    """Its type, as RoboOrchardLab annotates it."""
    default: Any


REQUIRED = object()

FIELDS = [
    Field("accelerator", "Accelerator", REQUIRED),
    Field("epoch_id", "int", 0),
    Field("step_id", "int", 0),
    Field("global_step_id", "int", 0),
    Field("max_epoch", "Optional[int]", None),
    Field("max_step", "Optional[int]", None),
    Field("start_epoch", "int", 0),
    Field("start_step", "int", 0),
    Field("dataloader", "Optional[Iterable]", None),
    Field("optimizer", "Optional[AcceleratedOptimizer]", None),
    Field("lr_scheduler", "Optional[AcceleratedScheduler]", None),
    Field("batch", "Optional[Any]", None),
    Field("model_outputs", "Optional[ModelOutput]", None),
    Field("reduce_loss", "Optional[torch.Tensor]", None),
    Field("model", "Optional[torch.nn.Module]", None),
    Field("exception", "Optional[BaseException]", None),
]

SIGNATURE = ", ".join(
    field.name
    if field.default is REQUIRED
    else f"{field.name}={field.default}"
    for field in FIELDS
)

_ROOT = Path(__file__).parents[2]
_STUB = (_ROOT / "src/robo_orchard_fasthooks/_args.pyi").read_text()
DOCSTRINGS = {
    node.name: ast.get_docstring(node)
    for node in ast.walk(ast.parse(_STUB))
    if isinstance(node, ast.ClassDef | ast.FunctionDef)
}
