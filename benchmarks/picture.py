"""Draws the report's picture: bars on a logarithmic scale."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from compare import FLOOR, OURS, UPSTREAM, Row, duration, title

# Of Okabe and Ito: told apart by all eyes, and by lightness alone.
COLORS = {OURS: "#0072B2", UPSTREAM: "#E69F00", FLOOR: "#222222"}
OTHERS = "#BBBBBB"
LEGEND = {
    "this package": COLORS[OURS],
    "RoboOrchardLab, upstream": COLORS[UPSTREAM],
    "other systems": OTHERS,
    "floor: the same without hooks, in Python loops": COLORS[FLOOR],
}


def draw(rows: list[Row], about: str, path: Path) -> None:
    """Draws a panel of bars for each work: hooks on the left, clips right."""
    # A figure that is not pyplot's needs no display and no closing.
    figure = Figure(figsize=(8, 6.4), dpi=200, layout="constrained")
    halves = figure.subfigures(1, 2)
    for half, clips in zip(halves, (False, True), strict=True):
        panels: dict[str, list[Row]] = {}
        for row in rows:
            if row.work.startswith("clip") == clips:
                panels.setdefault(row.work, []).append(row)
        heights = [len(bars) + 1.6 for bars in panels.values()]
        grid = half.subplots(len(panels), sharex=True, height_ratios=heights)
        for axes, bars in zip(grid, panels.values(), strict=True):
            draw_bars(axes, bars)
        times = [row.ns for bars in panels.values() for row in bars]
        # Room on the right for numbers.
        axes.set_xlim(min(times) / 4e9, max(times) * 6e-9)
    handles = [Patch(color=color, label=key) for key, color in LEGEND.items()]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=4, fontsize=7.5
    )
    figure.supxlabel(
        "time, logarithmic; shorter is faster\n" + fill(about, 130),
        fontsize=7,
    )
    figure.savefig(path, format="png")


def draw_bars(axes: Axes, bars: list[Row]) -> None:
    """Draws one piece of work, the quickest on top."""
    bars = sorted(bars, key=lambda row: -row.ns)
    drawn = axes.barh(
        [row.who for row in bars],
        [row.ns / 1e9 for row in bars],
        color=[COLORS.get(row.who, OTHERS) for row in bars],
        height=0.78,
    )
    numbers = axes.bar_label(
        drawn, [duration(row.ns) for row in bars], padding=3, fontsize=7
    )
    for number in numbers:  # Over the grid.
        number.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 0.5})
    axes.set_xscale("log")
    name = title(bars[0].work)
    axes.set_title(name, loc="left", fontsize=8, weight="bold", pad=2)
    axes.set_ylim(-0.6, len(bars) - 0.4)
    axes.tick_params(labelsize=7, length=0)
    axes.xaxis.set_major_locator(LogLocator())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter("s"))
    axes.grid(axis="x", alpha=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
