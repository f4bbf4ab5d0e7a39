"""Stand-in: the seven channels and the arguments of 0.5."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

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
from typing_extensions import TypeVar

__all__ = [
    "ClassType",
    "HookContext",
    "MicroStepProgressState",
    "PipelineHookArgs",
    "PipelineHookChanelType",
    "PipelineHooks",
    "PipelineHooksConfig",
]


@dataclass
class MicroStepProgressState:
    epoch_step_id: int = 0
    global_step_id: int = 0
    index_in_optimizer_step: int = 0
    last_optimizer_step_size: int = 0


@dataclass(init=False)
class PipelineHookArgs:
    accelerator: Any
    epoch_id: int = 0
    step_id: int = 0
    global_step_id: int = 0
    micro_step: MicroStepProgressState | None = None
    is_optimizer_step_boundary: bool = True
    is_optimizer_step_committed: bool = False
    max_epoch: int | None = None
    max_step: int | None = None
    start_epoch: int = 0
    start_step: int = 0
    dataloader: Any = None
    model: Any = None
    optimizer: Any = None
    lr_scheduler: Any = None
    batch: Any = None
    model_outputs: Any = None
    exception: BaseException | None = None

    def __init__(
        self,
        accelerator: Any,
        epoch_id: int = 0,
        step_id: int = 0,
        global_step_id: int = 0,
        micro_step: MicroStepProgressState | None = None,
        is_optimizer_step_boundary: bool = True,
        is_optimizer_step_committed: bool = False,
        max_epoch: int | None = None,
        max_step: int | None = None,
        start_epoch: int = 0,
        start_step: int = 0,
        dataloader: Any = None,
        model: Any = None,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        batch: Any = None,
        model_outputs: Any = None,
        exception: BaseException | None = None,
        reduced_backward_loss: Any = None,
    ) -> None:
        """Sets each field; the loss is accepted and dropped."""
        del reduced_backward_loss
        self.accelerator = accelerator
        self.epoch_id = epoch_id
        self.step_id = step_id
        self.global_step_id = global_step_id
        self.micro_step = micro_step
        self.is_optimizer_step_boundary = is_optimizer_step_boundary
        self.is_optimizer_step_committed = is_optimizer_step_committed
        self.max_epoch = max_epoch
        self.max_step = max_step
        self.start_epoch = start_epoch
        self.start_step = start_step
        self.dataloader = dataloader
        self.model = model
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.batch = batch
        self.model_outputs = model_outputs
        self.exception = exception

    @property
    def reduced_backward_loss(self):
        _refuse_to_tell_the_loss()

    @property
    def reduce_loss(self):
        _refuse_to_tell_the_loss()

    def copy_with_updates(self, **kwargs) -> "PipelineHookArgs":
        """Copies through the constructor, then updates."""
        instance = self.__class__(**self.__dict__)
        for key, value in kwargs.items():
            if hasattr(instance, key):
                setattr(instance, key, value)
            else:
                raise AttributeError(f"{key} is not a valid attribute")
        return instance


def _refuse_to_tell_the_loss():
    raise RuntimeError("the loss of the backward pass is not available")


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
        self.hooks = {}
        for name in PipelineHookChanelType.__args__:
            self.hooks[name] = HookContextChannel[PipelineHookArgs](name)

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

        def remove():
            for handle in handles:
                handle()

        return RemoveableHandle(remove)

    def __iadd__(self, other):
        self.register_pipeline_hooks(other)
        return self

    def unregister_all(self):
        for channel in self.hooks.values():
            channel.unregister_all()

    @classmethod
    def from_hooks(cls, hooks):
        if hooks is None:
            return cls()
        if isinstance(hooks, (PipelineHooksConfig, PipelineHooks)):
            hooks = [hooks]
        made = []
        for each in hooks:
            if isinstance(each, PipelineHooksConfig):
                made.append(each())
            elif isinstance(each, PipelineHooks):
                made.append(each)
            else:
                raise TypeError(
                    "Expected PipelineHooks or PipelineHooksConfig, but got "
                    f"{type(each)}"
                )
        result = cls()
        for each in made:
            result += each
        return result


PipelineHooksType_co = TypeVar(
    "PipelineHooksType_co", bound=PipelineHooks, covariant=True
)


class PipelineHooksConfig(ClassConfig[PipelineHooksType_co]):
    pass
