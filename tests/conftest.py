from types import SimpleNamespace

import pytest

import robo_orchard_fasthooks
from helpers import upstream

LIBRARIES = {
    "upstream": SimpleNamespace(
        name="upstream",
        **{
            name: getattr(upstream.mixin, name)
            for name in upstream.mixin.__all__
        },
        **{
            name: getattr(upstream.grad_clip, name)
            for name in upstream.grad_clip.__all__
        },
        **{
            name: getattr(upstream.optimizer, name)
            for name in upstream.optimizer.__all__
        },
        HookContextChannel=upstream.mixin.HookContextChannel,
        RemoveableHandle=upstream.mixin.RemoveableHandle,
    ),
    "ours": SimpleNamespace(
        name="ours",
        **{
            name: getattr(robo_orchard_fasthooks, name)
            for name in robo_orchard_fasthooks.__all__
        },
    ),
}


@pytest.fixture(params=LIBRARIES)
def lib(request):
    """Each implementation in turn: upstream is the oracle of what is kept."""
    return LIBRARIES[request.param]


@pytest.fixture
def ours():
    return LIBRARIES["ours"]


@pytest.fixture
def theirs():
    return LIBRARIES["upstream"]


@pytest.fixture
def log():
    return []


@pytest.fixture
def hook(log):
    """Makes hooks that log; `fail` names the phases in which they raise."""

    def make(name, fail=()):
        def callback(phase):
            def run(args):
                log.append(f"{phase} {name}")
                if phase in fail:
                    raise ValueError(f"{phase} {name}")

            return run

        return robo_orchard_fasthooks.HookContext.from_callable(
            name=name, before=callback("before"), after=callback("after")
        )

    return make
