"""The compiled modules at work, without torch: on each CPython there is."""

import copy
import pickle
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType

# The package's own __init__ imports torch.
name = "robo_orchard_fasthooks"
path = find_spec(name).submodule_search_locations
sys.modules[name] = ModuleType(name)
sys.modules[name].__path__ = path

from robo_orchard_core.utils.hook import HookContext  # noqa: E402

from robo_orchard_fasthooks import (  # noqa: E402
    _args,
    _dispatch,
    _fast_dataclass,
    _record,
)


@dataclass
class Args:
    """As RoboOrchardLab's."""

    accelerator: object
    epoch_id: int = 0
    batch: object = None

    def copy_with_updates(self, **kwargs):
        """The one that is replaced."""
        raise NotImplementedError


def check_args(cls):
    """Construction, copies, pickles."""
    args = cls(accelerator=1, batch=[2])
    assert (args.accelerator, args.epoch_id, args.batch) == (1, 0, [2])
    args.epoch_id = 3
    assert args == cls(1, 3, batch=[2]) != cls(1)
    for other in (
        copy.copy(args),
        copy.deepcopy(args),
        pickle.loads(pickle.dumps(args)),
        args.copy_with_updates(),
    ):
        assert other == args and other is not args
        assert vars(other) == vars(args) and other.batch == [2]
    changed = args.copy_with_updates(batch=4, epoch_id=5)
    assert (changed.batch, changed.epoch_id, args.epoch_id) == (4, 5, 3)
    for bad in ({}, {"accelerator": 1, "unknown": 2}):
        try:
            cls(**bad)
        except TypeError:
            pass
        else:
            raise AssertionError(bad)


def check_dispatch():
    """Order, failures, handles."""
    log = []
    channel = _dispatch.HookContextChannel("on_step")
    handles = [
        channel.register(
            HookContext.from_callable(
                before=lambda args, i=i: log.append(f"before {i}"),
                after=lambda args, i=i: log.append(args.exception),
            )
        )
        for i in range(2)
    ]
    args = _args.PipelineHookArgs(None)
    error = ValueError()
    try:
        with channel.begin(args) as given:
            assert given is args
            raise error
    except ValueError:
        pass
    assert log == ["before 0", "before 1", error, error]
    assert args.exception is None
    for handle in handles:
        handle.remove()
    with channel.begin(args):
        pass
    assert len(log) == 4


def check_profiling():
    """Times of a channel that stands in for robo_orchard_core's."""
    channel = _dispatch.in_place({"name": "on_step"}, False)
    hook = HookContext.from_callable(after=len)
    channel.register(hook)
    rows = {phase: (_record.Stats(),) for phase in ("before", "after")}
    times = iter(range(1000))
    recorder = _record.Recorder(
        lambda hooks, phase: rows[phase], lambda: next(times)
    )
    _dispatch.set_recorder(channel, recorder)
    for _ in range(3):
        with channel.begin(()):
            pass
    _dispatch.set_recorder(channel, None)
    with channel.begin(()):
        pass
    # The clock is asked at both ends of the scope, its body and each callback.
    assert (recorder.scopes.count, recorder.scopes.sum) == (3, 21)
    assert [rows[phase][0].sum for phase in rows] == [3, 3]
    loaded = pickle.loads(pickle.dumps(channel))
    assert type(loaded).__module__ == "robo_orchard_core.utils.hook"
    assert len(copy.deepcopy(channel)) == len(loaded) == 1


check_dispatch()
check_profiling()
check_args(_args.PipelineHookArgs)
assert _fast_dataclass.unsupported_reason(Args) is None
_fast_dataclass.enable(Args)
Args.copy_with_updates = _fast_dataclass.copying(Args, Args.copy_with_updates)
for _ in range(1000):
    check_args(Args)
_fast_dataclass.disable(Args)
assert Args(accelerator=1) == Args(1)
print("works with CPython", sys.version.split()[0])
