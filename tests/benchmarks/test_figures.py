"""The figures of README and documentation are those that were measured."""

import json

import pytest

import figures

RESULTS = json.loads(figures.RESULTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", figures.pages(), ids=lambda page: page.stem)
def test_pages_hold_what_was_measured(page):
    text = page.read_text(encoding="utf-8")
    assert figures.filled(text, RESULTS) == text


def test_another_figure_is_noticed():
    page = figures.ROOT / "README.md"
    text = page.read_text(encoding="utf-8")
    other = json.loads(json.dumps(RESULTS))
    for row in other["hooks"]:
        row["ns"] *= 3
    assert figures.filled(text, other) != text


def test_every_table_is_quoted():
    text = "".join(page.read_text("utf-8") for page in figures.pages())
    for name in figures.TABLES:
        assert f"<!-- figures: {name} -->" in text


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0.5, "0.50 ns"),
        (91.2, "91.2 ns"),
        (999.4, "999 ns"),
        (999.6, "1.00 µs"),
        (12_340, "12.3 µs"),
        (4_567_000, "4.57 ms"),
        (1_234_567_000, "1,235 ms"),
    ],
)
def test_times(ns, text):
    assert figures.time(ns) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(1.034, "1.03x"), (1.996, "2.0x"), (9.94, "9.9x"), (9.96, "10x")],
)
def test_ratios(ratio, text):
    assert figures.times(ratio) == text
