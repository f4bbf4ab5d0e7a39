"""Writes what was measured into README.md and the documentation.

    python benchmarks/pages.py

`report.py` measures, and keeps the results in report/results.json. A block of
a page that begins with `<!-- figures: NAME -->` and ends with
`<!-- end of figures -->` holds a table made of them; the picture is drawn of
the same.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import picture
from compare import OURS, UPSTREAM, Row, duration, times, title

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("report") / "results.json"
PICTURE = ROOT / "docs" / "_static" / "benchmarks.png"
_BLOCK = re.compile(
    r"(<!-- figures: ([\w-]+) -->\n).*?(<!-- end of figures -->)", re.DOTALL
)
SAVINGS = {
    "begin, 4 hooks (from_callable)": "`begin` with 4 hooks",
    "training step": "hooks and arguments of a training step",
    "RoboOrchardLab's step, install()": (
        "the same in RoboOrchardLab's own classes, `install()`"
    ),
    "clip policy of 2,000 tensors, below threshold": (
        "clip 2,000 gradients, norm below the threshold"
    ),
    "clip policy of 2,000 tensors, above threshold": (
        "clip 2,000 gradients, norm above it"
    ),
}
"""The works that the README shows, and how it calls them."""


def table(head: tuple[str, str, str], found: list[Row], works: dict) -> str:
    """A Markdown table of works by RoboOrchardLab and by this package."""
    by_who = {(row.work, row.who): row for row in found}
    lines = [(*head, "ratio"), ("---", "---:", "---:", "---:")]
    for work, name in works.items():
        theirs, ours = by_who[work, UPSTREAM], by_who[work, OURS]
        lines.append(
            (name, *map(duration, (theirs.ns, ours.ns)), times(theirs.ratio))
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def blocks(results: dict[str, Any]) -> dict[str, str]:
    """What stands in the blocks of the pages, by name."""
    hooks = [Row(**row) for row in results["hooks"]]
    trained = [Row(**row) for row in results["end_to_end"]]
    works = {row.work: title(row.work) for row in hooks}
    models = {row.work: row.work for row in trained}
    return {
        "machine": results["machine"] + "\n",
        "savings": table(("on one CPU core", UPSTREAM, OURS), hooks, SAVINGS),
        "compared": table(("work", UPSTREAM, OURS), hooks, works),
        "end-to-end": table(
            ("trained by HookBasedTrainer", UPSTREAM, "with `install()`"),
            trained,
            models,
        ),
    }


def write() -> None:
    """Makes every block of every page anew."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    made = blocks(results)
    for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))):
        text = page.read_text(encoding="utf-8")
        filled = _BLOCK.sub(lambda m: f"{m[1]}\n{made[m[2]]}\n{m[3]}", text)
        page.write_text(filled, encoding="utf-8")
    rows = [Row(**row) for row in results["hooks"]]
    picture.draw(rows, results["machine"], PICTURE)


if __name__ == "__main__":
    write()
