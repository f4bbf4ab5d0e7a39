"""The Triton kernel without a GPU: interpreted, and compiled but not run.

    pip install --no-deps triton==3.9.0
    pytest tests/kernel

A plain run of pytest does not collect this folder, since Triton is large. The
interpreter is a stand-in for a GPU: it computes with NumPy, program after
program. It truncates float32 to bfloat16, where a GPU rounds to nearest; the
conversion here rounds as torch does.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"  # Read when a kernel is defined.

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from robo_orchard_fasthooks._cuda_graph.tables import Tables

_truncating = interpreter._convert_float


def _rounding(data, source, target, *args):
    if (source, target) == (tl.bfloat16, tl.float32):
        return data.astype(np.uint32) << 16
    if (source, target) == (tl.float32, tl.bfloat16):
        values = torch.from_numpy(np.ascontiguousarray(data))
        bits = values.to(torch.bfloat16).view(torch.int16)
        return bits.numpy().view(np.uint16)
    return _truncating(data, source, target, *args)


@pytest.fixture(autouse=True)
def rounds_to_nearest(monkeypatch):
    monkeypatch.setattr(interpreter, "_convert_float", _rounding)


@pytest.fixture(autouse=True)
def usable(monkeypatch):
    monkeypatch.setattr(Tables, "usable", True)
