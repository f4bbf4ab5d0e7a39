"""Tables, JSON and pictures, of one rank and of several."""

import json
from pathlib import Path
from unittest import mock

import pytest
from accelerate import Accelerator

from helpers import processes
from helpers.profiling import cells, step
from robo_orchard_fasthooks import (
    HookContext,
)
from robo_orchard_fasthooks._profiling import report
from robo_orchard_fasthooks.profiler import HookProfiler


class TestReport:
    def test_table(self, profiled):
        heads, *hooks, empty, channel_heads, channel = cells(profiled.table())
        assert heads == [
            *("hook", "at", "share", "of scope", "count", "mean", "p50"),
            *("p95", "max"),
        ]
        a, b, times = "Spending 'a'", "Spending 'b'", 4 * ["100 ns"]
        assert hooks == [
            [b, "on_step.before", "62.5%", "25.0%", "1,500", *4 * ["250 ns"]],
            [a, "on_step.after", "25.0%", "10.0%", "1,500", *times],
            [a, "on_step.before", "12.5%", "5.0%", "1,500", *4 * ["50 ns"]],
            [b, "on_step.after", "0.0%", "0.0%", "1,500", *4 * ["0 ns"]],
        ]
        assert empty == [""]
        assert channel_heads == [
            "channel",
            "scopes",
            "mean",
            "body",
            "hooks",
        ]
        assert channel == ["on_step", "1,500", "1 µs", "60.0%", "40.0%"]

    def test_table_over_channels_is_sorted(self, hooks, clock, spending):
        for channel, time in (("on_loop", 5), ("on_epoch", 9), ("on_step", 7)):
            hooks.register_hook(channel, spending("a", time, time - 5))
        with HookProfiler(hooks, clock=clock) as profiler:
            for channel in ("on_loop", "on_epoch", "on_step"):
                step(hooks, channel=channel)
        found = [line[1] for line in cells(profiler.table())[1:7]]
        assert found == [
            *("on_epoch.before", "on_step.before", "on_loop.before"),
            *("on_epoch.after", "on_step.after", "on_loop.after"),
        ]

    def test_table_is_sorted_by_sum_and_not_by_mean(
        self, hooks, clock, spending
    ):
        hooks.register_hook("on_loop", spending("once", 30))
        hooks.register_hook("on_step", spending("b", 5))
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks, channel="on_loop")
            for _ in range(10):
                step(hooks)
        _, first, second, *_ = profiler.table().splitlines()
        assert first.startswith("Spending 'b'     on_step.before  62.5%")
        assert second.startswith("Spending 'once'  on_loop.before  37.5%")

    def test_table_of_no_time(self, hooks, clock, spending):
        hooks.register_hook("on_step", spending("a"))
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks)
        assert "0.0%" in profiler.table()

    def test_table_of_nothing(self, hooks):
        assert HookProfiler(hooks).table().startswith("hook  at")

    def test_table_is_aligned(self, profiled):
        first, second = profiled.table().split("\n\n")
        for part in (first, second):
            assert len({len(line) for line in part.splitlines()}) == 1

    @pytest.mark.parametrize(
        ("ns", "text"),
        [
            *((0, "0 ns"), (999, "999 ns"), (1000, "1 µs")),
            *((1234, "1.23 µs"), (5_600_000, "5.6 ms"), (2e9, "2 s")),
            pytest.param(999.6, "1 µs"),
            pytest.param(999_600, "1 ms"),
            pytest.param(3_600e9, "3,600 s"),  # Not 3.6e+03.
        ],
    )
    def test_times_in_words(self, ns, text):
        assert report._time(ns) == text

    def test_to_json(self, profiled, tmp_path):
        path = tmp_path / "profile.json"
        profiled.to_json(path)
        assert json.loads(path.read_text()) == profiled.to_dict()
        profiled.to_json(str(path))
        assert json.loads(path.read_text()) == profiled.to_dict()

    def test_to_dict_has_what_it_says(self, profiled):
        times = {"count", "sum", "mean", "p50", "p95", "min", "max"}
        (channel,) = profiled.to_dict().values()
        assert set(channel) == {"scope", "body", "hooks"}
        assert set(channel["scope"]) == set(channel["body"]) == times
        for row in channel["hooks"]:
            assert set(row) == times | {
                *("hook", "phase", "where", "share_of_scope"),
            }

    def bars(self, profiler, path):
        """The widths of the bars drawn, by phase and label."""
        from matplotlib.figure import Figure

        drawn = []
        with mock.patch.object(
            Figure,
            "savefig",
            lambda figure, path: drawn.append(figure),
        ):
            profiler.plot(path)
        (axes,) = drawn[0].axes
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert legend == ["before", "after"]
        self.labels = [text.get_text() for text in axes.texts]
        labels = [text.get_text() for text in axes.get_yticklabels()]
        return labels, {
            container.get_label(): [bar.get_width() for bar in container]
            for container in axes.containers
        }

    def test_plot_has_bars_of_both_phases(self, profiled, tmp_path):
        labels, bars = self.bars(profiled, tmp_path / "p.png")
        # From the bottom to the top.
        assert labels == ["Spending 'a'\non_step", "Spending 'b'\non_step"]
        assert bars["before"] == pytest.approx([75e-6, 375e-6])
        assert bars["after"] == pytest.approx([150e-6, 0])
        assert self.labels == ["75 µs", "375 µs", "150 µs", ""]

    def test_plot_writes_a_picture(self, profiled, tmp_path):
        path = tmp_path / "profile.png"
        profiled.plot(path)
        assert path.read_bytes().startswith(b"\x89PNG\r\n")
        assert path.stat().st_size > 5000

    def test_plot_of_nothing(self, hooks, tmp_path):
        HookProfiler(hooks).plot(tmp_path / "p.png")
        assert (tmp_path / "p.png").exists()

    @pytest.mark.parametrize(
        "name", ["long" * 80, r"costs $\some$"], ids=["long", "mathtext"]
    )
    def test_plot_of_any_name(self, hooks, tmp_path, name):
        hooks.register_hook("on_step", HookContext.from_callable(name, id))
        with HookProfiler(hooks) as profiler:
            step(hooks)
        profiler.plot(tmp_path / "p.png")

    def test_plot_draws_all_time(self, hooks, clock, tmp_path):
        callbacks = [
            lambda args: clock.spend(1000),
            lambda args: clock.spend(30),
        ]
        for callback in callbacks:
            hooks.register_hook(
                "on_step", HookContext.from_callable(after=callback)
            )
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks)
        _, bars = self.bars(profiler, tmp_path / "p.png")
        assert sum(bars["after"]) == pytest.approx(1030e-9)


