"""RoboOrchardLab 0.4.0 itself, the oracle of every parity test.

Its wheel is unpacked beside the test environment's packages; the whole package
imports far more than its hooks need, so three of its modules are loaded by
file, below empty parent packages.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

VERSION = "0.4.0"
FOLDER = Path(sys.prefix, "upstream")


def _load(name: str) -> ModuleType:
    file = FOLDER.joinpath(*name.split(".")).with_suffix(".py")
    if not file.exists():
        raise FileNotFoundError(
            f"{file} is missing; install the oracle with: pip install "
            f"--no-deps --target {FOLDER} robo_orchard_lab=={VERSION}"
        )
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


for parent in (
    "robo_orchard_lab",
    "robo_orchard_lab.pipeline",
    "robo_orchard_lab.pipeline.hooks",
):
    sys.modules.setdefault(parent, ModuleType(parent)).__path__ = []

mixin = _load("robo_orchard_lab.pipeline.hooks.mixin")
grad_clip = _load("robo_orchard_lab.pipeline.hooks.grad_clip")
optimizer = _load("robo_orchard_lab.pipeline.hooks.optimizer")
