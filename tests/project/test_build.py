"""How the package builds: without a compiler, and for debugging."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import processes

ROOT = Path(__file__).parents[2]


def build(out, folder=ROOT, **environment):
    return subprocess.run(
        [
            *(sys.executable, "setup.py", "build_ext"),
            *("--build-lib", out / "lib", "--build-temp", out / "temp"),
        ],
        cwd=folder,
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


SCRIPT = """
import sys, types
package = types.ModuleType("robo_orchard_fasthooks")
package.__path__ = [f"{each}/robo_orchard_fasthooks" for each in sys.argv[1:]]
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
print("_enter" in seen)
"""


@pytest.mark.slow
def test_debug_traces_lines(tmp_path):
    """Line events of the Cython code reach a tracer in a debug build only.

    Also where the other kind was built before.
    """
    for folder in ("csrc", "src"):
        ignored = shutil.ignore_patterns("*.so")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "setup.py", tmp_path)
    for debug, traced in (("1", True), ("0", False)):
        result = build(
            tmp_path / "out",
            folder=tmp_path,
            ROBO_ORCHARD_FASTHOOKS_DEBUG=debug,
        )
        assert result.returncode == 0, result.stderr
        folders = (tmp_path / "out" / "lib", tmp_path / "src")
        out, _ = processes.run([sys.executable, "-c", SCRIPT, *folders])
        assert out == f"{traced}\n"


def test_without_compiled_modules_it_says_how_to_build(tmp_path):
    shutil.copytree(
        ROOT / "src",
        tmp_path,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )
    result = subprocess.run(
        [sys.executable, "-c", "import robo_orchard_fasthooks"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: robo_orchard_fasthooks has no comp")
    assert "pip install ." in last
