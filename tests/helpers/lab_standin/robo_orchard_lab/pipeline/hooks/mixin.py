"""Stand-in: the seven channels and the arguments of 0.5."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from robo_orchard_core.utils.config import (
    ClassConfig,
    ClassInitFromConfigMixin,
)
from robo_orchard_core.utils.hook import HookContextChannel, RemoveableHandle


@dataclass
class PipelineHookArgs:
    accelerator: Any
    step_id: int = 0
    optimizer: Any = None
    lr_scheduler: Any = None
    batch: Any = None
    model_outputs: Any = None
    exception: BaseException | None = None
    micro_step: int = 0
    is_optimizer_step_boundary: bool = False
    is_optimizer_step_committed: bool = False

    @property
    def reduce_loss(self):
        raise RuntimeError("reduce_loss is gone")

    def copy_with_updates(self, **kwargs):
        instance = self.__class__(**self.__dict__)
        for key, value in kwargs.items():
            if not hasattr(instance, key):
                raise AttributeError(f"{key} is not a valid attribute")
            setattr(instance, key, value)
        return instance


PipelineHookChanelType = Literal[
    "on_loop",
    "on_epoch",
    "on_step",
    "on_batch",
    "on_model_forward",
    "on_model_backward",
    "on_optimizer_step",
]


class PipelineHooks(ClassInitFromConfigMixin):
    def __init__(self):
        self.hooks = {
            name: HookContextChannel[PipelineHookArgs](name)
            for name in PipelineHookChanelType.__args__
        }

    @contextmanager
    def begin(self, channel, arg):
        with self.hooks[channel].begin(arg) as context:
            try:
                yield context
            except BaseException as error:
                arg.exception = error
                raise

    def register_hook(self, channel, hook):
        return self.hooks[channel].register(hook)

    def register_pipeline_hooks(self, hooks):
        handles = [
            self.hooks[name].register_hook_channel(channel)
            for name, channel in hooks.hooks.items()
        ]
        return RemoveableHandle(lambda: [handle() for handle in handles])

    def __iadd__(self, other):
        self.register_pipeline_hooks(other)
        return self

    @classmethod
    def from_hooks(cls, hooks):
        result = cls()
        for each in hooks:
            result += each() if isinstance(each, PipelineHooksConfig) else each
        return result


class PipelineHooksConfig(ClassConfig[PipelineHooks]):
    pass
