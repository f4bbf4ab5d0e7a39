"""Times GradientClippingHook against RoboOrchardLab 0.4.0's, in one run.

    python benchmarks/clipping.py [--rounds N] [--json FILE]

Both hooks clip the gradients of optimizers of their own, on one CPU thread, in
turn; gradients are restored before each call. Timed is the thread, not the
wall. Prints a Markdown table of medians, and exits with 1 if a ratio is short
of what is required of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import thread_time_ns
from typing import Any

import torch
from accelerate import Accelerator

import robo_orchard_fasthooks as ours
import upstream
from shapes import MODELS, Shapes  # noqa: E402


@dataclass
class Case:
    """What is clipped, and the required speed-up."""

    title: str
    shapes: Shapes
    below: float = 0.95
    """The required ratio where the norm is below the threshold."""
    above: float | None = 0.95
    """The required ratio above it."""
    dtypes: list[torch.dtype] = field(default_factory=lambda: [torch.float32])
    norm_type: float = 2.0
    mode: str = "norm"


def equal(count: int, size: int) -> Shapes:
    """Shapes that are all equal."""
    return [(size,)] * count


def different(count: int) -> Shapes:
    """Shapes that all differ, of 64 elements and more."""
    return [(64 + index,) for index in range(count)]


def transformer(layers: int, width: int) -> Shapes:
    """The shapes of a transformer's parameters."""
    layer: Shapes = [
        (3 * width, width),
        (3 * width,),
        (width, width),
        (4 * width, width),
        (4 * width,),
        (width, 4 * width),
        *[(width,)] * 6,
    ]
    return [(1000, width), *layer * layers, (width,)]


CASES = [
    Case("160 x 64 elements", equal(160, 64), 4, 2.5),
    Case("1,000 x 64", equal(1000, 64), 4, 2.5),
    Case("2,000 x 64", equal(2000, 64), 4, 2.5),
    Case("10,000 x 64", equal(10000, 64), 4, 2.5),
    Case("160 of different shapes", different(160), 1.7, 1.4),
    Case("1,000 of different shapes", different(1000), 1.7, 1.4),
    Case("150 x 500,000", equal(150, 500_000), 1.9),
    Case("transformer, 12 layers of 256", transformer(12, 256)),
    Case("transformer, 4 layers of 64", transformer(4, 64)),
    Case("1 x 1", equal(1, 1)),
    Case("3 x 64", equal(3, 64)),
    Case("10 x 64", equal(10, 64)),
    Case("10 of different shapes", different(10)),
    Case("1 x 10,000,000", equal(1, 10_000_000)),
    Case("1,000 x 2,048", equal(1000, 2048)),
    Case("1,000 x 2,049", equal(1000, 2049)),
    *[
        Case(f"{title}, {str(dtype)[6:]}", shapes, dtypes=[dtype])
        for dtype in (torch.bfloat16, torch.float16, torch.float64)
        for title, shapes in (
            ("1,000 x 64", equal(1000, 64)),
            ("1,000 x 2,048", equal(1000, 2048)),
            ("20 x 500,000", equal(20, 500_000)),
        )
    ],
    Case(
        "1,000 x 64, bfloat16 and float32",
        equal(1000, 64),
        dtypes=[torch.bfloat16, torch.float32],
    ),
    *[
        Case(f"{title}, norm_type {p}", shapes, norm_type=p)
        for p in (1.0, float("inf"), 3.0)
        for title, shapes in (
            ("1,000 x 64", equal(1000, 64)),
            ("200 x 2,048", equal(200, 2048)),
        )
    ],
    *[
        Case(f"{title}, by value", shapes, above=None, mode="value")
        for title, shapes in (
            ("1 x 1", equal(1, 1)),
            ("1,000 x 64", equal(1000, 64)),
            ("200 x 12,287", equal(200, 12_287)),
            ("200 x 12,288", equal(200, 12_288)),
            ("20 x 500,000", equal(20, 500_000)),
            ("transformer, 4 layers of 64", transformer(4, 64)),
        )
    ],
]


# The models' parameters, in both dtypes, by norm and by value.
OF_MODELS = [
    Case(f"{name}, {str(dtype)[6:]}{how}", shapes, dtypes=[dtype], mode=mode)
    for name, shapes in MODELS.items()
    for dtype in (torch.float32, torch.bfloat16)
    for mode, how in (("norm", ""), ("value", ", by value"))
]

# What the gate counts: small, as counting takes 50 times as long.
COUNTED = [
    (Case("1,000 x 64 elements", equal(1000, 64)), "below"),
    (Case("1,000 x 64 elements", equal(1000, 64)), "above"),
    (Case("1,000 of different shapes", different(1000)), "below"),
    (Case("1,000 of different shapes", different(1000)), "above"),
    (
        Case("1,000 x 64, bfloat16", equal(1000, 64), dtypes=[torch.bfloat16]),
        "below",
    ),
    (Case("1,000 x 64, by value", equal(1000, 64), mode="value"), "below"),
]


