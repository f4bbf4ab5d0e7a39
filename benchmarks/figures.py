"""Writes what was measured into README.md and the documentation.

    python benchmarks/figures.py [--check]

`report.py` measures, and keeps the results in report/results.json. A block of
a page that begins with `<!-- figures: NAME -->` and ends with
`<!-- end of figures -->` holds a table made of them. With --check, nothing is
written, and a page that is out of date makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "TABLES", "filled", "pages"]

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("report") / "results.json"
OURS, UPSTREAM = "this package", "RoboOrchardLab"
_BLOCK = re.compile(
    r"(<!-- figures: ([\w-]+) -->\n).*?(<!-- end of figures -->)", re.DOTALL
)

Results = dict[str, Any]


def time(ns: float) -> str:
    """A time with its unit, in three significant digits."""
    for unit in ("ns", "µs", "ms"):
        if ns < 999.5 or unit == "ms":
            break
        ns /= 1000
    digits = 2 if ns < 9.995 else 1 if ns < 99.95 else 0
    return f"{ns:,.{digits}f} {unit}"


def times(ratio: float) -> str:
    """A ratio of times: 12x, 5.6x, 1.03x."""
    digits = 2 if ratio < 1.995 else 1 if ratio < 9.95 else 0
    return f"{ratio:.{digits}f}x"


def columns(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table whose first column is text and the rest numbers."""
    head = list(head)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def hooks(results: Results, works: Iterable[str]) -> list[list[str]]:
    """Rows of hooks and models: RoboOrchardLab, this package, the ratio."""
    found = {(row["work"], row["who"]): row for row in results["hooks"]}
    return [
        [
            work,
            time(found[work, UPSTREAM]["ns"]),
            time(found[work, OURS]["ns"]),
            times(found[work, UPSTREAM]["ratio"]),
        ]
        for work in works
    ]


COMPARED = ("work", UPSTREAM, OURS, "ratio")


def savings(results: Results) -> str:
    """The five rows of the README."""
    works = {
        "begin, 4 hooks": "`begin` with 4 hooks",
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
    rows = hooks(results, works)
    return columns(
        ("on one CPU core", *COMPARED[1:]),
        (
            [title, *row[1:]]
            for title, row in zip(works.values(), rows, strict=True)
        ),
    )


def compared(results: Results) -> str:
    """All that RoboOrchardLab does too."""
    works = [r["work"] for r in results["hooks"] if r["who"] == UPSTREAM]
    return columns(COMPARED, hooks(results, works))


def everyone(results: Results) -> str:
    """Every system and every piece of work."""
    return columns(
        ("work", "by", "time", f"to {OURS}"),
        (
            [row["work"], row["who"], time(row["ns"]), times(row["ratio"])]
            for row in results["hooks"]
        ),
    )


def clipping(results: Results) -> str:
    """The hook against RoboOrchardLab's, for many lists of gradients."""
    return columns(
        ("gradients", UPSTREAM, OURS, "ratio"),
        (
            [
                ", ".join(filter(None, (row["gradients"], row["side"]))),
                time(row["upstream_us"] * 1e3),
                time(row["ours_us"] * 1e3),
                times(row["ratio"]),
            ]
            for row in results["clipping"]
        ),
    )


def fsdp2(results: Results) -> str:
    """Sharded gradients on two ranks."""
    return columns(
        ("400 gradients of 64 elements, FSDP2", "baseline", OURS, "ratio"),
        (
            [
                row["clips"],
                time(row["baseline_us"] * 1e3),
                time(row["ours_us"] * 1e3),
                times(row["ratio"]),
            ]
            for row in results["fsdp2"]
        ),
    )


def end_to_end(results: Results) -> str:
    """Whole training steps of RoboOrchardLab's trainer."""
    return columns(
        ("trained by HookBasedTrainer", UPSTREAM, "with `install()`", "ratio"),
        (
            [
                row["model"],
                time(row["upstream_us"] * 1e3),
                time(row["ours_us"] * 1e3),
                times(row["ratio"]),
            ]
            for row in results["end_to_end"]
        ),
    )


TABLES: dict[str, Callable[[Results], str]] = {
    "savings": savings,
    "compared": compared,
    "everyone": everyone,
    "clipping": clipping,
    "fsdp2": fsdp2,
    "end-to-end": end_to_end,
    "machine": lambda results: results["machine"] + "\n",
    "peers": lambda results: "".join(
        f"- {name}: {what}\n" for name, what in results["peers"].items()
    ),
}


def filled(text: str, results: Results) -> str:
    """A page with each of its blocks made anew."""

    def block(found: re.Match[str]) -> str:
        table = TABLES[found[2]](results)
        return f"{found[1]}\n{table}\n{found[3]}"

    return _BLOCK.sub(block, text)


def pages() -> list[Path]:
    """The pages that may have blocks."""
    return [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def main() -> int:
    """Writes or checks the pages; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    status = 0
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := filled(text, results)) == text:
            continue
        if check:
            print(f"{page.relative_to(ROOT)} is out of date")
            status = 1
        else:
            page.write_text(new, encoding="utf-8")
            print(f"{page.relative_to(ROOT)} is written")
    return status


if __name__ == "__main__":
    sys.exit(main())
