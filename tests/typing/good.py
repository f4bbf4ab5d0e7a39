"""A program that uses every public name as intended.

It is type-checked and never run.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from typing_extensions import assert_type

from robo_orchard_fasthooks import (
    ClassType,
    GradientClippingHook,
    GradientClippingHookConfig,
    HookContext,
    HookContextChannel,
    HookProfiler,
    ModelOutput,
    ModelOutputHasLossKeys,
    OptimizerHook,
    OptimizerHookConfig,
    PipelineHookArgs,
    PipelineHookChanelType,
    PipelineHooks,
    PipelineHooksConfig,
    RemoveableHandle,
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
    lab,
    testing,
)


@dataclasses.dataclass
class Args(PipelineHookArgs):
    extra: int = 0


class Timed(PipelineHooks):
    @contextmanager
    def begin(
        self, channel: PipelineHookChanelType, arg: PipelineHookArgs
    ) -> Iterator[PipelineHookArgs]:
        with super().begin(channel, arg) as args:
            yield args


class Logging(PipelineHooks):
    def __init__(self, cfg: "LoggingConfig") -> None:
        super().__init__(cfg)
        self.every = cfg.every
        self.register_hook(
            "on_step", HookContext.from_callable(after=self.log)
        )

    def log(self, args: PipelineHookArgs) -> None:
        if args.reduce_loss is not None and args.step_id % self.every == 0:
            print(args.reduce_loss.item())


class LoggingConfig(PipelineHooksConfig[Logging]):
    class_type: ClassType[Logging] = Logging
    every: int = 10


class Counter(HookContext[PipelineHookArgs]):
    def __init__(self) -> None:
        super().__init__("counter")
        self.steps: list[int] = []

    def before(self, args: PipelineHookArgs) -> None:
        self.steps.append(args.global_step_id)

    def after(self, args: PipelineHookArgs) -> None:
        if args.exception is not None:
            print(type(args.exception))


class Output(dict[str, torch.Tensor]):
    def loss_keys(self) -> list[str]:
        return ["loss"]


def register(hooks: PipelineHooks) -> RemoveableHandle[Callable[[], None]]:
    steps: list[int] = []
    hooks.register_hook("on_step", Counter())
    hooks.register_hook("on_step", HookContext.from_callable("print", print))
    handle = hooks.register_hook(
        "on_step",
        HookContext.from_callable(
            before=lambda args: steps.append(args.step_id),
            after=lambda args: print(args.batch),
        ),
    )
    handle()
    with handle as entered:
        assert_type(entered, RemoveableHandle[Callable[[], None]])
    handle.remove()
    return hooks.register_pipeline_hooks(Timed())


def channels(hooks: PipelineHooks) -> int:
    channel: HookContextChannel[PipelineHookArgs] = hooks.hooks["on_step"]
    channel += Counter()
    channel += HookContextChannel[PipelineHookArgs]("on_step")
    channel.register(Counter())()
    hooks.hooks["on_step"] = channel
    assert_type(channel[0], HookContext[PipelineHookArgs])
    hooks.unregister_all()
    print(hooks.describe())
    return len(channel)


def train(hooks: PipelineHooks, args: PipelineHookArgs) -> int:
    with hooks.begin("on_step", args) as step:
        step.batch = 1
        step.reduce_loss = torch.zeros(())
    with hooks.hooks["on_batch"].begin(step) as batch:
        assert_type(batch, PipelineHookArgs)

    @hooks.begin("on_epoch", args)
    def epoch(number: int) -> int:
        return number

    return epoch(1)


def configs() -> PipelineHooks:
    clipping = GradientClippingHookConfig(clip_mode="norm", max_norm=1)
    assert_type(clipping(), GradientClippingHook)
    assert_type(OptimizerHookConfig()(), OptimizerHook)
    assert_type(LoggingConfig(every=3)(), Logging)
    assert_type(clipping.replace(max_norm=2.0), GradientClippingHookConfig)
    assert_type(clipping.replace(cuda_graph=True).cuda_graph, bool | None)
    text = clipping.to_str(format="yaml")
    loaded = GradientClippingHookConfig.from_str(text, format="yaml")
    assert_type(loaded, GradientClippingHookConfig)
    empty = PipelineHooks.from_hooks(None)
    empty += OptimizerHook()
    assert_type(Timed.from_hooks(LoggingConfig()), Timed)
    configs: list[PipelineHooksConfig[PipelineHooks]] = [clipping]
    PipelineHooks.from_hooks(configs)
    PipelineHooks.from_hooks(config() for config in configs)
    return PipelineHooks.from_hooks([empty, clipping, LoggingConfig()])


def loss_keys(output: ModelOutput) -> list[str]:
    if isinstance(output, ModelOutputHasLossKeys):
        return list(output.loss_keys())
    return [str(key) for key in output.keys()]


def main(accelerator: Accelerator, model: torch.nn.Module) -> None:
    args = Args(accelerator, epoch_id=3, model=model, extra=1)
    args.optimizer = torch.optim.SGD(model.parameters())
    assert_type(args.copy_with_updates(batch=2), Args)
    assert_type(dataclasses.replace(args, batch=3), Args)
    hooks = configs()
    register(hooks)()
    channels(hooks)
    loss_keys({"loss": torch.zeros(())})
    loss_keys(Output())
    with HookProfiler(hooks, warn_above=0.1, window=10) as profiler:
        train(hooks, args)
    print(profiler.table(reduce=accelerator, timeout=10))
    print(profiler.to_dict()["on_step"])
    profiler.to_json("profile.json")


def clip(model: torch.nn.Module, hook: GradientClippingHook) -> float:
    clip_grad_value_(model.parameters(), 1.0)
    clip_grad_value_(model.parameters(), 1.0, cuda_graph=None)
    clip_grad_norm_(model.parameters(), 1.0, 2.0, cuda_graph=True)
    hook.cuda_graph = False
    total_norm = get_total_norm([torch.ones(2)], norm_type=2.0)
    clip_grads_with_norm_(model.parameters(), 1.0, total_norm)
    norm = clip_grad_norm_(model.parameters(), 1, error_if_nonfinite=True)
    hook.max_norm = 2.0
    return norm.item() if hook.total_norm is None else hook.total_norm.item()


def accelerate_lab() -> Mapping[str, str]:
    with lab.install(verbose=True):
        status: lab.Status = lab.status()
    lab.uninstall()
    return status.names if status.installed else {}


def make_work() -> Callable[[int], None]:
    def run(times: int) -> None:
        for _ in range(times):
            pass

    return run


def instructions() -> float:
    (each,) = testing.count(make_work, sizes=(10, 20))
    return each
