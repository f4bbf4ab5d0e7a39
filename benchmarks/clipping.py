"""What is clipped, and what clips it, in the benchmarks and in the gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator

import compare
import robo_orchard_fasthooks as ours
import upstream

Clip = Callable[[], object]
Shapes = list[tuple[int, ...]]

LIMITS = {"below": 1e12, "above": 1e-3}
"""Bounds, by the side of them on which the norm is."""

UPSTREAM = SimpleNamespace(
    GradientClippingHookConfig=upstream.grad_clip.GradientClippingHookConfig,
    PipelineHookArgs=upstream.mixin.PipelineHookArgs,
)
LIBRARIES: dict[str, Any] = {"upstream": UPSTREAM, "ours": ours}


@dataclass
class Case:
    """Gradients, and how they are clipped."""

    title: str
    shapes: Shapes
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    """Which the gradients have in turn."""
    norm_type: float = 2.0
    mode: str = "norm"


def equal(count: int, size: int) -> Shapes:
    """Shapes that are all equal."""
    return [(size,)] * count


def different(count: int) -> Shapes:
    """Shapes that all differ, of 64 elements and more."""
    return [(64 + index,) for index in range(count)]


def resnet50() -> Shapes:
    """161 tensors of 25,557,032 elements, as torchvision makes them.

    He et al. (2015), table 1, with batch normalization.
    """

    def normed(*shape: int) -> Shapes:
        return [shape, shape[:1], shape[:1]]

    shapes = normed(64, 3, 7, 7)
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += normed(width, channels, 1, 1)
            shapes += normed(width, width, 3, 3)
            shapes += normed(4 * width, width, 1, 1)
            if block == 0:  # The shortcut.
                shapes += normed(4 * width, channels, 1, 1)
            channels = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


BF16 = torch.bfloat16
MIXED = (torch.bfloat16, torch.float32)
# 500 small heads of two layers, as a policy has them.
POLICY = Case(
    "policy of 2,000 tensors", [(64, 16), (64,), (8, 64), (8,)] * 500
)
RESNET = Case("ResNet-50", resnet50())
CASES = [
    POLICY,
    RESNET,
    Case("ResNet-50, bfloat16", resnet50(), (BF16,)),
    Case("ResNet-50, by value", resnet50(), mode="value"),
    Case("1 x 1", equal(1, 1)),
    Case("10 of different shapes", different(10)),
    Case("1,000 of different shapes", different(1000)),
    Case("1,000 x 64", equal(1000, 64)),
    Case("1,000 x 64, bfloat16", equal(1000, 64), (BF16,)),
    Case("1,000 x 64, bfloat16 and float32", equal(1000, 64), MIXED),
    Case("1,000 x 64, norm_type inf", equal(1000, 64), norm_type=float("inf")),
    Case("1,000 x 64, by value", equal(1000, 64), mode="value"),
]

# What the gate counts: small, as counting takes 50 times as long.
COUNTED = [
    (Case("1,000 x 64 elements", equal(1000, 64)), "below"),
    (Case("1,000 x 64 elements", equal(1000, 64)), "above"),
    (Case("1,000 of different shapes", different(1000)), "below"),
    (Case("1,000 of different shapes", different(1000)), "above"),
    (Case("1,000 x 64, bfloat16", equal(1000, 64), (BF16,)), "below"),
    (Case("1,000 x 64, by value", equal(1000, 64), mode="value"), "below"),
]


def parameters(case: Case, device: str = "cpu") -> list[torch.nn.Parameter]:
    """Parameters with gradients, the same ones on each call."""
    generator = torch.Generator(device).manual_seed(0)
    params = []
    for index, shape in enumerate(case.shapes):
        dtype = case.dtypes[index % len(case.dtypes)]
        # Without memory of its own: only gradients are clipped.
        value = torch.zeros((), dtype=dtype, device=device).expand(shape)
        param = torch.nn.Parameter(value)
        drawn = torch.randn(shape, generator=generator, device=device)
        param.grad = drawn.to(param)
        params.append(param)
    return params


def hook_of(
    library: Any,
    params: list[torch.nn.Parameter],
    limit: float,
    case: Case,
    **settings: Any,
) -> tuple[Any, Any]:
    """A library's hook, and the arguments that it clips for."""
    accelerator = Accelerator(cpu=params[0].device.type == "cpu")
    optimizer = accelerator.prepare(torch.optim.SGD(params, lr=0.1))
    config = library.GradientClippingHookConfig(
        clip_mode=case.mode,
        max_norm=limit,
        clip_value=limit,
        norm_type=case.norm_type,
        **settings,
    )
    return config(), library.PipelineHookArgs(accelerator, optimizer=optimizer)


def clip_of(library: Any, *of: Any, **settings: Any) -> Clip:
    """What a library's hook does after a step; takes what `hook_of` takes."""
    hook, args = hook_of(library, *of, **settings)
    return partial(hook._gradient_clipping, args)


def ways(
    params: list[torch.nn.Parameter], limit: float, case: Case
) -> dict[str, Clip]:
    """All that clips by norm, by name."""
    by_torch = partial(torch.nn.utils.clip_grad_norm_, params, limit)
    return {
        compare.OURS: clip_of(ours, params, limit, case),
        compare.UPSTREAM: clip_of(UPSTREAM, params, limit, case),
        "torch, foreach": partial(by_torch, foreach=True),
        "torch, single": partial(by_torch, foreach=False),
    }


def restoring(params: list[torch.nn.Parameter]) -> Callable[[], None]:
    """Makes what gives gradients the values that they have now.

    All that is compared clips the same gradients: where they lie in memory can
    make 10 % of the time.
    """
    grads = [getattr(p.grad, "_local_tensor", p.grad) for p in params]
    saved = [grad.clone() for grad in grads]

    def restore() -> None:
        torch._foreach_copy_(grads, saved)

    return restore


def repeated(library: Any, case: Case, side: str) -> Callable[[int], None]:
    """Clips as often as it is told, without restoring the gradients."""
    hook, args = hook_of(library, parameters(case), 1e12, case)

    def run(n: int) -> None:
        for index in range(n):
            if side == "above":  # Of what it was clipped to the last time.
                hook.max_norm = 1e-3 / 2**index
            hook._gradient_clipping(args)

    return run
