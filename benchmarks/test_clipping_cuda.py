"""What clipping costs on a GPU, ours against RoboOrchardLab 0.4.0's hook.

    pytest benchmarks/test_clipping_cuda.py -s

Host time is that of the thread that launches kernels, device time that between
CUDA events; launches and waits are counted by torch's profiler and torch
itself. Both sides clip the same gradients, below and above the threshold, in
one interleaved run, and medians are compared. The bounds on launches are those
that tests/clipping/test_cuda_trace.py holds by a model.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gpu_measured as measured

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA GPU"
    ),
]
MIXTURES = [title for title in measured.CASES if " and " in title]
ONE_DTYPE = [title for title in measured.CASES if title not in MIXTURES]


@pytest.fixture(params=measured.LIMITS)
def side(request: Any) -> str:
    """The side of its bound on which the norm is."""
    return str(request.param)


@pytest.fixture
def three(side: str, title: str) -> list[measured.Side]:
    """Upstream's hook, and ours without and with a CUDA graph."""
    return measured.sides(measured.CASES[title], measured.LIMITS[side])


@pytest.fixture
def both(three: list[measured.Side]) -> list[measured.Side]:
    """Upstream's hook, and ours without a CUDA graph."""
    return three[:2]


@pytest.mark.parametrize("title", ["1,000 x 64, float32"])
def test_host_time(both: Any, title: str) -> None:
    """For one dtype, launching takes the thread no longer than upstream's."""
    theirs, mine = measured.medians(both, measured.host_us)
    print(f"\n{title}: host {theirs:.0f} us, ours {mine:.0f} us")
    assert mine <= theirs


@pytest.mark.parametrize("title", MIXTURES)
def test_host_time_of_mixtures(both: Any, title: str) -> None:
    """For two dtypes, it takes less: a launch for each is what it saves."""
    theirs, mine = measured.medians(both, measured.host_us)
    print(f"\n{title}: host {theirs:.0f} us, ours {mine:.0f} us")
    assert mine < 0.9 * theirs


@pytest.mark.parametrize("title", ONE_DTYPE)
def test_launches(both: Any, title: str) -> None:
    """For one dtype, no more than upstream's."""
    theirs, mine = (measured.launches(side.clip) for side in both)
    print(f"\n{title}: {theirs} launches, ours {mine}")
    assert 0 < mine <= theirs


@pytest.mark.parametrize("title", MIXTURES)
def test_launches_of_mixtures(both: Any, title: str) -> None:
    """For two dtypes, a tenth of upstream's."""
    theirs, mine = (measured.launches(side.clip) for side in both)
    print(f"\n{title}: {theirs} launches, ours {mine}")
    assert 0 < mine <= theirs / 10


@pytest.mark.parametrize("title", measured.CASES)
def test_no_waiting(both: Any, title: str) -> None:
    """The host never waits for the device."""
    _, ours = both
    with measured.sync_debug_mode("error"):
        ours.clip()


@pytest.mark.parametrize("title", measured.CASES)
def test_device_time(both: Any, title: str) -> None:
    """The device takes no longer than for upstream's, but for 5 % of noise."""
    theirs, mine = measured.medians(both, measured.device_us, rounds=21)
    print(f"\n{title}: device {theirs:.0f} us, ours {mine:.0f} us")
    assert theirs >= 0.95 * mine


@pytest.mark.parametrize("title", ["1,000 x 64, float32"])
def test_host_time_of_a_replay(three: Any, title: str) -> None:
    """A third of upstream's; a fifth is the aim."""
    theirs, _, replayed = measured.medians(three, measured.host_us)
    print(f"\n{title}: host {theirs:.0f} us, replayed {replayed:.0f} us")
    assert replayed <= theirs / 3


@pytest.mark.parametrize("title", ["60 x 16.8M, float32"])
def test_device_time_of_a_replay(three: Any, title: str, side: str) -> None:
    """Gradients below the bound are read once; upstream moves 3 times that."""
    theirs, _, replayed = measured.medians(three, measured.device_us, 21)
    print(f"\n{title}: device {theirs:.0f} us, replayed {replayed:.0f} us")
    assert replayed <= {"below": 0.40, "above": 1.02}[side] * theirs
