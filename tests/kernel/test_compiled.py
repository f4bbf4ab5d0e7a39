"""The kernel's machine code for three architectures; it does not run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PRODUCT = {
    "float32": "FMUL",
    # Not HMUL2.BF16, which rounds subnormals in another way than torch.
    "bfloat16": "FMUL",
    # Half's products are exact in float32, so that both round alike.
    "float16": "HMUL2",
    "float64": "DMUL",
}


@pytest.fixture(scope="module")
def kernels():
    # Triton would interpret, where the variable is set.
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    program = Path(__file__).with_name("compiled.py")
    run = subprocess.run(
        [sys.executable, program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    found = [json.loads(line) for line in run.stdout.splitlines()]
    return {(k["architecture"], k["dtype"], k["clamps"]): k for k in found}


@pytest.mark.parametrize("clamps", [False, True], ids=["scale", "clamp"])
@pytest.mark.parametrize("dtype", PRODUCT)
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_code(kernels, architecture, dtype, clamps):
    kernel = kernels[architecture, dtype, clamps]
    found = kernel["instructions"]
    # No spills: nothing on the stack, no local loads and stores.
    assert kernel["stack"] == 0
    assert not [name for name in found if name.startswith(("LDL", "STL"))]
    # So few that a multiprocessor holds 1,536 of its 2,048 threads.
    assert kernel["registers"] <= 40
    assert found["LDG.E.128"] >= 1
    assert found["STG.E.128"] == found["LDG.E.128"]
    products = {
        name for name in found if name.startswith(("FMUL", "HMUL", "DMUL"))
    }
    assert products == (set() if clamps else {PRODUCT[dtype]})
