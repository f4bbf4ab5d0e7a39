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


@dataclass(init=False)
class WrittenByHand:
    """As RoboOrchardLab 0.5's."""

    accelerator: object
    epoch_id: int = 0
    batch: object = None

    def __init__(self, accelerator, epoch_id=0, batch=None, dropped=None):
        """Drops one argument."""
        del dropped
        self.accelerator = accelerator
        self.epoch_id = epoch_id
        self.batch = batch

    @property
    def dropped(self):
        """Cannot be read."""
        raise RuntimeError("dropped")

    copy_with_updates = Args.copy_with_updates


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
    channel = _dispatch.lab_channel({"name": "on_step"}, False)
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
    # The clock is read at both ends of the scope, its body and each callback.
    assert (recorder.scopes.count, recorder.scopes.sum) == (3, 21)
    assert [rows[phase][0].sum for phase in rows] == [3, 3]
    loaded = pickle.loads(pickle.dumps(channel))
    assert type(loaded).__module__ == "robo_orchard_core.utils.hook"
    assert len(copy.deepcopy(channel)) == len(loaded) == 1


class Hooks:
    """What `begin` is a method of, in place of PipelineHooks."""

    begin = _dispatch.begin

    def __init__(self, channel):
        """Has one channel."""
        self.hooks = {"on_step": channel}


def check_patched_begin(channel, changed):
    """A `begin` that is patched into the class of a channel, or its base."""
    hooks = Hooks(channel)
    for number in range(1500):  # CPython 3.13 counts 1,000 changes of a class.
        with hooks.begin("on_step", number) as arg:
            assert arg == number
        changed.begin = lambda self, arg, n=number: (n, arg)
        for _ in range(2):
            assert hooks.begin("on_step", 1) == (number, 1)
        del changed.begin


def python_functions(call):
    """How many Python functions a call runs."""
    calls = []
    sys.setprofile(lambda frame, event, arg: calls.append(event == "call"))
    call()
    sys.setprofile(None)
    return sum(calls) - 1


def check_later_changes(cls):
    """What is changed in a class, or in its `__init__`, after `enable`."""
    init = cls.__init__
    for number in range(1500):  # CPython 3.13 counts 1,000 changes of a class.
        assert cls(accelerator=1).epoch_id == 0
        cls.__init__ = lambda self, accelerator: None
        assert vars(cls(accelerator=1)) == {}
        cls.__init__ = init
        cls.epoch_id = property(lambda self, n=number: n, lambda self, n: None)
        assert cls(accelerator=1).epoch_id == number
        cls.epoch_id = 0
        defaults, init.__defaults__ = init.__defaults__, (7, 8, 9)
        assert cls(accelerator=1).epoch_id in (7, 8)
        init.__defaults__ = defaults
    assert cls(accelerator=1).epoch_id == 0


def check_quick(cls):
    """A class while it is enabled, and after."""
    original = cls.copy_with_updates
    assert _fast_dataclass.unsupported_reason(cls) is None
    _fast_dataclass.enable(cls)
    cls.copy_with_updates = _fast_dataclass.copying(cls, original)
    for _ in range(1000):
        check_args(cls)
    made = cls(accelerator=1)
    assert python_functions(lambda: cls(accelerator=1, batch=2)) == 0
    assert python_functions(lambda: made.copy_with_updates(batch=2)) == 0
    if cls is WrittenByHand:
        assert vars(cls(accelerator=1, dropped=2)) == vars(made)
        try:
            made.copy_with_updates(nope_not=1, dropped=3)
        except AttributeError as error:
            assert "nope_not" in str(error)
        try:
            made.copy_with_updates(dropped=3, nope_not=1)
        except RuntimeError as error:
            assert str(error) == "dropped"
        else:
            raise AssertionError("no error of the property")
    check_later_changes(cls)
    _fast_dataclass.disable(cls)
    assert cls(accelerator=1) == cls(1)
    assert python_functions(lambda: cls(accelerator=1)) == 1


check_dispatch()
check_profiling()
own = _dispatch.HookContextChannel("on_step")
in_place = _dispatch.lab_channel({"name": "on_step"}, False)
check_patched_begin(own, type(own))
check_patched_begin(in_place, type(in_place))
check_patched_begin(in_place, type(own))
check_args(_args.PipelineHookArgs)
for each in (Args, WrittenByHand):
    check_quick(each)
print("works with CPython", sys.version.split()[0])