RANKS = str(Path(__file__).parents[1].joinpath("helpers/profiling_ranks.py"))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two real processes found, by rank and case."""
    folder = tmp_path_factory.mktemp("ranks")
    processes.run([*processes.TORCHRUN, "2", RANKS, str(folder)])
    files = [folder / f"{rank}.json" for rank in range(2)]
    return [json.loads(file.read_text()) for file in files]


class TestRanks:
    """Each rank finds the same."""

    expected = {
        "falling": [
            *("on_step.after", "300 ns", "350 ns", "400 ns", "rank 0", "2"),
        ],
        "rising": ["on_step.after", "10 ns", "15 ns", "20 ns", "rank 1", "2"],
        "only 1": ["on_loop.before", *3 * ["0 ns"], "rank 1", "1"],
    }

    def test_least_median_greatest_and_straggler(self, found):
        for rank in found:
            assert rank["first"] == self.expected
            assert list(rank["first"]) == ["falling", "rising", "only 1"]

    def test_a_second_time(self, found):
        """After a reset, and ten times slower."""
        for rank in found:
            times = {hook: row[1:4] for hook, row in rank["again"].items()}
            assert times == {
                "falling": ["3 µs", "3.5 µs", "4 µs"],
                "rising": ["100 ns", "150 ns", "200 ns"],
                "only 1": ["0 ns", "0 ns", "0 ns"],
            }

    def test_by_another_profiler(self, found):
        for rank in found:
            assert rank["another profiler"]["falling"][1:4] == [
                *("300 µs", "350 µs", "400 µs"),
            ]

    def test_one_rank_alone_is_told_which_did_not_come(self, found):
        alone = found[0]["alone"]
        assert "within 0.5 s these ranks did not: 1" in alone["error"]
        assert 0.4 < alone["after"] < 5

    def test_after_one_rank_was_alone(self, found):
        for rank in found:
            assert rank["after alone"] == self.expected

    def test_of_three(self):
        profiles = [
            {
                "on_step": {
                    "hooks": [
                        {"hook": "a", "phase": "after", "sum": 1, "mean": mean}
                    ]
                }
            }
            for mean in (30, 50, 10)
        ]
        table = report.table_of_ranks(profiles)
        assert cells(table) == [
            ["hook", "at", "min", "median", "max", "slowest", "ranks"],
            [
                "a",
                "on_step.after",
                *("10 ns", "30 ns", "50 ns"),
                "rank 1",
                "3",
            ],
        ]

    def test_one_process(self, profiled):
        found = cells(profiled.table(reduce=Accelerator(cpu=True)))
        assert found[1] == [
            *("Spending 'b'", "on_step.before", "250 ns", "250 ns", "250 ns"),
            *("rank 0", "1"),
        ]
