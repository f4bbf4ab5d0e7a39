"""Each rule of docs/contract.md is pinned by a test that names it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RULES = re.findall(
    r"^- \*\*([KF]\d+)\*\* ", (ROOT / "docs/contract.md").read_text(), re.M
)


def rules_of(source):
    """The rules that the marker `contract` names in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) == "pytest.mark.contract":
                (rule,) = node.args
                yield ast.literal_eval(rule)


def test_every_rule_is_named_and_no_other():
    kept = [f"K{number}" for number in range(1, 13)]
    assert RULES == kept + [f"F{number}" for number in range(1, 12)]
    files = (ROOT / "tests").rglob("test_*.py")
    named = {rule for file in files for rule in rules_of(file.read_text())}
    assert named == set(RULES)
