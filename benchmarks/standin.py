"""RoboOrchardLab 0.5, as the stand-in in lab_standin has it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

from robo_orchard_core.utils.hook import HookContextChannel, RemoveableHandle

FOLDER = Path(__file__).with_name("lab_standin")
PACKAGE = "robo_orchard_lab"
MIXIN = f"{PACKAGE}.pipeline.hooks.mixin"
GRAD_CLIP = f"{PACKAGE}.pipeline.hooks.grad_clip"
OPTIMIZER = f"{PACKAGE}.pipeline.hooks.optimizer"
TRAINER = f"{PACKAGE}.pipeline.training.hook_based_trainer"
STEP_PROCESSOR = f"{PACKAGE}.processing.step_processor.pipeline_step"


@contextmanager
def importable() -> Iterator[None]:
    """Has `import robo_orchard_lab` find the stand-in, not yet imported."""
    real = _taken_out()
    sys.path.insert(0, str(FOLDER))
    try:
        yield
    finally:
        sys.path.remove(str(FOLDER))
        _taken_out()
        sys.modules.update(real)


@contextmanager
def imported() -> Iterator[SimpleNamespace]:
    """Its public names, and its modules, imported anew."""
    with importable():
        mixin, grad_clip, optimizer, trainer, processor = map(
            import_module,
            (MIXIN, GRAD_CLIP, OPTIMIZER, TRAINER, STEP_PROCESSOR),
        )
        yield SimpleNamespace(
            **{
                name: getattr(module, name)
                for module in (mixin, grad_clip, optimizer, trainer)
                for name in module.__all__
            },
            HookContextChannel=HookContextChannel,
            RemoveableHandle=RemoveableHandle,
            StepProcessorFromCallable=processor.StepProcessorFromCallable,
            mixin=mixin,
            grad_clip=grad_clip,
            optimizer=optimizer,
            trainer=trainer,
        )


def _taken_out() -> dict:
    names = [name for name in sys.modules if name.split(".")[0] == PACKAGE]
    return {name: sys.modules.pop(name) for name in names}
