"""The kernel's machine code for three architectures; it does not run.

As a program, it compiles the kernel and writes what it found as JSON.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from robo_orchard_fasthooks._cuda_graph import kernel as kernel_module
from robo_orchard_fasthooks._cuda_graph.tables import OPTIONS

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTIONS = re.compile(
    r"\b((?:LDG|STG|LDL|STL|FMUL|HMUL2|HFMA2|DMUL|F2FP|F2F)(?:\.[A-Z0-9_]+)*)"
)
ARCHITECTURES = (80, 90, 100)
PRODUCT = {
    "float32": ("FMUL", "fp32"),
    # Not HMUL2.BF16, which rounds subnormals in another way than torch.
    "bfloat16": ("FMUL", "bf16"),
    # Half's products are exact in float32, so that both round alike.
    "float16": ("HMUL2", "fp16"),
    "float64": ("DMUL", "fp64"),
}


def compiled(folder, architecture, dtype, clamps):
    """Registers, bytes of stack and instructions, as Tables launches it."""
    number = "fp64" if clamps else PRODUCT[dtype][1]
    constants = {
        "T": kernel_module.DTYPES[f"torch.{dtype}"],
        "CLAMPS": clamps,
    }
    source = ASTSource(
        fn=kernel_module.clip_kernel,
        signature={"table": "*i64", "rows": "i32", "number": f"*{number}"}
        | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        attrs={(0,): [["tt.divisibility", 16]]},
    )
    target = GPUTarget("cuda", architecture, 32)
    cubin = Path(folder, "kernel.cubin")
    cubin.write_bytes(
        triton.compile(source, target=target, options=OPTIONS).asm["cubin"]
    )
    usage, code = (
        subprocess.run(
            [TOOLS / tool, option, cubin],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for tool, option in [
            ("cuobjdump", "--dump-resource-usage"),
            ("nvdisasm", "-c"),
        ]
    )
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return int(registers), int(stack), Counter(INSTRUCTIONS.findall(code))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("compiled"))
    # Triton would interpret, where the variable is set.
    settings = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": folder}
    run = subprocess.run(
        [sys.executable, __file__, folder],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (run.returncode, run.stderr) == (0, "")
    return {tuple(kind): found for kind, found in json.loads(run.stdout)}


@pytest.mark.parametrize("clamps", [False, True], ids=["scale", "clamp"])
@pytest.mark.parametrize("dtype", PRODUCT)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_code(kernels, architecture, dtype, clamps):
    registers, stack, found = kernels[architecture, dtype, clamps]
    # No spills: nothing on the stack, no local loads and stores.
    assert stack == 0
    assert not [name for name in found if name.startswith(("LDL", "STL"))]
    # So few that a multiprocessor holds 1,536 of its 2,048 threads.
    assert registers <= 40
    assert found["LDG.E.128"] >= 1
    assert found["STG.E.128"] == found["LDG.E.128"]
    products = {
        name for name in found if name.startswith(("FMUL", "HMUL", "DMUL"))
    }
    assert products == (set() if clamps else {PRODUCT[dtype][0]})


if __name__ == "__main__":
    kinds = product(ARCHITECTURES, PRODUCT, (False, True))
    print(json.dumps([(k, compiled(sys.argv[1], *k)) for k in kinds]))
