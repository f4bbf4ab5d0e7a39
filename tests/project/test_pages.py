"""The Python blocks of README and documentation run as they stand."""

import re
import sys
from pathlib import Path

import pytest

from helpers import processes

ROOT = Path(__file__).parents[2]


def run_page(name, *file, cwd=None):
    page = str(ROOT / name)
    command = [sys.executable, "-m", "helpers.run_page", page, *map(str, file)]
    return processes.run(command, cwd=cwd)[0]


def test_readme():
    lines = run_page("README.md").splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"step 2: loss \d+\.\d{3}", lines[-1])


def test_quickstart():
    out = run_page("docs/quickstart.md")
    # The page shows what its first block prints.
    shown, _, rest = out.partition("after step 1\n")
    shown = "".join(f"    {line}\n" for line in shown.splitlines())
    page = (ROOT / "docs" / "quickstart.md").read_text()
    assert shown.count("step") == 5 and f"{shown}    after step 1\n" in page
    assert "0 GradientClippingHook" in rest
    assert rest.endswith("step 0: 1.000\nstep 2: 0.333\n")
    assert len(re.findall(r"norm before clipping: \d+\.\d{3}", rest)) == 3


def test_clipping_and_profiling():
    assert run_page("docs/clipping.md") == ""
    assert "share" in run_page("docs/profiling.md")


def shown_on(name):
    """The lines of output that a page shows."""
    page = (ROOT / name).read_text()
    return re.findall(r"^    (the .*)$", page, re.M)


def test_accelerate_on_one_process_and_two(tmp_path):
    program = tmp_path / "ranks.py"
    out = run_page("docs/accelerate.md", program)
    assert out.splitlines() == shown_on("docs/accelerate.md")
    for options, kind in ((), "Parameter"), (("fsdp2",), "DTensor"):
        out, _ = processes.run([*processes.TWO_RANKS, str(program), *options])
        lines = [f"rank {rank}: {kind}, norm 0.5708" for rank in range(2)]
        assert sorted(out.splitlines()) == lines


def test_trainers(tmp_path):
    pytest.importorskip("lightning")
    pytest.importorskip("transformers")
    out = run_page("docs/trainers.md", cwd=tmp_path)
    assert len(re.findall(r"norm before clipping: \d\.\d{3}", out)) == 4


@pytest.mark.slow
def test_the_test_of_a_budget(tmp_path):
    run_page("docs/budgets.md", tmp_path / "test_hooks.py")
    command = [sys.executable, "-m", "pytest", "-q", "test_hooks.py"]
    out, _ = processes.run(command, tmp_path, timeout=300)
    assert "1 passed" in out


def test_every_page_with_python_is_run():
    """robo_orchard_lab.md is run in the environment of tests/downstream."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    found = {page.stem for page in pages if "```python" in page.read_text()}
    assert found == {
        *("README", "quickstart", "clipping", "profiling", "budgets"),
        *("accelerate", "trainers", "robo_orchard_lab"),
    }
