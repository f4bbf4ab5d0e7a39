"""The implementations of the hooks that the behaviour tests run on.

A test that asks for the fixture `lib` runs on RoboOrchardLab's classes, which
are the oracle of what this package keeps, and on this package's. The marker
`also_on` adds others of the names below.
"""

from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace

import robo_orchard_fasthooks
import standin
import upstream
from robo_orchard_fasthooks import _dispatch, _dynamo, lab
from robo_orchard_fasthooks.profiler import HookProfiler

UPSTREAM = SimpleNamespace(
    name="upstream",
    **{
        name: getattr(module, name)
        for module in (upstream.mixin, upstream.grad_clip, upstream.optimizer)
        for name in module.__all__
    },
    HookContextChannel=upstream.mixin.HookContextChannel,
    RemoveableHandle=upstream.mixin.RemoveableHandle,
)
OURS = SimpleNamespace(
    name="ours",
    **{
        name: getattr(robo_orchard_fasthooks, name)
        for name in robo_orchard_fasthooks.__all__
    },
)


def changed(implementation, **others):
    return SimpleNamespace(**{**vars(implementation), **others})


@contextmanager
def installed(imported):
    """RoboOrchardLab's classes with `lab.install()`."""
    with imported() as theirs, lab.install():
        yield changed(
            theirs,
            name="ours",
            HookContextChannel=_dispatch.LabChannel,
            OptimizerHook=lambda cfg=None: theirs.OptimizerHook(cfg),
            RemoveableHandle=_dispatch.RemoveableHandle,
        )


@contextmanager
def profiled(**settings):
    """This package, with a profiler that is started with the hooks."""

    class Profiled(robo_orchard_fasthooks.PipelineHooks):
        def __init__(self, cfg=None):
            super().__init__(cfg)
            self.profiler = HookProfiler(self, **settings)
            self.profiler.start()

    yield changed(OURS, PipelineHooks=Profiled)


@contextmanager
def twins():
    """This package, with the scopes that torch.compile traces."""

    class Channel(_dispatch.HookContextChannel):
        begin = _dynamo._scope

    class Hooks(robo_orchard_fasthooks.PipelineHooks):
        begin = _dynamo._begin

        def __init__(self, cfg=None):
            super().__init__(cfg)
            self.hooks = {name: Channel(name) for name in self.hooks}

    yield changed(OURS, PipelineHooks=Hooks, HookContextChannel=Channel)


INSTALLED = ("installed", "installed 0.5")
PROFILED = ("profiled", "profiled ranges")
IMPLEMENTATIONS = {
    "upstream": partial(nullcontext, UPSTREAM),
    "ours": partial(nullcontext, OURS),
    "installed": partial(installed, partial(nullcontext, UPSTREAM)),
    "installed 0.5": partial(installed, standin.imported),
    "profiled": profiled,
    "twins": twins,
    "profiled ranges": partial(profiled, record_function=True),
}
