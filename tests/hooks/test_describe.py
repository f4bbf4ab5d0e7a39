"""What `describe` and `repr` show of hooks."""

import functools
import math

from helpers.hooks import HookContext, Logging


def step(args):
    pass


def test_describe_lists_hooks_in_effective_order(ours):
    @functools.wraps(step)
    def wrapper(args):
        pass

    hooks = ours.PipelineHooks()
    assert hooks.describe() == "no hooks"
    clip = ours.GradientClippingHookConfig(clip_mode="norm", max_norm=1)
    hooks += ours.PipelineHooks.from_hooks([clip, ours.OptimizerHook()])
    hooks.register_hook("on_step", Logging([], "direct"))
    patched = HookContext.from_callable("timer", before=wrapper)
    patched.after = step
    hooks.register_hook("on_loop", patched)
    hooks.register_hook(
        "on_loop",
        HookContext.from_callable(after=functools.partial(math.pow, 2)),
    )

    def where(function):
        code = function.__code__
        return (
            f"{function.__qualname__} "
            f"({code.co_filename}:{code.co_firstlineno})"
        )

    clipping = ours.GradientClippingHook._gradient_clipping
    assert hooks.describe().splitlines() == [
        "on_loop",
        "  0 HookContextFromCallable 'timer'",
        f"      before {where(step)}",
        f"      after  {where(step)}",
        "  1 HookContextFromCallable",
        "      after  pow (math)",
        "on_step",
        "  0 GradientClippingHook",
        f"      after  {where(clipping)}",
        "  1 OptimizerHook",
        f"      after  {where(ours.OptimizerHook._optimizer_step)}",
        "  2 Logging 'direct'",
        f"      before {where(Logging.before)}",
        f"      after  {where(Logging.after)}",
    ]


def test_repr_is_laid_out_as_upstream_s(ours, theirs, hook):
    a, b = hook("a"), hook("b")
    shown = []
    for lib in (ours, theirs):
        hooks = lib.PipelineHooks()
        texts = [repr(hooks), repr(hooks.hooks["on_step"])]
        for channel, each in (("on_loop", a), ("on_step", a), ("on_step", b)):
            hooks.register_hook(channel, each)
            texts += [repr(hooks), repr(hooks.hooks[channel])]
        for cls in (lib.PipelineHooks, lib.HookContextChannel, HookContext):
            module = f"{cls.__module__}."
            texts = [text.replace(module, "") for text in texts]
        shown.append(texts)
    assert shown[0] == shown[1]
