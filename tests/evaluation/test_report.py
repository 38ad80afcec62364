"""The report page and its charts, read back as XML and HTML."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jora_tasks.evaluation import charts
from jora_tasks.evaluation.calibration import score_bins
from jora_tasks.evaluation.drift import LARGE, STABLE
from jora_tasks.evaluation.report import read_history, read_lengths, render_report
from jora_tasks.evaluation.summary import (
    ADAPTER,
    BASE,
    CHAMPION,
    CLOSED_BOOK,
    Question,
    Resampling,
    Said,
    Shown,
    compare,
    score_arm,
    summarise,
)

EVIL = "<script>alert('x')</script><img src=x onerror=y>"


def make_report(champion: bool = False, wrong: str = "wrong") -> tuple[dict[str, Any], dict[str, Any]]:
    """Twenty questions: closed book never right, base right on 2, adapter on all but 1."""
    questions = [
        Question(f"q{i}", f"Question {i}?", ("right",), f"g{i // 2}", f"g{i // 2}") for i in range(20)
    ]
    right = {CLOSED_BOOK: set(), BASE: {0, 19}, ADAPTER: set(range(19))}
    if champion:
        right[CHAMPION] = set(range(5))
    rows = {
        arm: score_arm(
            arm,
            [(question, Shown()) for question in questions],
            {f"q{i}": Said("right" if i in won else wrong, 0.5) for i in range(20)},
            "The sources do not say.",
        )
        for arm, won in right.items()
    }
    how = Resampling(500, 0.95, 0)
    report: dict[str, Any] = {
        "adapter": {"key": "0123456789abcdef", "digest": "sha256:a"},
        "base_model": {"kind": "model", "name": "tiny & <base>", "digest": "sha256:b"},
        "questions": 20,
        "clusters": {"n": 10, "by": {"group": 20}},
        "without_gold_context": None,
        "confidence": 0.95,
        "bootstrap_samples": 500,
        "arms": {arm: summarise(scored, how) for arm, scored in rows.items()},
        "citation_support": None,
        "difference": compare(rows[ADAPTER], rows[BASE], how),
        "champion": None,
        "retrieval": {
            "n": 20,
            "measures": {"recall@1": 0.8, "recall@4": 0.95},
            "interval": {"recall@1": [0.7, 0.9], "recall@4": [0.9, 1.0]},
            "recall_at_k": {"1": 0.8, "4": 0.95},
            "calibration": score_bins([(0.1, False), (0.2, False), (0.8, True), (0.9, True)], bins=2),
        },
        "slices": {},
        "canary": None,
        "drift": {"reason": "there is none to compare with"},
    }
    if champion:
        report["champion"] = {
            "version": 7,
            "reason": None,
            "difference": compare(rows[ADAPTER], rows[CHAMPION], how),
        }
    return report, rows


class _Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"] or "{" not in data:
            self.text += data


HISTORY = [{"step": i, "loss": 2 / (i + 1), "learning_rate": 1e-3 * i} for i in range(50)]


def test_page_needs_nothing_else() -> None:
    report, rows = make_report(champion=True)
    page = render_report(report, rows, history=HISTORY, lengths=[300, 310, 420])
    read = _Page(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(read.tags)
    assert not {"src", "srcset"} & {name for name, _ in read.attributes}
    targets = {value for name, value in read.attributes if name == "href"}
    assert targets <= {f"#{value}" for name, value in read.attributes if name == "id"}
    assert not re.search(r"https?:|url\(|@import", page)
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page


def test_the_evaluation_loss_has_a_curve_where_there_were_evaluations() -> None:
    report, rows = make_report()
    evaluated = [{**row, "eval_loss": 1.5} if row["step"] % 10 == 0 else row for row in HISTORY]
    heading = "Loss on the dev questions"
    assert heading in _Page(render_report(report, rows, history=evaluated)).text
    assert heading not in _Page(render_report(report, rows, history=HISTORY)).text


def test_page_tells_citations_where_they_were_asked_for() -> None:
    report, rows = make_report()
    assert "ALCE" not in _Page(render_report(report, rows)).text
    shown = Shown((2,), ("heading\nother text", "heading\nnothing of it"))
    asked = [(Question(f"q{i}", "?", ("right",), f"g{i}", f"g{i}"), shown) for i in range(4)]
    said = {f"q{i}": Said(text) for i, text in enumerate(["right [2]", "right [1][2]", "right", "right [2]"])}
    report["arms"][ADAPTER] = summarise(score_arm(ADAPTER, asked, said, "-"), Resampling(100, 0.95, 0))
    report["citation_support"] = {"by": "words and known evidence"}
    text = re.sub(r"\s+", " ", _Page(render_report(report, rows)).text)
    assert "Citation precision – – 0.625" in text
    assert "Citation recall – – 0.750" in text
    assert "ALCE (arXiv 2305.14627). What supports an answer is told by a proxy" in text
    report["citation_support"] = {"by": "nli_model", "name": "org/nli", "digest": "sha256:0123456789ab-rest"}
    text = re.sub(r"\s+", " ", _Page(render_report(report, rows)).text)
    assert "What supports an answer is told by the NLI model org/nli (sha256:0123456789ab)" in text
    assert "proxy" not in text


def test_page_tells_the_figures() -> None:
    report, rows = make_report(champion=True)
    text = _Page(render_report(report, rows, history=HISTORY, lengths=[300, 310])).text
    for arm in ("Base, closed book", "Base + contexts", "Adapter + contexts", "Champion + contexts"):
        assert arm in text
    assert "20 held-out questions in 10 clusters, over tiny & <base>" in re.sub(r"\s+", " ", text)
    for figures in report["arms"].values():
        low, high = figures["interval"]["exact_match"]
        assert f"{figures['exact_match']:.3f}  [{low:.3f}, {high:.3f}]" in text
    assert "Adapter minus champion, version 7, on the same questions" in text
    difference = report["difference"]
    low, high = difference["interval"]["exact_match"]
    assert f"{difference['exact_match']:+.3f}  [{low:+.3f}, {high:+.3f}]" in text
    assert f"{difference['p']['exact_match']:.4f}" in text
    assert "10 by" not in text and "20 by group alone" in text
    assert "0.950 [0.900, 1.000]" in text
    assert "0.100 to 0.200" in text and "0.800 to 0.900" in text


def test_examples_are_sorted_by_who_was_right() -> None:
    report, rows = make_report()
    text = re.sub(r"\s+", " ", _Page(render_report(report, rows)).text)
    assert "Only the adapter is right (18)" in text
    assert "Only the base is right (1)" in text
    assert "Both are right (1)" in text
    assert "Neither is right" not in text
    assert "and 10 more in predictions.parquet" in text
    assert text.index("Only the base is right") < text.index("Question 19?") < text.index("Both are right")


def test_everything_is_escaped() -> None:
    report, rows = make_report(wrong=EVIL)
    page = render_report(report, rows)
    assert "<script" not in page and "<img" not in page
    assert EVIL in _Page(page).text


def test_page_without_training_figures_or_champion() -> None:
    report, rows = make_report()
    text = _Page(render_report(report, rows)).text
    assert "Training loss" not in text and "Lengths" not in text and "champion" not in text
    assert "Not told: there is none to compare with" in text
    report["retrieval"] = {"n": 0, "measures": {}, "recall_at_k": None}
    text = _Page(render_report(report, rows)).text
    assert "recall@" not in text and "What a score is worth" not in text


def test_page_tells_how_the_contexts_were_found() -> None:
    report, rows = make_report()
    report["retrieval"]["retriever"] = {"mode": "hybrid", "reason": "its recall is higher"}
    assert "Search: hybrid (its recall is higher)" in _Page(render_report(report, rows)).text


def test_page_tells_slices_canaries_and_drift() -> None:
    report, rows = make_report(champion=True)
    part = {"n": 12, "clusters": 6, "arms": report["arms"], "differences": {}}
    report["slices"] = {"kind": {EVIL: part}}
    report["canary"] = {
        "questions": 9,
        "against": CHAMPION,
        "right": {ADAPTER: 7, CHAMPION: 8},
        "regressions": ["leave-days"],
    }
    figures = [
        {
            "name": "characters of a document",
            "then": 900,
            "now": 1300,
            "psi": 0.3,
            "chance": 0.1,
            "level": LARGE,
        },
        {"name": "questions without answer", "then": 0.1, "now": 0.12, "level": STABLE},
    ]
    documents = {"added": 3, "updated": 1, "removed": 0, "unchanged": 1200}
    report["drift"] = {"against": 7, "documents": documents, "figures": figures}
    page = render_report(report, rows)
    text = re.sub(r"\s+", " ", _Page(page).text)
    assert "Exact match by kind kind Questions Clusters" in text and f"{EVIL} 12 6" in text
    assert "<script" not in page
    assert "Lost: leave-days" in text and "champion + contexts 8" in text
    assert "3 documents added, 1 documents updated, 0 documents removed, 1,200 documents unchanged" in text
    assert "characters of a document 900 1,300 0.300 0.100 large drift" in text
    assert "questions without answer 0.1 0.12 – – stable" in text


def test_worst_and_longest_are_shown_with_what_makes_them_so() -> None:
    report, rows = make_report()
    text = re.sub(r"\s+", " ", _Page(render_report(report, rows, prompt_lengths={"q3": 4200, "q5": 17})).text)
    longest = text[text.index("Longest prompts (2)") :]
    assert longest.index("Question 3? (4,200 tokens)") < longest.index("Question 5? (17 tokens)")
    assert "Worst: highest answer loss of the adapter (8)" in text and "(loss 0.500)" in text


def test_page_is_the_same_each_time() -> None:
    report, rows = make_report()
    assert render_report(report, rows, history=HISTORY) == render_report(report, rows, history=HISTORY)


def svg(chart: str) -> ET.Element:
    return ET.fromstring(chart)


def numbers(chart: str, tag: str, style: str, attribute: str) -> list[float]:
    return [
        float(each.get(attribute, "nan"))
        for each in svg(chart).iter(tag)
        if style in (each.get("class") or "").split()
    ]


def test_bars_are_as_long_as_their_values() -> None:
    items = [
        charts.Bar("none", 0.0, 0.0, 0.0),
        charts.Bar("half", 0.5, 0.25, 0.75, "adapter"),
        charts.Bar("full", 1.0, 1.0, 1.0, "adapter"),
    ]
    chart = charts.bars(items, "a <title>")
    half, full = numbers(chart, "rect", "adapter", "width")
    assert half == pytest.approx(full / 2, abs=0.1)
    starts, ends = numbers(chart, "line", "whisker", "x1"), numbers(chart, "line", "whisker", "x2")
    left = numbers(chart, "rect", "adapter", "x")[0]
    assert (starts[3] - left, ends[3] - left) == (
        pytest.approx(full / 4, abs=0.1),
        pytest.approx(full * 3 / 4, abs=0.1),
    )
    assert svg(chart).get("aria-label") == "a <title>"


def test_interval_is_on_its_side_of_zero() -> None:
    for low, high in ((0.1, 0.4), (-0.4, -0.1), (-0.1, 0.1)):
        chart = charts.interval(charts.Bar("d", (low + high) / 2, low, high, "open"), "difference")
        zero = numbers(chart, "line", "zero", "x1")[0]
        start, end = numbers(chart, "line", "range", "x1")[0], numbers(chart, "line", "range", "x2")[0]
        assert (start > zero, end > zero) == (low > 0, high > 0)


def test_curve_keeps_ends_and_leaves_gaps() -> None:
    xs = list(range(5000))
    ys = [10.0 - x / 1000 for x in xs]
    path = svg(charts.lines(xs, ys, "t", x_label="step")).find("path")
    assert path is not None
    points = [tuple(map(float, each.split())) for each in re.split("[ML]", path.get("d", ""))[1:]]
    assert len(points) <= 602
    assert points[0][0] == charts._LEFT and points[-1][0] == charts.WIDTH - charts._RIGHT
    assert all(earlier[1] < later[1] for earlier, later in pairwise(points))

    ys[2500:2600] = [math.nan] * 100
    gap = svg(charts.lines(xs, ys, "t", x_label="step")).find("path")
    assert gap is not None and gap.get("d", "").count("M") == 2
    assert "nan" not in gap.get("d", "")


@pytest.mark.parametrize("ys", [[0.0], [0.0, 0.0], [5.0], [1e-9, 2e-9], [1e6, 2e6], [-1.0, 1.0]])
def test_curve_of_any_size_stays_inside(ys: list[float]) -> None:
    chart = charts.lines(list(range(len(ys))), ys, "t", x_label="step", height=200)
    path = svg(chart).find("path")
    assert path is not None
    for point in re.split("[ML]", path.get("d", ""))[1:]:
        x, y = map(float, point.split())
        assert 0 <= x <= charts.WIDTH and 0 <= y <= 200
    assert 2 <= len(numbers(chart, "line", "grid", "y1")) <= 7


def test_nothing_to_draw() -> None:
    assert charts.lines([1, 2], [math.nan, math.inf], "t", x_label="step") == ""
    assert charts.histogram([], "t", x_label="tokens") == ""


def test_histogram_counts_every_value() -> None:
    values = [100, 100, 101, 350, 512, 512, 512]
    titles = [each.text or "" for each in svg(charts.histogram(values, "t", x_label="tokens")).iter("title")]
    counted = {}
    for title in titles:
        span, count = title.split(": ")
        low, high = map(int, span.split("–"))
        assert sum(low <= value <= high for value in values) == int(count)
        counted[low] = int(count)
    assert sum(counted.values()) == len(values)
    assert len(counted) <= 24
    assert len(list(svg(charts.histogram([5, 5], "t", x_label="tokens")).iter("title"))) == 1


def test_reading_history_and_lengths(tmp_path: Path) -> None:
    assert read_history(tmp_path / "none.jsonl") == []
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 0.5}\n\n{"note": "no step"}\n')
    assert read_history(file) == [{"step": 1, "loss": 0.5}]
    table = {"split": ["train", "test", "train"], "input_ids": [[1, 2], [1], [1, 2, 3]]}
    pq.write_table(pa.table(table), tmp_path / "prompts.parquet")
    assert read_lengths(tmp_path / "prompts.parquet") == [2, 3]
