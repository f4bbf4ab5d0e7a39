"""Fixtures of the tests of hooks, on each implementation."""

import copy
import gc
import pickle

import pytest


@pytest.fixture
def collector_off():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(
    params=["copy", "deepcopy", *range(pickle.HIGHEST_PROTOCOL + 1)]
)
def clone(request):
    """Copies an object: with `copy`, or by pickling it with a protocol."""
    if isinstance(request.param, str):
        return getattr(copy, request.param)
    return lambda given: pickle.loads(pickle.dumps(given, request.param))


@pytest.fixture
def hooks(lib):
    return lib.PipelineHooks()


@pytest.fixture
def channel(lib):
    return lib.HookContextChannel("on_step")


@pytest.fixture
def args(lib):
    return lib.PipelineHookArgs(accelerator=None)
