"""The pure parts of benchmarks/engines: figures, tables and the plot."""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "engines"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """Its modules, which are no package and find one another by the path."""
    before, known = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(
            **{name: importlib.import_module(name) for name in ("client", "figures", "plot", "report")}
        )
    finally:
        sys.path[:] = before
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER.parent)):
                del sys.modules[name]


def stream(bench: Any, first_s: float, gap_s: float, tokens: int = 10, *, together: int = 1) -> Any:
    """Sent at 0; a token each `gap_s` from `first_s` on, `together` in one read."""
    arrivals = tuple(bench.client.Arrival(first_s + gap_s * number, together) for number in range(tokens // together))
    return bench.client.Answer(0.0, arrivals[-1].at_s + 0.5, arrivals, prompt_tokens=20, completion_tokens=tokens)


def figures(bench: Any, *answers: Any) -> Any:
    workload = bench.figures.Workload("some", len(answers), 20, 10)
    return bench.figures.figures(workload, "a server", answers, cpu_s=1.5, client_cpu_s=0.1, rss_mb=100.0)


def test_the_rate_of_all_counts_from_the_first_request_to_the_last_end(bench: Any) -> None:
    one = figures(bench, stream(bench, 1.0, 0.1), stream(bench, 2.0, 0.25))
    assert one.tokens_per_s == pytest.approx(20 / (2.0 + 9 * 0.25 + 0.5))
    assert one.prefill_tokens_per_s == pytest.approx(40 / 2.0)
    assert one.first_token_ms == pytest.approx(1500)
    assert one.client_cpu_share == pytest.approx(0.1 / 4.75)


def test_decode_counts_only_while_every_stream_is_at_it(bench: Any) -> None:
    early, late = stream(bench, 1.0, 0.5), stream(bench, 2.0, 0.5)  # both decode from 2.0 to 5.5
    assert bench.figures.decode_rate([early, late]) == pytest.approx(2 * 7 / 3.5)
    assert bench.figures.decode_rate([early]) == pytest.approx(9 / 4.5)
    assert bench.figures.decode_rate([early, stream(bench, 6.0, 0.5)]) is None


def test_decode_counts_tokens_where_events_are_fewer(bench: Any) -> None:
    full = stream(bench, 1.0, 0.5)
    sparse = replace(full, arrivals=full.arrivals[::3])  # 4 events of 10 tokens, at 1.0, 2.5, 4.0, 5.5
    assert bench.figures.decode_rate([sparse]) == pytest.approx(7.5 / 4.5)


def test_events_that_come_together_have_no_gap(bench: Any) -> None:
    alone = figures(bench, stream(bench, 1.0, 0.2))
    assert (alone.inter_token_p50_ms, alone.inter_token_p99_ms) == (pytest.approx(200), pytest.approx(200))
    in_pairs = figures(bench, stream(bench, 1.0, 0.4, together=2))
    assert (in_pairs.inter_token_p50_ms, in_pairs.inter_token_p99_ms) == (0.0, pytest.approx(400))


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_quantiles_are_values_that_were_seen(bench: Any, share: float, value: int) -> None:
    assert bench.figures.quantile(range(1, 101), share) == value
    assert bench.figures.quantile([], share) is None


@pytest.fixture
def comparison(bench: Any) -> Any:
    """Ours makes 30 tokens/s with one stream in the median, the peer 20; with two, nobody's streams are ever all at it
    in the peer."""
    rounds = []
    for target, rate in (("chatfleet some", 30.0), ("<peer>", 20.0)):
        for workload, factor in (("1 streams", 1.0), ("2 streams", 1.5), ("prefill", 0.1)):
            for noise in (-1.0, 0.0, 5.0):
                decode = None if (target, workload) == ("<peer>", "2 streams") else rate * factor
                one = bench.figures.Round(
                    workload, target, rate * factor + noise, decode, 1000.0, 50.0, 20.0, 30.0, 1.0, 0.01, 700.0
                )
                rounds.append(one)
    workloads = [
        bench.figures.Workload("1 streams", 1, 64, 64),
        bench.figures.Workload("2 streams", 2, 64, 64),
        bench.figures.Workload("prefill", 1, 512, 1, prefill=True),
    ]
    started = {
        "chatfleet some": bench.report.Started("1.0", 3.21, 700.0),
        "<peer>": bench.report.Started("2.0", 70.0, 5100.0),
    }
    return bench.report.Comparison(workloads, rounds, started, {"another": "it ended"})


def test_tables_have_medians_and_say_what_was_not_to_be_had(comparison: Any) -> None:
    lines = comparison.markdown().splitlines()
    assert "| 1 | chatfleet some | 30 | 30 | 50 | 20.0 | 30.0 |" in lines
    assert "| 2 | <peer> | 30 | - | 50 | 20.0 | 30.0 |" in lines
    assert "| server | version | prefill of 512, tokens/s | start s | memory MB |" in lines
    assert "| chatfleet some | 1.0 | 1000 | 3.2 | 700 |" in lines


def test_ratios_are_ours_to_each_peer(comparison: Any) -> None:
    assert "| chatfleet some | <peer> | 1.50 | 1.50 | 1.50 | - |" in comparison.markdown().splitlines()


def test_ratios_need_one_of_ours_and_a_peer(bench: Any) -> None:
    workloads = [bench.figures.Workload("1 streams", 1, 64, 64)]
    one = bench.figures.Round("1 streams", "<peer>", 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 0.1, 9.0)
    alone = bench.report.Comparison(workloads, [one], {"<peer>": bench.report.Started("2.0", 1.0, 1.0)}, {})
    assert len(alone.grids()) == 2


def test_json_has_every_round_and_what_was_left_out(comparison: Any) -> None:
    results = comparison.to_json({"date": "today"})
    assert len(results["rounds"]) == 18 and len(results["summaries"]) == 6
    assert results["left_out"] == {"another": "it ended"}


def test_the_plot_has_a_line_and_a_name_for_each_target(comparison: Any) -> None:
    root = ElementTree.fromstring(comparison.plot())
    lines = [line.attrib["points"].split() for line in root.iter(f"{SVG}polyline")]
    assert [len(points) for points in lines] == [2, 2]
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"chatfleet some", "<peer>", "streams", "1", "2", "0"} <= set(texts)


def test_lines_rise_with_their_values_and_names_do_not_lie_on_one_another(bench: Any) -> None:
    plot = bench.plot.line_plot({"a": [(1, 10), (16, 99)], "b": [(1, 10), (16, 98.5)], "c": [(1, 40)]}, "x", "y")
    root = ElementTree.fromstring(plot)
    first, *_ = (line.attrib["points"].split() for line in root.iter(f"{SVG}polyline"))
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in first)
    assert x0 < x1 and y0 > y1  # y grows downwards
    heights = sorted(float(text.attrib["y"]) for text in root.iter(f"{SVG}text") if text.text in ("a", "b", "c"))
    assert all(below - above >= 16 for above, below in zip(heights, heights[1:], strict=False))
