"""Mistakes over every public name; each must be found by the type checker.

It is type-checked and never run. A comment at the end of a line gives the
error that mypy must report for it.
"""

from collections.abc import Callable

import torch

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


class NoAfter(HookContext[PipelineHookArgs]):
    def before(self, args: PipelineHookArgs) -> None:
        print(args.stepid)  # error: [attr-defined]


class OtherArguments(HookContext[PipelineHookArgs]):
    def before(self, args: int) -> None:  # error: [override]
        pass

    def after(self) -> None:  # error: [override]
        pass


class Mine(PipelineHooks):
    every: int

    def begin(self, channel: str) -> None:  # error: [override]
        pass


class MineConfig(PipelineHooksConfig[Mine]):
    class_type: ClassType[Mine] = OptimizerHook  # error: [assignment]
    every: int = 10


class NoHooksConfig(PipelineHooksConfig[str]):  # error: [type-var]
    pass


def after(args: PipelineHookArgs) -> None:
    args.global_step = 1  # error: [attr-defined]
    args.epoch_id = "1"  # error: [assignment]
    args.reduce_loss.item()  # error: [union-attr]


def numeric(args: int) -> None:
    pass


async def later(args: PipelineHookArgs) -> None:
    pass


def registering(hooks: PipelineHooks, channel: str) -> None:
    hook = HookContext.from_callable
    hooks.register_hook("on_stp", NoAfter.from_callable())  # error: [arg-type]
    hooks.register_hook(channel, hook(after=after))  # error: [arg-type]
    hooks.register_hook("on_step", after)  # error: [arg-type]
    hooks.register_hook("on_step", OtherArguments)  # error: [arg-type]
    hooks.register_hook("on_step", Mine())  # error: [arg-type]
    hooks.register_hook("on_step", NoAfter())  # error: [abstract]
    hooks.register_hook("on_step", hook(after))  # error: [arg-type]
    hooks.register_hook("on_step", hook(None, numeric))  # error: [arg-type]
    hooks.register_hook("on_step", hook(after=later))  # error: [arg-type]
    hooks.register_hook(
        "on_step",
        hook(after=lambda args: print(args.los)),  # error: [attr-defined]
    )


def handles(hooks: PipelineHooks) -> None:
    handle = hooks.register_pipeline_hooks(Mine())
    handle.unregister()  # error: [attr-defined]
    handle("on_step")  # error: [call-arg]
    RemoveableHandle(1)  # error: [type-var]


def channels(hooks: PipelineHooks, name: PipelineHookChanelType) -> None:
    channel = hooks.hooks[name]
    hooks.hooks["on_stp"].unregister_all()  # error: [index]
    channel.register_hook(OtherArguments())  # error: [attr-defined]
    channel.register(after)  # error: [arg-type]
    channel.begin(1)  # error: [arg-type]
    print(channel["first"].before_info)  # error: [index]
    channel += after  # error: [arg-type]
    HookContextChannel[int]()  # error: [call-arg]
    hooks.hooks[name] = Mine()  # error: [assignment]
    name = "on_optimizer"  # error: [assignment]


def merging(hooks: PipelineHooks, config: MineConfig) -> None:
    hooks += config  # error: [arg-type]
    hooks.register_pipeline_hooks(config)  # error: [arg-type]
    PipelineHooks.from_hooks()  # error: [call-arg]
    PipelineHooks.from_hooks(OptimizerHook)  # error: [arg-type]
    PipelineHooks.from_hooks([after])  # error: [list-item]


def scopes(hooks: PipelineHooks, args: PipelineHookArgs) -> None:
    hooks.begin("on_step")  # error: [call-arg]
    hooks.begin("on_stp", args)  # error: [arg-type]
    hooks.begin("on_step", {"batch": 1})  # error: [arg-type]
    with hooks.begin("on_step", args) as step:
        print(step.bach)  # error: [attr-defined]


