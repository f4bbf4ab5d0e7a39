"""Fixtures that the tests in several folders use."""

import os

import pytest

from helpers.implementations import IMPLEMENTATIONS, UPSTREAM
from robo_orchard_fasthooks import HookContext

# 0.5 says so whenever one is made.
COMPATIBILITY = [
    pytest.mark.filterwarnings("ignore:GradientClippingHook is kept"),
    pytest.mark.filterwarnings("ignore:OptimizerHook does nothing"),
]


def pytest_generate_tests(metafunc):
    """Runs each test on the implementations that it is meant for."""
    marker = metafunc.definition.get_closest_marker("also_on")
    more = [
        pytest.param(name, marks=COMPATIBILITY if "0.5" in name else ())
        for name in (marker.args if marker else ())
    ]
    if "lib" in metafunc.fixturenames:
        metafunc.parametrize("lib", ["upstream", "ours", *more], indirect=True)
    elif "ours" in metafunc.fixturenames and more:
        metafunc.parametrize("ours", ["ours", *more], indirect=True)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """The temporary folder that all processes of pytest-xdist share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture
def lib(request):
    """Each implementation in turn; upstream is the oracle of what is kept."""
    with IMPLEMENTATIONS[request.param]() as implementation:
        yield implementation


@pytest.fixture
def ours(request):
    """This package, and the implementations that `also_on` names."""
    with IMPLEMENTATIONS[getattr(request, "param", "ours")]() as found:
        yield found


@pytest.fixture
def theirs():
    """RoboOrchardLab 0.4.0."""
    return UPSTREAM


@pytest.fixture
def log():
    """The names of the callbacks that ran, in order."""
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

        return HookContext.from_callable(
            name=name, before=callback("before"), after=callback("after")
        )

    return make
