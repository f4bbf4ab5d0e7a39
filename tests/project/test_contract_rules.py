"""Each rule of docs/contract.md is pinned by a test that names it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RULES = re.findall(
    r"^- \*\*([KF]\d+)\*\* ", (ROOT / "docs/contract.md").read_text(), re.M
)


def test_every_rule_is_named_and_no_other():
    kept = [f"K{number}" for number in range(1, 13)]
    assert RULES == kept + [f"F{number}" for number in range(1, 12)]
    named = {
        rule
        for file in (ROOT / "tests").rglob("test_*.py")
        for rule in re.findall(r'mark\.contract\("(.*?)"', file.read_text())
    }
    assert named == set(RULES)
