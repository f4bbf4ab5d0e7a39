"""How the package builds: without a compiler, and for debugging."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def build(folder, **environment):
    return subprocess.run(
        [
            *(sys.executable, "setup.py", "build_ext"),
            *("--build-lib", folder / "lib", "--build-temp", folder / "temp"),
        ],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_without_a_compiler_it_says_what_to_install(tmp_path):
    result = build(tmp_path, CC="no-such-compiler")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert "the C compiler 'no-such-compiler' could not be found" in last
    assert "apt-get install gcc" in last and "xcode-select --install" in last


@pytest.mark.parametrize(("debug", "traced"), [("0", False), ("1", True)])
def test_debug_traces_lines(tmp_path, debug, traced):
    """Line events of the Cython code reach a tracer in a debug build only."""
    copy = tmp_path / "copy"
    for name in ("setup.py", "csrc"):
        target = copy / name
        source = ROOT / name
        target.parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", source, target], check=True)
    result = subprocess.run(
        [
            *(sys.executable, "setup.py", "build_ext"),
            *("--build-lib", tmp_path / "lib"),
        ],
        cwd=copy,
        env={**os.environ, "ROBO_ORCHARD_FASTHOOKS_DEBUG": debug},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    script = """
import sys, types
package = types.ModuleType("robo_orchard_fasthooks")
package.__path__ = [sys.argv[1] + "/robo_orchard_fasthooks"]
sys.modules["robo_orchard_fasthooks"] = package
from robo_orchard_fasthooks._dispatch import HookContextChannel
channel = HookContextChannel("on_step")
seen = set()
def trace(frame, event, arg):
    if frame.f_code.co_filename.endswith("_dispatch.pyx"):
        seen.add(frame.f_code.co_name)
    return trace
sys.settrace(trace)
with channel.begin(None):
    pass
sys.settrace(None)
print("_enter" in seen, "torch" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "lib"],
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == [str(traced), "False"], result.stderr
