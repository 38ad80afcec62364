"""The pages of lines and versions."""

from __future__ import annotations

import re
import shutil

import pytest

from jora_tasks.airflow.pages.scores import measures, score_plot, scores_of
from jora_tasks.registry import CANDIDATE, Listed, RegisteredAdapter, Registry
from tests.lines import scores


def listed(version: int, metrics: dict[str, float]) -> Listed:
    return Listed(RegisteredAdapter("tiny", version, {}, ""), "2026-01-01T00:00:00Z", metrics=metrics)


def test_before_the_first_adapter_the_page_says_how_to_make_one(uma, store):
    shutil.rmtree(store.home / "mlflow")
    assert "Trigger the DAG <b>document_index</b>" in uma.get("/jora/adapters").text
    assert uma.get("/jora/adapters/tiny").status_code == 404


def test_lines_with_their_aliases(uma, store):
    registry = Registry(store.home)
    registry.set_alias("tiny", CANDIDATE, 3)
    registry.promote("tiny", 1, by="uma", reason="r")  # makes a history, which is no line
    page = uma.get("/jora/adapters").text
    assert re.findall(r'href="/jora/adapters/([^"/]+)"', page) == ["tiny"]
    assert 'versions/1">version 1</a>' in page and 'versions/3">version 3</a>' in page


def test_a_line_with_scores_over_its_versions(uma, store):
    Registry(store.home).promote("tiny", 2, by="uma", reason="r")
    page = uma.get("/jora/adapters/tiny").text
    assert re.findall(r'aria-label="version (\d): ([^"]+)"', page) == [
        ("1", "0.500 [0.400, 0.600]"),
        ("2", "0.600 [0.500, 0.700]"),
        ("3", "0.700 [0.600, 0.800]"),
    ]
    assert page.count('class="score champion"') == 1
    assert "0.350" in page  # the base's


def test_a_version_with_all_that_made_it(uma, newest):
    page = uma.get("/jora/adapters/tiny/versions/3").text
    for kind in ("corpus", "index", "contexts", "prompts", "adapter", "evaluation", "verdict"):
        assert f'href="/jora/artifacts/{kind}/{newest(kind).key}"' in page
    assert f"/artifacts/corpus/{newest('corpus').key}/documents" in page
    assert 'class="curve loss"' in page and 'class="curve rate"' in page
    assert "enough questions" in page and "at least 1" in page


def test_an_artifact_with_its_manifest(uma, newest):
    adapter = newest("adapter")
    page = uma.get(f"/jora/artifacts/adapter/{adapter.key}").text
    assert adapter.digest in page and "final_loss" in page and "metrics.jsonl" in page
    assert f'href="/jora/artifacts/prompts/{newest("prompts").key}"' in page
    assert "run_id=manual__2026-01-01T00%3A00%3A00%2B00%3A00" in page


@pytest.mark.parametrize("token", ["x", "Zm9v", "9" * 40])
def test_a_page_that_there_is_not(uma, token):
    answer = uma.get("/jora/adapters/tiny", params={"after": token})
    assert answer.status_code == 409 and "begin with the newest" in answer.text


def test_measures_are_those_with_an_interval():
    versions = [listed(1, scores(1)), listed(2, {"adapter_with_contexts.f1": 0.5})]
    assert measures(versions) == ["exact_match"]
    assert scores_of(versions[1], "exact_match") is None
    assert str(scores_of(versions[0], "exact_match")) == "0.500 [0.400, 0.600]"


def test_a_plot_without_scores_is_empty_and_beyond_one_is_scaled():
    assert score_plot([listed(1, {})], "exact_match", None, "/jora") == ""
    wide = {f"adapter_with_contexts.loss{end}": value for end, value in (("", 3), (".low", -1), (".high", 4))}
    drawn = score_plot([listed(1, wide)], "loss", None, "/jora")
    ys = [float(y) for y in re.findall(r' c?y[12]?="([\d.-]+)"', drawn)]
    assert min(ys) >= 0 and max(ys) <= 240