class UPSTREAM:
    """RoboOrchardLab 0.4.0's hook."""

    GradientClippingHookConfig = upstream.grad_clip.GradientClippingHookConfig
    PipelineHookArgs = upstream.mixin.PipelineHookArgs


LIBRARIES: dict[str, Any] = {"upstream": UPSTREAM, "ours": ours}


def hook_of_config(
    library: Any,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    clip_mode: str = "norm",
    **settings: Any,
) -> Callable[[], None]:
    """What a library's hook does after a step."""
    config = library.GradientClippingHookConfig(
        clip_mode=clip_mode, **settings
    )
    args = library.PipelineHookArgs(accelerator, optimizer=optimizer)
    hook = config()
    return lambda: hook._gradient_clipping(args)


def gradients(case: Case, device: str = "cpu") -> list[torch.nn.Parameter]:
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


def hooks_of(
    case: Case, limit: float, device: str = "cpu"
) -> tuple[dict[str, Callable[[], None]], Callable[[], None]]:
    """Makes what is timed, by library, and what restores the gradients.

    On CUDA, this package comes twice: without and with `cuda_graph`.
    """
    # The same for both: where they lie can make 10 % of the time.
    params = gradients(case, device)
    grads = [param.grad for param in params]
    saved = [grad.clone() for grad in grads]
    accelerator = Accelerator(cpu=device == "cpu")
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        name: (library, {}) for name, library in LIBRARIES.items()
    }
    if device == "cuda":
        kinds["cuda_graph"] = (LIBRARIES["ours"], {"cuda_graph": True})
    clips = {
        name: hook_of_config(
            library,
            accelerator,
            accelerator.prepare(torch.optim.SGD(params, lr=0.1)),
            case.mode,
            max_norm=limit,
            clip_value=limit,
            norm_type=case.norm_type,
            **settings,
        )
        for name, (library, settings) in kinds.items()
    }

    def restore() -> None:
        torch._foreach_copy_(grads, saved)

    return clips, restore


def repeated(library: Any, case: Case, side: str) -> Callable[[int], None]:
    """Clips as often as it is told, without restoring the gradients."""
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(torch.optim.SGD(gradients(case), lr=0.1))
    config = library.GradientClippingHookConfig(
        clip_mode=case.mode, max_norm=1e12, clip_value=1e12
    )
    hook, args = config(), library.PipelineHookArgs(accelerator)
    args.optimizer = optimizer

    def run(n: int) -> None:
        for index in range(n):
            if side == "above":  # Of what it was clipped to the last time.
                hook.max_norm = 1e-3 / 2**index
            hook._gradient_clipping(args)

    return run


def times(case: Case, limit: float, rounds: int) -> tuple[float, float, float]:
    """Median nanoseconds of upstream's hook and ours, and of their ratios."""
    clips, restore = hooks_of(case, limit)
    samples: list[list[int]] = []
    for number in range(rounds + 3):
        pair = []
        for clip in clips.values():
            restore()
            start = thread_time_ns()
            clip()
            pair.append(thread_time_ns() - start)
        if number >= 3:
            samples.append(pair)
    return (
        median(first for first, _ in samples),
        median(second for _, second in samples),
        median(first / second for first, second in samples),
    )


def main() -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args()
    rounds = options.rounds
    torch.set_num_threads(1)
    gc.disable()
    print(
        f"{platform.processor() or platform.machine()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"median of {rounds} rounds\n"
    )
    print("| gradients | | upstream, us | ours, us | ratio | required |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    short = []
    rows = []
    per_gradient = {}
    for case in CASES:
        for side, limit, required in (
            ("below", 1e12, case.below),
            ("above", 1e-3, case.above),
        ):
            if required is None:
                continue
            theirs, mine, ratio = times(case, limit, rounds)
            rows.append(
                {
                    "gradients": case.title,
                    "side": side if case.mode == "norm" else "",
                    "upstream_us": theirs / 1e3,
                    "ours_us": mine / 1e3,
                    "ratio": ratio,
                }
            )
            side = side if case.mode == "norm" else ""
            print(
                f"| {case.title} | {side} | {theirs / 1e3:.1f} "
                f"| {mine / 1e3:.1f} | {ratio:.2f} | {required} |",
                flush=True,
            )
            per_gradient[case.title, side] = mine / len(case.shapes)
            if ratio < required:
                short.append(f"{case.title} {side}".strip())
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    for side in ("below", "above"):
        few, many = (
            per_gradient[f"{count} x 64", side]
            for count in ("1,000", "10,000")
        )
        print(
            f"\n{side}: {few:.0f} ns a gradient for 1,000 of them, "
            f"{many:.0f} for 10,000 (required: at most 1.5 times that)"
        )
        if many > 1.5 * few:
            short.append(f"growth {side}")
    if short:
        print("\nbelow the required ratio: " + ", ".join(short))
    return bool(short)


if __name__ == "__main__":
    sys.exit(main())
