"""The work of `workloads.begin`, done with three other hook systems.

psygnal is the fastest compiled one, pluggy the best known one, and Lightning's
callbacks are what many of our users come from. All befores run before an empty
body and all afters after it, also if something raises, in the order in which
the hooks were registered. Each callback is a function of its own that takes
`args` and what its system adds. What a system does besides is in its
docstring.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import repeat
from types import SimpleNamespace
from typing import Any

from workloads import Run, _callbacks


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


def with_psygnal(count: int) -> Run:
    """Two signals emitted, by compiled code.

    psygnal takes a lock, queues the argument, copies the list of callbacks and
    checks that each is still alive. It wraps what they raise.
    """
    from psygnal import SignalInstance

    before, after = SignalInstance((object,)), SignalInstance((object,))
    for signal in (before, after):
        for callback in _callbacks(count):
            signal.connect(callback)
    return _run(
        "before.emit(args)", "after.emit(args)", before=before, after=after
    )


def with_pluggy(count: int) -> Run:
    """Two hook calls by keyword.

    pluggy checks the keywords and collects results that are not None. It runs
    what was registered last first, so the hooks are registered in reverse.
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


def with_lightning(count: int) -> Run:
    """What Lightning's Trainer itself calls around a training batch.

    Each callback gets the trainer, the module (None here) and the argument,
    in a scope of the profiler, which is off. The Trainer's own callbacks are
    off too.
    """
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.trainer.call import _call_callback_hooks

    # It logs advice when a Trainer is made.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    before, after = "on_train_batch_start", "on_train_batch_end"
    signature = "self, trainer, module, args"
    befores, afters = (_callbacks(count, signature) for _ in range(2))
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[
            type("Hook", (Callback,), {before: first, after: second})()
            for first, second in zip(befores, afters, strict=True)
        ],
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


PEERS: dict[str, Callable[[int], Run]] = {
    "psygnal": with_psygnal,
    "pluggy": with_pluggy,
    "lightning": with_lightning,
}
"""By the name of the distribution: what makes the work of so many hooks."""
