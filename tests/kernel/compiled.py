"""Compiles the Triton kernel for GPUs that are not here, and reads the code.

Writes one line of JSON for each architecture, dtype and way of clipping: its
registers, its bytes of stack (of which spills are), and how often each
instruction that loads, stores or multiplies occurs.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from robo_orchard_fasthooks._cuda_graph import kernel as clipping_kernel
from robo_orchard_fasthooks._cuda_graph.tables import OPTIONS

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTIONS = re.compile(
    r"\b((?:LDG|STG|LDL|STL|FMUL|HMUL2|HFMA2|DMUL|F2FP|F2F)(?:\.[A-Z0-9_]+)*)"
)
NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def tool(name, *args):
    return subprocess.run(
        [TOOLS / name, *args], capture_output=True, text=True, check=True
    ).stdout


def compiled(architecture, dtype, clamps):
    """The kernel as Tables launches it, with an aligned table."""
    kind = clipping_kernel.DTYPES[f"torch.{dtype}"]
    number = "fp64" if clamps else NAMES.get(dtype, "fp64")
    constants = {
        "T": kind,
        "CLAMPS": clamps,
    }
    source = ASTSource(
        fn=clipping_kernel.clip_kernel,
        signature={"table": "*i64", "rows": "i32", "number": f"*{number}"}
        | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        attrs={(0,): [["tt.divisibility", 16]]},
    )
    target = GPUTarget("cuda", architecture, 32)
    kernel = triton.compile(source, target=target, options=OPTIONS)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        usage = tool("cuobjdump", "--dump-resource-usage", cubin)
        code = tool("nvdisasm", "-c", cubin)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return {
        "architecture": architecture,
        "dtype": dtype,
        "clamps": clamps,
        "registers": int(registers),
        "stack": int(stack),
        "instructions": Counter(INSTRUCTIONS.findall(code)),
    }


def main():
    os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp()
    kinds = itertools.product(
        (80, 90, 100), (*NAMES, "float64"), (False, True)
    )
    for kind in kinds:
        print(json.dumps(compiled(*kind)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
