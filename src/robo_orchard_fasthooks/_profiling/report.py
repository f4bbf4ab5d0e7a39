"""The reports of a HookProfiler: tables and a bar chart."""

from pathlib import Path
from statistics import median
from textwrap import shorten

from robo_orchard_fasthooks._profiling.profile import CallbackTimes, Profile


def table(profile: Profile) -> str:
    """Lists the callbacks, slowest first, and then the channels."""
    hooks = _slowest_first(profile)
    spent = sum(row["sum"] for _, row in hooks) or 1
    lines = ["hook|at|share|of scope|count|mean|p50|p95|max".split("|")]
    for channel, row in hooks:
        lines.append(
            [
                row["hook"],
                f"{channel}.{row['phase']}",
                f"{row['sum'] / spent:.1%}",
                f"{row['share_of_scope']:.1%}",
                f"{row['count']:,}",
                *map(_time, (row["mean"], row["p50"], row["p95"], row["max"])),
            ]
        )
    channels = [["channel", "scopes", "mean", "body", "hooks"]]
    for name, times in profile.items():
        whole = times["scope"]["sum"] or 1
        channels.append(
            [
                name,
                f"{times['scope']['count']:,}",
                _time(times["scope"]["mean"]),
                f"{times['body']['sum'] / whole:.1%}",
                f"{sum(row['sum'] for row in times['hooks']) / whole:.1%}",
            ]
        )
    return f"{_aligned(lines, 2)}\n\n{_aligned(channels, 1)}"


def table_of_ranks(ranks: list[Profile]) -> str:
    """Compares the mean times of each callback on several ranks."""
    means: dict[tuple[str, str, str], dict[int, float]] = {}
    for rank, profile in enumerate(ranks):
        for channel, row in _slowest_first(profile):
            key = (row["hook"], channel, row["phase"])
            means.setdefault(key, {})[rank] = row["mean"]
    lines = [["hook", "at", "min", "median", "max", "slowest", "ranks"]]
    order = sorted(means.items(), key=lambda item: -max(item[1].values()))
    for (hook, channel, phase), by_rank in order:
        times = by_rank.values()
        lines.append(
            [
                hook,
                f"{channel}.{phase}",
                *(_time(each(times)) for each in (min, median, max)),
                f"rank {max(by_rank, key=lambda rank: by_rank[rank])}",
                str(len(by_rank)),
            ]
        )
    return _aligned(lines, 2)


def draw(profile: Profile, path: str | Path) -> None:
    """Draws the total time of each hook, with a bar for each phase."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError as error:
        raise ImportError(
            "HookProfiler.plot needs matplotlib: pip install matplotlib"
        ) from error

    sums: dict[tuple[str, str], dict[str, float]] = {}
    for channel, row in _slowest_first(profile):
        by_phase = sums.setdefault((channel, row["hook"]), {})
        by_phase[row["phase"]] = row["sum"] / 1e9
    names = [
        f"{shorten(hook, 40)}\n{channel}".replace("$", r"\$")
        for channel, hook in reversed(sums)
    ]
    height = 1.5 + 0.5 * len(names)
    # Without pyplot, which would need a display, and keep the figure open.
    figure = Figure(figsize=(8, height), dpi=150, layout="constrained")
    axes = figure.subplots()
    bars_of = [("before", "#E69F00", 0.2), ("after", "#0072B2", -0.2)]
    for phase, color, offset in bars_of:
        values = [times.get(phase, 0.0) for times in reversed(sums.values())]
        places = [index + offset for index in range(len(names))]
        bars = axes.barh(places, values, 0.4, color=color, label=phase)
        shown = [_time(value * 1e9) if value else "" for value in values]
        axes.bar_label(bars, shown, padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.xaxis.set_major_formatter(EngFormatter("s"))
    axes.margins(x=0.12)
    axes.set_xlabel("total time")
    axes.grid(axis="x", alpha=0.4)
    axes.set_axisbelow(True)
    axes.legend()
    figure.savefig(path)


def _slowest_first(profile: Profile) -> list[tuple[str, CallbackTimes]]:
    hooks = [(name, row) for name in profile for row in profile[name]["hooks"]]
    return sorted(hooks, key=lambda pair: -pair[1]["sum"])


def _time(ns: float) -> str:
    for unit, size in (("ns", 1), ("µs", 1e3), ("ms", 1e6)):
        if ns < 999.5 * size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns / 1e9:.3g} s" if ns < 999.5e9 else f"{ns / 1e9:,.0f} s"


def _aligned(rows: list[list[str]], left: int) -> str:
    # A name may have line breaks.
    rows = [[" ".join(cell.splitlines()) for cell in row] for row in rows]
    columns = [
        [
            f"{cell:{'<' if index < left else '>'}{max(map(len, column))}}"
            for cell in column
        ]
        for index, column in enumerate(zip(*rows, strict=True))
    ]
    lines = zip(*columns, strict=True)
    return "\n".join("  ".join(line).rstrip() for line in lines)
