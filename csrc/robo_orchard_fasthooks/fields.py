"""The fields of PipelineHookArgs, from which setup.py generates its source.

In the order of RoboOrchardLab 0.2, fields of later releases last. Docstrings
and the types that type checkers see are in the stub, `_args.pyi`.
"""

import ast
from pathlib import Path

REQUIRED = object()

# Name, type as RoboOrchardLab annotates it, default.
FIELDS = [
    ("accelerator", "Accelerator", REQUIRED),
    ("epoch_id", "int", 0),
    ("step_id", "int", 0),
    ("global_step_id", "int", 0),
    ("max_epoch", "Optional[int]", None),
    ("max_step", "Optional[int]", None),
    ("start_epoch", "int", 0),
    ("start_step", "int", 0),
    ("dataloader", "Optional[Iterable]", None),
    ("optimizer", "Optional[AcceleratedOptimizer]", None),
    ("lr_scheduler", "Optional[AcceleratedScheduler]", None),
    ("batch", "Optional[Any]", None),
    ("model_outputs", "Optional[ModelOutput]", None),
    ("reduce_loss", "Optional[torch.Tensor]", None),
    ("model", "Optional[torch.nn.Module]", None),
    ("exception", "Optional[BaseException]", None),
]

SIGNATURE = ", ".join(
    name if default is REQUIRED else f"{name}={default}"
    for name, _, default in FIELDS
)

_ROOT = Path(__file__).parents[2]
_STUB = (_ROOT / "src/robo_orchard_fasthooks/_args.pyi").read_text()
DOCSTRINGS = {
    node.name: ast.get_docstring(node)
    for node in ast.walk(ast.parse(_STUB))
    if isinstance(node, ast.ClassDef | ast.FunctionDef)
}
