"""The report of a HookProfiler: tables, and a bar chart."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from statistics import median
from textwrap import shorten
from typing import TYPE_CHECKING

import torch.distributed as dist

from robo_orchard_fasthooks._profiling.rows import CallbackTimes, Profile

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["draw", "gather", "table", "table_of_ranks"]


def table(profile: Profile) -> str:
    """Lists the callbacks, slowest first, and then the channels.

    Args:
        profile (dict[str, ChannelProfile]): The times.

    Returns:
        str: The two tables.
    """
    hooks = _hooks(profile)
    spent = sum(row["sum"] for _, row in hooks) or 1
    device = any("device" in row for _, row in hooks)
    lines = [
        [
            *("hook", "at", "share", "of scope", "count", "mean", "p50"),
            *("p95", "max", *(["device"] if device else [])),
        ]
    ]
    for channel, row in hooks:
        lines.append(
            [
                row["hook"],
                f"{channel}.{row['phase']}",
                f"{row['sum'] / spent:.1%}",
                f"{row['share_of_scope']:.1%}",
                f"{row['count']:,}",
                *(_time(row["mean"]), _time(row["p50"])),
                *(_time(row["p95"]), _time(row["max"])),
                *([_device_time(row)] if device else []),
            ]
        )
    channels = [["channel", "scopes", "mean", "body", "hooks"]]
    for name, times in profile.items():
        whole = times["scope"]["sum"] or 1
        body = times["body"]["sum"] / whole
        in_hooks = sum(row["sum"] for row in times["hooks"]) / whole
        channels.append(
            [
                name,
                f"{times['scope']['count']:,}",
                _time(times["scope"]["mean"]),
                f"{body:.1%}",
                f"{in_hooks:.1%}",
            ]
        )
    return f"{_columns(lines, 2)}\n\n{_columns(channels, 1)}"


def table_of_ranks(ranks: list[Profile]) -> str:
    """Compares the mean times of each callback on several ranks.

    Args:
        ranks (list[dict[str, ChannelProfile]]): The times of each rank.

    Returns:
        str: The table: least, median and greatest mean, and the slowest rank.
    """
    means: dict[tuple[str, str, str], dict[int, float]] = {}
    for rank, profile in enumerate(ranks):
        for channel, row in _hooks(profile):
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
    return _columns(lines, 2)


def gather(
    profile: Profile, accelerator: Accelerator, timeout: float
) -> list[Profile]:
    """Gathers the times of all ranks through torch.distributed's store.

    Args:
        profile (dict[str, ChannelProfile]): The times of this rank.
        accelerator (Accelerator): Tells this rank and the number of ranks.
        timeout (float): How many seconds to wait for the other ranks.

    Returns:
        list[dict[str, ChannelProfile]]: The times of each rank, in order.

    Raises:
        RuntimeError: Not all ranks called this function in time.
    """
    global _calls
    if accelerator.num_processes == 1:
        return [profile]
    # Not a collective operation, which would hang if a rank did not join it.
    store = dist.distributed_c10d._get_default_store()
    ranks = range(accelerator.num_processes)
    mine = accelerator.process_index
    store.set(_key(_calls, mine), json.dumps(profile))
    keys = [_key(_calls, rank) for rank in ranks]
    try:
        store.wait(keys, timedelta(seconds=timeout))
    except RuntimeError as error:
        missing = [rank for rank in ranks if not store.check([keys[rank]])]
        store.delete_key(keys[mine])  # The next call uses these keys again.
        if not missing:
            raise
        raise RuntimeError(
            "every rank has to call table(reduce=accelerator), but within "
            f"{timeout:g} s these ranks did not: "
            f"{', '.join(map(str, missing))}"
        ) from error
    found = [json.loads(store.get(key)) for key in keys]
    # Every rank has made this call, so every rank has read the last one's.
    store.delete_key(_key(_calls - 1, mine))
    _calls += 1
    return found


_calls = 0


def _key(call: int, rank: int) -> str:
    return f"robo_orchard_fasthooks/profile/{call}/{rank}"


def draw(profile: Profile, path: str | Path) -> None:
    """Draws the total time of each hook, with a bar for each phase.

    Args:
        profile (dict[str, ChannelProfile]): The times.
        path (str | Path): The image, in any format that matplotlib writes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    sums: dict[tuple[str, str], dict[str, float]] = {}
    for channel, row in _hooks(profile):
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
    for phase, color, offset in (
        ("before", "#E69F00", 0.2),
        ("after", "#0072B2", -0.2),
    ):
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


def _hooks(profile: Profile) -> list[tuple[str, CallbackTimes]]:
    """The channel and the times of each callback, slowest first."""
    hooks = [
        (name, row)
        for name, channel in profile.items()
        for row in channel["hooks"]
    ]
    return sorted(hooks, key=lambda pair: -pair[1]["sum"])


def _device_time(row: CallbackTimes) -> str:
    # A callback that was added after its row was made, or that only ran during
    # a capture, has no times on the device.
    if "device" not in row or not row["device"]["count"]:
        return "-"
    return _time(row["device"]["mean"])


def _time(ns: float) -> str:
    for unit, size in (("ns", 1), ("µs", 1e3), ("ms", 1e6)):
        if ns < 999.5 * size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns / 1e9:.3g} s" if ns < 999.5e9 else f"{ns / 1e9:,.0f} s"


def _columns(rows: Iterable[list[str]], left: int) -> str:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(
                zip(row, widths, strict=True)
            )
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
