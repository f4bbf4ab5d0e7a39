"""Memory, lifetimes, threads and shutdown; each case is a process of its own.

The scripts in `isolated` say what they check. A case exits with a message when
it finds a leak, and writes nothing when it does not.
"""

import ast
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

TIMEOUT = 120
SCRIPTS = sorted(Path(__file__).with_name("isolated").glob("*.py"))


def cases_of(script):
    return [
        node.name
        for node in ast.parse(script.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and any("case" in ast.dump(each) for each in node.decorator_list)
    ]


def run(script, case):
    return subprocess.run(
        [sys.executable, script, case],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


@pytest.fixture(scope="module")
def results(request):
    """The cases that were asked for, two at a time from the first one on."""
    asked_for = [
        (item.callspec.params["script"], item.callspec.params["case"])
        for item in request.session.items
        if item.module is request.module
    ]
    with ThreadPoolExecutor(2) as pool:
        yield {each: pool.submit(run, *each) for each in asked_for}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(
    ("script", "case"),
    [
        pytest.param(script, case, id=f"{script.stem}-{case}")
        for script in SCRIPTS
        for case in cases_of(script)
    ],
)
def test_nothing_is_left_behind(results, script, case):
    done = results[script, case].result()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
