"""RoboOrchardLab 0.4.0 itself, the oracle of every parity test.

Where it is installed, it is imported. Elsewhere its wheel is unpacked beside
the test environment's packages: the whole package imports far more than its
hooks need, so three of its modules are loaded by file, below empty packages.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

VERSION = "0.4.0"
FOLDER = Path(sys.prefix, "upstream")


def load_file(name: str) -> ModuleType:
    """Loads one of its modules from the unpacked wheel."""
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


INSTALLED = importlib.util.find_spec("robo_orchard_lab") is not None
load = importlib.import_module if INSTALLED else load_file

if not INSTALLED:
    for parent in (
        "robo_orchard_lab",
        "robo_orchard_lab.pipeline",
        "robo_orchard_lab.pipeline.hooks",
    ):
        sys.modules.setdefault(parent, ModuleType(parent)).__path__ = []

mixin = load("robo_orchard_lab.pipeline.hooks.mixin")
grad_clip = load("robo_orchard_lab.pipeline.hooks.grad_clip")
optimizer = load("robo_orchard_lab.pipeline.hooks.optimizer")
