"""What cachegrind runs for `gate.py`; on its own it measures nothing."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import workloads

PY_TPFLAGS_HEAPTYPE = 1 << 9


def dispatch() -> None:
    """Hooks and arguments, in a process that does not import torch."""
    _stand_in_for_torch()
    from robo_orchard_fasthooks.testing import run_counted

    libraries = workloads.upstream(), workloads.ours()
    (hook,) = workloads.from_callable(1)
    classes = {
        base
        for library in libraries
        for each in (library.hooks, library.args, type(hook))
        for base in each.__mro__
        if base.__flags__ & PY_TPFLAGS_HEAPTYPE
    }
    for _ in range(3):
        # New version tags. Where two collide in CPython's method cache, which
        # depends on all that was allocated before, 10 % are added.
        for cls in classes:
            cls.__module__ = cls.__module__
        for workload in workloads.DISPATCH:
            for library in libraries:
                name = f"{library.name} {workload.name}"
                run_counted(name, workload.make(library), (100, 500))


def with_torch() -> None:
    """Clipping by hooks, on one thread, and RoboOrchardLab in place."""
    import torch

    import clipping
    from robo_orchard_fasthooks.testing import run_counted

    torch.set_num_threads(1)
    # In this order: installed_05 takes back what installed has replaced.
    for workload, *makes in (
        (workloads.LAB_STEP, workloads.upstream, workloads.installed),
        (workloads.LAB_05_STEP, workloads.upstream_05, workloads.installed_05),
    ):
        libraries = [make() for make in makes]
        for name, library in zip(("upstream", "ours"), libraries, strict=True):
            run = workload.make(library)
            run_counted(f"{name} {workload.name}", run, (100, 500))
    for case, side in clipping.COUNTED:
        title = f"clipping, {case.title}" + f", {side}" * (case.mode == "norm")
        for name, library in clipping.LIBRARIES.items():
            run = clipping.repeated(library, case, side)
            run_counted(f"{name} {title}", run, (2, 5))


class _StandIn(ModuleType):
    """For a module of which the hooks need no more than names."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


class _Anything:
    def __class_getitem__(cls, item: Any) -> type:
        return cls


def _stand_in_for_torch() -> None:
    for name in (
        "torch",
        "accelerate",
        "accelerate.optimizer",
        "accelerate.scheduler",
        "robo_orchard_core.utils.config",
    ):
        sys.modules[name] = _StandIn(name)
    # Its __init__ imports the clipping functions.
    package = find_spec("robo_orchard_fasthooks")
    assert package is not None and package.submodule_search_locations
    stand_in = sys.modules[package.name] = ModuleType(package.name)
    stand_in.__path__ = package.submodule_search_locations


if __name__ == "__main__":
    {"dispatch": dispatch, "torch": with_torch}[sys.argv[1]]()
