"""Fixtures of the tests of `lab.install`."""

import sys

import pytest

import upstream
from helpers.lab import NAMES, ORIGINALS, Args, found, python_frames
from robo_orchard_fasthooks import lab


@pytest.fixture(autouse=True)
def nothing_stays_replaced():
    yield
    installed = lab.status().installed
    lab.uninstall()  # That other tests do not fail too.
    assert not installed
    assert all(found(name) is ORIGINALS[name] for name in NAMES)
    assert python_frames(lambda: Args(accelerator=None)) == ["__init__"]


@pytest.fixture
def installed():
    with lab.install():
        yield


@pytest.fixture
def released(monkeypatch):
    """Says the version, which modules loaded by file do not."""
    monkeypatch.setattr(
        sys.modules["robo_orchard_lab"],
        "__version__",
        upstream.VERSION,
        raising=False,
    )
