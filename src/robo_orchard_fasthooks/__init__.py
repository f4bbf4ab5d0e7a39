"""Compiled training-loop hooks and gradient clipping for PyTorch.

A drop-in replacement for the hooks of RoboOrchardLab.
"""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING

try:
    from . import _dispatch  # noqa: F401
except ImportError as error:
    if not str(error.name).startswith(__name__):
        raise
    raise ImportError(
        f"{__name__} has no compiled modules for this Python: build them by "
        "`pip install .` in its source folder (`-e` to use it from there)",
        name=error.name,
    ) from error

from . import _dynamo as _dynamo  # It registers what torch.compile needs.
from . import clip, grad_clip, mixin, optimizer
from .clip import *
from .grad_clip import *
from .mixin import *
from .optimizer import *
from .profiler import HookProfiler

__all__ = ["HookProfiler"]
__all__ += clip.__all__
__all__ += grad_clip.__all__
__all__ += mixin.__all__
__all__ += optimizer.__all__

__version__: str

# Type checkers would take any name for one of the module's.
if not TYPE_CHECKING:

    def __getattr__(name):
        # Reading metadata takes a millisecond, so not at each import.
        if name == "__version__":
            return _version(__name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
