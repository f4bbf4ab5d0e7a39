"""The names of robo_orchard_core that this package uses; see _core.pyi."""

from robo_orchard_core.utils.config import (
    ClassConfig,
    ClassInitFromConfigMixin,
    ClassType,
)
from robo_orchard_core.utils.hook import (
    HookContext,
    HookContextChannel,
    RemoveableHandle,
)

__all__ = [
    "ClassConfig",
    "ClassInitFromConfigMixin",
    "ClassType",
    "HookContext",
    "HookContextChannel",
    "RemoveableHandle",
]
