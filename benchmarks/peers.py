"""The work of `workloads.begin`, done with other hook systems.

Hooks with a trivial `before` and a trivial `after` around an empty body. All
befores run before it and all afters after it, also if something raises, in the
order in which the hooks were registered. Each callback is a function of its
own that takes the argument object `args`, and what its system adds. What a
peer does besides is in its docstring.

    pip install -c constraints.txt -e '.[test,peers]'
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import repeat
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from workloads import Run

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


def _callbacks(count: int, signature: str = "args") -> list[Callable]:
    return [eval(f"lambda {signature}: None") for _ in range(count)]


def _hooks(
    count: int, base: type, before: str, after: str, signature: str
) -> list[Any]:
    """Instances of `count` subclasses of `base`, with these methods."""
    befores = _callbacks(count, f"self, {signature}")
    afters = _callbacks(count, f"self, {signature}")
    return [
        type("Hook", (base,), {before: first, after: second})()
        for first, second in zip(befores, afters, strict=True)
    ]


def _run(before: str, after: str, /, **names: Any) -> Run:
    """Repeats two statements, written out as by timeit: no call is added."""
    source = (
        "def run(n):\n"
        "    for _ in repeat(None, n):\n"
        f"        try: {before}\n"
        f"        finally: {after}\n"
    )
    names |= {"repeat": repeat, "args": object()}
    exec(source, names)
    return names["run"]


def with_pluggy(count: int) -> Run:
    """Two hook calls by keyword.

    pluggy checks the keywords and collects results that are not None. It runs
    what was registered last first: they are registered in reverse.
    """
    import pluggy

    manager = pluggy.PluginManager("peer")
    spec = pluggy.HookspecMarker("peer")
    impl = pluggy.HookimplMarker("peer")

    class Spec:
        @spec
        def before(self, args: Any) -> None: ...

        @spec
        def after(self, args: Any) -> None: ...

    manager.add_hookspecs(Spec)
    befores, afters = _callbacks(count), _callbacks(count)
    plugins = [
        SimpleNamespace(before=impl(before), after=impl(after))
        for before, after in zip(befores, afters, strict=True)
    ]
    for plugin in reversed(plugins):
        manager.register(plugin)
    return _run(
        "hook.before(args=args)", "hook.after(args=args)", hook=manager.hook
    )


class _InOrder(dict):
    """A set that keeps the order of what is added."""

    def add(self, key: Any) -> None:
        self[key] = None


def with_blinker(count: int) -> Run:
    """Two signals sent, with the argument as their sender.

    blinker looks up that sender's receivers, asks of each whether it is a
    coroutine function, and collects pairs of receiver and result. Receivers
    are held strongly, in an ordered set, as by default there is no order.
    """
    from blinker import Signal

    class Ordered(Signal):
        set_class = _InOrder

    signals = Ordered(), Ordered()
    for signal in signals:
        for callback in _callbacks(count):
            signal.connect(callback, weak=False)
    before, after = signals
    return _run(
        "before.send(args)", "after.send(args)", before=before, after=after
    )


def with_psygnal(count: int) -> Run:
    """Two signals emitted, by compiled code.

    psygnal takes a lock, queues the argument, copies the list of callbacks and
    asks of each whether it is alive. It wraps what they raise.
    """
    from psygnal import SignalInstance

    signals = SignalInstance((object,)), SignalInstance((object,))
    for signal in signals:
        for callback in _callbacks(count):
            signal.connect(callback)
    before, after = signals
    return _run(
        "before.emit(args)", "after.emit(args)", before=before, after=after
    )


def with_ignite(count: int) -> Run:
    """Engine.fire_event before and after an iteration.

    Handlers get the engine and no other argument: data are passed in its
    state. Ignite checks the event, formats a debug message, and resolves a
    weak reference to the engine for each handler.
    """
    from ignite.engine import Engine, Events

    engine = Engine(lambda engine, batch: None)
    before, after = Events.ITERATION_STARTED, Events.ITERATION_COMPLETED
    for event in (before, after):
        for callback in _callbacks(count):
            engine.add_event_handler(event, callback)
    return _run(
        "engine.fire_event(before)",
        "engine.fire_event(after)",
        engine=engine,
        before=before,
        after=after,
    )


def with_transformers(count: int) -> Run:
    """CallbackHandler's on_step_begin and on_step_end.

    Each callback gets the argument, state, control and six keywords; what it
    returns replaces the control, of which three flags are reset. The
    DefaultFlowCallback of every Trainer is left out.
    """
    from transformers import trainer_callback as library

    before, after = "on_step_begin", "on_step_end"
    signature = "args, state, control, **kwargs"
    hooks = _hooks(count, library.TrainerCallback, before, after, signature)
    default = library.DefaultFlowCallback  # Without it there is a warning.
    handler = library.CallbackHandler([*hooks, default], *[None] * 4)
    handler.remove_callback(default)
    return _run(
        "handler.on_step_begin(args, state, control)",
        "handler.on_step_end(args, state, control)",
        handler=handler,
        state=library.TrainerState(),
        control=library.TrainerControl(),
    )


def with_mmengine(count: int) -> Run:
    """Runner.call_hook before and after a training iteration.

    Each hook gets the runner, and the argument by keyword; its method is
    looked up twice, by name. The Runner has none of its default hooks.
    """
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    before, after = "before_train_iter", "after_train_iter"
    runner = Runner.__new__(Runner)  # To set one up takes a model and files.
    runner._hooks = []
    for hook in _hooks(count, Hook, before, after, "runner, args"):
        runner.register_hook(hook)
    return _run(
        f"runner.call_hook({before!r}, args=args)",
        f"runner.call_hook({after!r}, args=args)",
        runner=runner,
    )


def with_fabric(count: int) -> Run:
    """Fabric.call with the argument alone.

    Fabric looks each method up by name and inspects its signature, to leave
    out keywords that it does not take.
    """
    from lightning.fabric import Fabric

    hooks = _hooks(count, object, "before", "after", "args")
    return _run(
        "fabric.call('before', args)",
        "fabric.call('after', args)",
        fabric=Fabric(accelerator="cpu", devices=1, callbacks=hooks),
    )


def with_trainer(count: int) -> Run:
    """What Lightning's Trainer itself calls around a training batch.

    Each callback gets the trainer, the module (None here) and the argument,
    in a scope of the profiler, which is off. The Trainer's own callbacks are
    off too.
    """
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.trainer.call import _call_callback_hooks

    # Or it puts out advice.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    before, after = "on_train_batch_start", "on_train_batch_end"
    hooks = _hooks(count, Callback, before, after, "trainer, module, args")
    trainer = Trainer(
        accelerator="cpu",
        callbacks=hooks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    return _run(
        f"call(trainer, {before!r}, args)",
        f"call(trainer, {after!r}, args)",
        trainer=trainer,
        call=_call_callback_hooks,
    )


def torch_clip(
    params: list[Parameter], limit: float, foreach: bool
) -> Callable[[], Tensor]:
    """torch.nn.utils.clip_grad_norm_ of a list of parameters, without a hook.

    With foreach=True, and with foreach=False: kernels for each tensor.
    """
    from torch.nn.utils import clip_grad_norm_

    return partial(clip_grad_norm_, params, limit, foreach=foreach)


PEERS: dict[str, tuple[str, Callable[[int], Run]]] = {
    "pluggy": ("pluggy", with_pluggy),
    "blinker": ("blinker", with_blinker),
    "psygnal": ("psygnal", with_psygnal),
    "Ignite": ("pytorch-ignite", with_ignite),
    "transformers": ("transformers", with_transformers),
    "MMEngine": ("mmengine", with_mmengine),
    "Fabric": ("lightning", with_fabric),
    "Lightning": ("lightning", with_trainer),
}
"""By name: what to install, and what makes the work of so many hooks."""


def versions() -> dict[str, str]:
    """By distribution: its version, "" where it is not installed."""
    found = {}
    for distribution, _ in PEERS.values():
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            found[distribution] = ""
    return found


def installed() -> dict[str, Callable[[int], Run]]:
    """Those of the peers that are installed."""
    there = versions()
    return {name: make for name, (what, make) in PEERS.items() if there[what]}
