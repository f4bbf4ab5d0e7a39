"""Tables, JSON and pictures."""

import json
import sys
from unittest import mock

import pytest
from accelerate import Accelerator

from helpers.profiling import cells, step
from robo_orchard_fasthooks import HookProfiler
from robo_orchard_fasthooks._profiling import report


@pytest.fixture
def profiled(add, timed):
    """Known times: of 1000 ns 50 and 100 in a, 250 and 0 in b."""
    add("a", 50, 100)
    add("b", 250, 0)
    return timed(1500, 600)


class TestTable:
    def test_columns(self, profiled):
        hooks, channels = profiled.table().split("\n\n")
        title = "hook  at  share  of scope  count  mean  p50  p95  max"
        assert cells(hooks) == [
            title.split("  "),
            *(
                [hook, f"on_step.{phase}", share, of_scope, "1,500", *4 * [ns]]
                for hook, phase, share, of_scope, ns in [
                    ("b", "before", "62.5%", "25.0%", "250 ns"),
                    ("a", "after", "25.0%", "10.0%", "100 ns"),
                    ("a", "before", "12.5%", "5.0%", "50 ns"),
                    ("b", "after", "0.0%", "0.0%", "0 ns"),
                ]
            ),
        ]
        assert cells(channels) == [
            ["channel", "scopes", "mean", "body", "hooks"],
            ["on_step", "1,500", "1 µs", "60.0%", "40.0%"],
        ]
        for part in (hooks, channels):
            assert len({len(line) for line in part.splitlines()}) == 1

    def test_is_sorted_by_sum_over_channels(self, hooks, clock, add):
        add("once", 30, channel="on_loop")
        add("often", 5)
        with HookProfiler(hooks, clock=clock) as profiler:
            step(hooks, channel="on_loop")
            for _ in range(10):
                step(hooks)
        found = [line[:3] for line in cells(profiler.table())[1:3]]
        assert found == [
            ["often", "on_step.before", "62.5%"],
            ["once", "on_loop.before", "37.5%"],
        ]

    def test_of_no_time(self, hooks, clock, add):
        """And a name with line breaks."""
        profiler = HookProfiler(hooks, clock=clock)
        assert profiler.table().startswith("hook  at")
        add("two\nlines\r\n", 0)
        with profiler:
            step(hooks)
        row = ["two lines", "on_step.before", "0.0%", "0.0%"]
        assert cells(profiler.table())[1][:4] == row
        assert len(profiler.table().splitlines()) == 5

    @pytest.mark.parametrize(
        ("ns", "text"),
        [
            *((0, "0 ns"), (999, "999 ns"), (999.6, "1 µs"), (1000, "1 µs")),
            *((1234, "1.23 µs"), (999_600, "1 ms"), (5_600_000, "5.6 ms")),
            *((2e9, "2 s"), (3_600e9, "3,600 s")),  # Not 3.6e+03.
        ],
    )
    def test_times_in_words(self, ns, text):
        assert report._time(ns) == text

    def test_of_one_process(self, profiled):
        found = cells(profiled.table(reduce=Accelerator(cpu=True)))
        times = 3 * ["250 ns"]
        assert found[1] == ["b", "on_step.before", *times, "rank 0", "1"]


def test_to_json(profiled, tmp_path):
    for path in (tmp_path / "profile.json", str(tmp_path / "string.json")):
        profiled.to_json(path)
        with open(path, encoding="utf-8") as file:
            assert json.load(file) == profiled.to_dict()


class TestPlot:
    def test_has_bars_of_both_phases(self, profiled, tmp_path):
        from matplotlib.figure import Figure

        drawn = []
        save = lambda figure, path: drawn.append(figure)  # noqa: E731
        with mock.patch.object(Figure, "savefig", save):
            profiled.plot(tmp_path / "p.png")
        (axes,) = drawn[0].axes
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert legend == ["before", "after"]
        # From the bottom to the top.
        labels = [text.get_text() for text in axes.get_yticklabels()]
        assert labels == ["a\non_step", "b\non_step"]
        bars = {
            container.get_label(): [bar.get_width() for bar in container]
            for container in axes.containers
        }
        assert bars["before"] == pytest.approx([75e-6, 375e-6])
        assert bars["after"] == pytest.approx([150e-6, 0])
        shown = [text.get_text() for text in axes.texts]
        assert shown == ["75 µs", "375 µs", "150 µs", ""]

    @pytest.mark.parametrize("name", [None, "long" * 80, r"costs $\some$"])
    def test_writes_a_picture_of_any_name(self, hooks, tmp_path, name, add):
        profiler = HookProfiler(hooks)
        if name is not None:  # Else there is nothing to draw.
            add(name, id)
            with profiler:
                step(hooks)
        profiler.plot(tmp_path / "p.png")
        assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG\r\n")

    def test_without_matplotlib(self, profiled, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ImportError, match="pip install matplotlib"):
            profiled.plot(tmp_path / "p.png")
