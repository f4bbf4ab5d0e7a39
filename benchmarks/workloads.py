"""What is measured: deterministic pieces of a training loop's hook overhead.

Each workload is a function of the implementation under test (`Library`) that
returns a callable `run(n)`, which does the work n times. DISPATCH lists those
that need no torch, under the names that thresholds.toml and the report use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

from robo_orchard_core.utils.hook import HookContext

Run = Callable[[int], None]


@dataclass
class Library:
    """One implementation of the hooks."""

    name: str
    hooks: Callable[[], Any]
    """Makes an empty PipelineHooks."""
    args: type
    """PipelineHookArgs."""


@dataclass
class Workload:
    """A piece of work that every implementation can do."""

    name: str
    make: Callable[[Library], Run]


def library_of(name: str, lab: Any) -> Library:
    """The implementation in a module."""
    return Library(name, lab.PipelineHooks, lab.PipelineHookArgs)


def ours() -> Library:
    """This package."""
    from robo_orchard_fasthooks import mixin

    return library_of("ours", mixin)


def upstream() -> Library:
    """RoboOrchardLab 0.4.0, from its wheel."""
    from upstream import mixin

    return library_of("upstream", mixin)


def installed() -> Library:
    """RoboOrchardLab 0.4.0 with `lab.install()`: a second copy of it."""
    import upstream
    from robo_orchard_fasthooks import lab

    modules = (upstream.mixin, upstream.grad_clip)
    first = {module.__name__: module for module in modules}
    mixin, _ = map(upstream.load_file, first)
    lab.install()
    sys.modules.update(first)
    return library_of("installed", mixin)


def upstream_05() -> Library:
    """RoboOrchardLab 0.5, the stand-in for it."""
    import standin

    with standin.imported() as theirs:
        return library_of("upstream", theirs)


def installed_05() -> Library:
    """RoboOrchardLab 0.5 with `lab.install()`: a second copy of it.

    Where another RoboOrchardLab is accelerated, it is so no longer.
    """
    import standin
    from robo_orchard_fasthooks import lab

    lab.uninstall()
    with standin.imported() as theirs:
        lab.install()
        return library_of("installed", theirs)


def _callbacks(count: int, signature: str = "args") -> list[Callable]:
    # Functions of their own: calling one function over and over again is
    # quicker, in a Python loop, than a training loop ever gets to be.
    return [eval(f"lambda {signature}: None") for _ in range(count)]


def from_callable(count: int) -> list[HookContext]:
    """Hooks as nearly all are made, each with a `before` and an `after`."""
    befores, afters = _callbacks(count), _callbacks(count)
    return [
        HookContext.from_callable(before=before, after=after)
        for before, after in zip(befores, afters, strict=True)
    ]


def subclassed(count: int) -> list[HookContext]:
    """Hooks that are subclasses of HookContext, one class each."""
    befores, afters = (_callbacks(count, "self, args") for _ in range(2))
    return [
        type("Hook", (HookContext,), {"before": before, "after": after})()
        for before, after in zip(befores, afters, strict=True)
    ]


def begin(
    library: Library,
    make_hooks: Callable[[int], list[HookContext]],
    count: int,
    profiled: bool = False,
) -> Run:
    """One begin+end pair with `count` hooks and an empty body.

    Where it is `profiled`, each callback of this package's is timed; upstream
    has no profiler and times nothing.
    """
    hooks = library.hooks()
    args = library.args(accelerator=None)
    for hook in make_hooks(count):
        hooks.register_hook("on_step", hook)
    if profiled and library.name == "ours":
        from robo_orchard_fasthooks._dispatch import set_recorder
        from robo_orchard_fasthooks._record import Recorder, Stats

        recorder = Recorder(lambda hooks, phase: tuple(Stats() for _ in hooks))
        set_recorder(hooks.hooks["on_step"], recorder)

    def run(n: int) -> None:
        for _ in repeat(None, n):
            with hooks.begin("on_step", args):
                pass

    return run


def begin_in_loops(count: int) -> Run:
    """The floor of `begin`: as many callbacks, called from Python loops."""
    befores, afters, args = _callbacks(count), _callbacks(count), object()

    def run(n: int) -> None:
        for _ in repeat(None, n):
            try:
                for before in befores:
                    before(args)
            finally:
                for after in afters:
                    after(args)

    return run


def begin_raising(library: Library) -> Run:
    """One begin+end pair with 4 hooks and a body that raises one exception."""
    hooks = library.hooks()
    args = library.args(accelerator=None)
    for hook in from_callable(4):
        hooks.register_hook("on_step", hook)
    error = ValueError()

    def run(n: int) -> None:
        for _ in repeat(None, n):
            try:
                with hooks.begin("on_step", args):
                    raise error
            except ValueError:
                error.__traceback__ = None  # Or it grows with every step.

    return run


def register(library: Library) -> Run:
    """One hook registered beside 16 others, and unregistered again."""
    hooks = library.hooks()
    *others, hook = from_callable(17)
    for other in others:
        hooks.register_hook("on_step", other)

    def run(n: int) -> None:
        for _ in repeat(None, n):
            hooks.register_hook("on_step", hook)()

    return run


def merge(library: Library) -> Run:
    """A set of 4 hooks added to a set of 16, and unregistered again."""
    hooks, others = library.hooks(), library.hooks()
    for target, count in ((hooks, 16), (others, 4)):
        for hook in from_callable(count):
            target.register_hook("on_step", hook)

    def run(n: int) -> None:
        for _ in repeat(None, n):
            hooks.register_pipeline_hooks(others)()

    return run


# The values of the twelve keywords with which RoboOrchardLab's trainer builds
# arguments, then what a batch processor adds. Unpacked into local variables:
# loading them is not what is measured.
_VALUES: tuple[Any, ...] = (
    *(object() for _ in range(5)),
    *(1_000_000, None, 3, 12_345, 1_234_567, 0, 0),
    *(object() for _ in range(3)),
)


def build_args(library: Library) -> Run:
    """Arguments built with the twelve keywords of the trainer."""
    cls = library.args

    def run(n: int) -> None:
        (
            accelerator, dataloader, model, optimizer, lr_scheduler,
            max_step, max_epoch, epoch_id, step_id, global_step_id,
            start_epoch, start_step, batch, outputs, loss,
        ) = _VALUES  # fmt: skip
        for _ in repeat(None, n):
            cls(
                accelerator=accelerator,
                max_step=max_step,
                max_epoch=max_epoch,
                epoch_id=epoch_id,
                step_id=step_id,
                global_step_id=global_step_id,
                dataloader=dataloader,
                model=model,
                optimizer=optimizer,
                lr_scheduler=lr_scheduler,
                start_epoch=start_epoch,
                start_step=start_step,
            )

    return run


def copy_args(library: Library) -> Run:
    """Arguments copied with three updates, as before the backward pass."""
    args = library.args(object(), optimizer=object(), model=object())
    batch, outputs, loss = object(), object(), object()

    def run(n: int) -> None:
        for _ in repeat(None, n):
            args.copy_with_updates(
                batch=batch, model_outputs=outputs, reduce_loss=loss
            )

    return run


def step(library: Library) -> Run:
    """A whole step of RoboOrchardLab's trainer, without model and optimizer.

    Arguments built twice with twelve keywords; four scopes, two of them on
    copies; four hooks on on_step and one on on_batch, each with both
    callbacks.
    """
    hooks = library.hooks()
    for channel, count in (("on_step", 4), ("on_batch", 1)):
        for hook in from_callable(count):
            hooks.register_hook(channel, hook)
    cls = library.args

    def run(n: int) -> None:
        (
            accelerator, dataloader, model, optimizer, lr_scheduler,
            max_step, max_epoch, epoch_id, step_id, global_step_id,
            start_epoch, start_step, batch, outputs, loss,
        ) = _VALUES  # fmt: skip
        for _ in repeat(None, n):
            on_step = cls(
                accelerator=accelerator,
                max_step=max_step,
                max_epoch=max_epoch,
                epoch_id=epoch_id,
                step_id=step_id,
                global_step_id=global_step_id,
                dataloader=dataloader,
                model=model,
                optimizer=optimizer,
                lr_scheduler=lr_scheduler,
                start_epoch=start_epoch,
                start_step=start_step,
            )
            with hooks.begin("on_step", on_step):
                on_batch = cls(
                    accelerator=accelerator,
                    max_step=max_step,
                    max_epoch=max_epoch,
                    epoch_id=epoch_id,
                    step_id=step_id,
                    global_step_id=global_step_id,
                    dataloader=dataloader,
                    model=model,
                    optimizer=optimizer,
                    lr_scheduler=lr_scheduler,
                    start_epoch=start_epoch,
                    start_step=start_step,
                )
                on_batch.batch = batch
                with hooks.begin("on_batch", on_batch):
                    with hooks.begin(
                        "on_model_forward",
                        arg=on_batch.copy_with_updates(batch=batch),
                    ) as forward:
                        forward.model_outputs = outputs
                        forward.reduce_loss = loss
                    with hooks.begin(
                        "on_model_backward",
                        arg=on_batch.copy_with_updates(
                            batch=batch,
                            model_outputs=outputs,
                            reduce_loss=loss,
                        ),
                    ):
                        pass
                    on_batch.model_outputs = outputs
                    on_batch.reduce_loss = loss
                on_step.model_outputs = on_batch.model_outputs
                on_step.reduce_loss = on_batch.reduce_loss

    return run


def step_05(library: Library) -> Run:
    """A whole step of the trainer of 0.5, without model and optimizer.

    Arguments built once with twelve keywords, then given the two attributes of
    a micro-step; five scopes, three of them on copies, and the last one,
    on_optimizer_step, on the arguments of on_step after that was left; three
    hooks on on_step, one on on_batch and one on on_optimizer_step, each with
    both callbacks.
    """
    hooks = library.hooks()
    channels = (("on_step", 3), ("on_batch", 1), ("on_optimizer_step", 1))
    for channel, count in channels:
        for hook in from_callable(count):
            hooks.register_hook(channel, hook)
    cls, micro_step = library.args, object()

    def run(n: int) -> None:
        (
            accelerator, dataloader, model, optimizer, lr_scheduler,
            max_step, max_epoch, epoch_id, step_id, global_step_id,
            start_epoch, start_step, batch, outputs, loss,
        ) = _VALUES  # fmt: skip
        for _ in repeat(None, n):
            on_step = cls(
                accelerator=accelerator,
                max_step=max_step,
                max_epoch=max_epoch,
                epoch_id=epoch_id,
                step_id=step_id,
                global_step_id=global_step_id,
                dataloader=dataloader,
                model=model,
                optimizer=optimizer,
                lr_scheduler=lr_scheduler,
                start_epoch=start_epoch,
                start_step=start_step,
            )
            on_step.micro_step = micro_step
            on_step.is_optimizer_step_boundary = True
            with hooks.begin("on_step", on_step):
                with hooks.begin(
                    "on_batch", on_step.copy_with_updates(batch=batch)
                ) as on_batch:
                    with hooks.begin(
                        "on_model_forward",
                        arg=on_batch.copy_with_updates(batch=batch),
                    ) as forward:
                        forward.model_outputs = outputs
                    with hooks.begin(
                        "on_model_backward",
                        arg=on_batch.copy_with_updates(
                            batch=batch, model_outputs=outputs
                        ),
                    ):
                        pass
                    on_batch.model_outputs = outputs
                on_step.model_outputs = on_batch.model_outputs
            on_step.is_optimizer_step_committed = False
            with hooks.begin("on_optimizer_step", on_step):
                on_step.is_optimizer_step_committed = True

    return run


DISPATCH = [
    *(
        Workload(
            f"begin, {count} hook{'s' * (count != 1)} ({hooks.__name__})",
            partial(begin, make_hooks=hooks, count=count),
        )
        # Many classes collide in CPython's method cache, or not, by the
        # addresses of names: 20 % of all instructions.
        for hooks, most in ((from_callable, 256), (subclassed, 4))
        for count in (0, 1, 4, 16, 64, 256)
        if count <= most
    ),
    Workload("begin, raising body", begin_raising),
    Workload(
        "begin, 4 hooks, profiled",
        partial(begin, make_hooks=from_callable, count=4, profiled=True),
    ),
    Workload("arguments built", build_args),
    Workload("arguments copied, 3 updates", copy_args),
    Workload("hook registered and unregistered", register),
    Workload("hooks merged and unregistered", merge),
    Workload("training step", step),
]

LAB_STEP = Workload("RoboOrchardLab's step, install()", step)
"""For RoboOrchardLab's own classes, with and without `lab.install()`."""

LAB_05_STEP = Workload("RoboOrchardLab 0.5's step, install()", step_05)