def arguments(args: PipelineHookArgs) -> None:
    PipelineHookArgs()  # error: [call-arg]
    PipelineHookArgs(None, step_id="1")  # error: [arg-type]
    PipelineHookArgs(None, model="resnet")  # error: [arg-type]
    args.copy_with_update(batch=1)  # error: [attr-defined]
    args.copy_with_updates({"batch": 1})  # error: [call-arg]


def configs(config: GradientClippingHookConfig) -> None:
    GradientClippingHookConfig(max_norm=1.0)  # error: [call-arg]
    GradientClippingHookConfig(clip_mode="nrm")  # error: [arg-type]
    GradientClippingHookConfig(
        clip_mode="value",
        clip_value="1",  # error: [arg-type]
    )
    OptimizerHookConfig(lr=0.1)  # error: [call-arg]
    config.to_str("xml")  # error: [arg-type]
    config.class_type = OptimizerHook  # error: [assignment]


def clipping_hook(hook: GradientClippingHook) -> None:
    GradientClippingHook()  # error: [call-arg]
    GradientClippingHook(OptimizerHookConfig())  # error: [arg-type]
    GradientClippingHook(clip_mode="norm")  # error: [call-arg]
    hook.clip_mode = "nrm"  # error: [assignment]
    hook.cuda_graph = "yes"  # error: [assignment]
    hook.total_norm.item()  # error: [union-attr]


def clipping(model: torch.nn.Module, norm: float) -> None:
    clip_grad_norm_(model, 1.0)  # error: [arg-type]
    clip_grad_norm_(model.parameters(), "1")  # error: [arg-type]
    norm = clip_grad_norm_(model.parameters(), 1.0)  # error: [assignment]
    clip_grad_value_(model.parameters(), clip=1.0)  # error: [call-arg]
    clip_grad_value_([1.0], 1.0)  # error: [list-item]
    print(clip_grad_value_([], norm))  # error: [func-returns-value]
    clip_grad_norm_([], 1.0, 2.0, False, None, True)  # error: [call-arg]
    clip_grad_value_([], 1.0, None, True)  # error: [call-arg]
    clip_grad_norm_([], 1.0, cuda_graph="yes")  # error: [arg-type]
    grads = [torch.ones(2)]
    get_total_norm(model)  # error: [arg-type]
    total: float = get_total_norm(grads)  # error: [assignment]
    clip_grads_with_norm_(model.parameters(), 1.0)  # error: [call-arg]
    clip_grads_with_norm_(grads, 1.0, total)  # error: [arg-type]


def outputs(output: ModelOutput, losses: ModelOutputHasLossKeys) -> None:
    output.loss_keys()  # error: [attr-defined]
    print(output.loss)  # error: [attr-defined]
    outputs([1], losses)  # error: [arg-type]


def profiling(hooks: PipelineHooks) -> None:
    HookProfiler([hooks])  # error: [arg-type]
    HookProfiler(hooks, True)  # error: [call-arg]
    HookProfiler(hooks, warn_above="10%")  # error: [arg-type]
    with HookProfiler(hooks) as profiler:
        profiler.table(timeout="1")  # error: [arg-type]
        print(profiler.to_dict().on_step)  # error: [attr-defined]
        profiler.to_dict()["on_step"]["scop"]  # error: [typeddict-item]


def in_lab(status: lab.Status) -> None:
    lab.install(verbos=True)  # error: [call-arg]
    lab.uninstall(True)  # error: [call-arg]
    status.installed = True  # error: [misc]
    lab.status().names["begin"] = "replaced"  # error: [index]
    with lab.install() as installed:
        print(installed.names)  # error: [attr-defined]


def make_work(times: int) -> Callable[[int], None]:
    raise NotImplementedError


def instructions() -> None:
    testing.count(make_work)  # error: [arg-type]
    testing.count(sizes=10)  # error: [arg-type]
    testing.count()["make_work"]  # error: [call-overload]
