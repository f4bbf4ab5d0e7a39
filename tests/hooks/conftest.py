"""Fixtures of the tests of hooks, on each implementation."""

import gc

import pytest


@pytest.fixture
def collector_off():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def hooks(lib):
    return lib.PipelineHooks()


@pytest.fixture
def channel(lib):
    return lib.HookContextChannel("on_step")


@pytest.fixture
def args(lib):
    return lib.PipelineHookArgs(accelerator=None)
