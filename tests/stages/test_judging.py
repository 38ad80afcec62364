"""Citations of an evaluation judged by an NLI model, on tiny random models; transformers is the oracle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.evaluation.citations import split_citations
from jora_tasks.progress import Progress
from jora_tasks.stages.answer import answer_shard
from jora_tasks.stages.evaluate import evaluate_adapter
from tests.evaluation.alce import alce
from tests.stages.evaluating import make_adapter, make_passages, make_prompts, make_spec, report_of
from tests.tiny import write_tiny_nli_model


@pytest.fixture(scope="module")
def nli_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_nli_model(tmp_path_factory.mktemp("nli") / "tiny-nli", seed=7)


def test_the_figures_are_alces_with_the_models_judgement(
    registry_store: ArtifactStore, base_folder: Path, nli_folder: Path, generated: list[bool]
) -> None:
    from transformers import pipeline

    store, prompts = registry_store, make_prompts(registry_store, test=40, cite=True)
    adapter = make_adapter(store, base_folder, prompts, seed=1)
    proxy = evaluate_adapter(make_spec(base_folder, batch_size=20), adapter, prompts, store, Progress())
    generated.clear()
    spec = make_spec(base_folder, batch_size=20, nli_model=str(nli_folder))
    judged = evaluate_adapter(spec, adapter, prompts, store, Progress())
    assert generated == []  # the answers are the same ones
    assert judged.key != proxy.key
    assert report_of(proxy)["citation_support"] == {"by": "words and known evidence"}
    told = judged.manifest["inputs"]["nli_model"]
    assert report_of(judged)["citation_support"] == {"by": "nli_model", **told}
    assert told["name"] == "tiny-nli"
    assert f"NLI model {told['name']}" in judged.file("report.html").read_text()
    assert "told by a proxy" in " ".join(proxy.file("report.html").read_text().split())

    classify = pipeline("text-classification", model=str(nli_folder), device="cpu")

    def by_hand(row: dict[str, Any]) -> tuple[float, float]:
        words, cited = split_citations(row["prediction"])
        sources = [f"{each['heading']}\n{each['text']}" for each in make_passages(int(row["example_id"][1:]))]

        def supports(labels: Collection[int]) -> bool:
            premise = "\n".join(sources[label - 1] for label in sorted(labels))
            found = classify(
                {"text": premise, "text_pair": f"{row['question']} {words.strip()}"}, truncation=True
            )
            return bool(words.strip()) and found["label"] == "entailment"

        return alce(cited, supports)

    rows = pq.read_table(judged.file("predictions.parquet")).to_pylist()
    scored = [row for row in rows if row["arm"] != "base_closed_book"]  # which saw no sources
    found = [(row["citation_precision"], row["citation_recall"]) for row in scored]
    assert found == [by_hand(row) for row in scored]
    assert {recall for _, recall in found if recall is not None} == {0.0, 1.0}


def test_another_model_is_another_evaluation_and_its_place_does_not_count(
    registry_store: ArtifactStore, base_folder: Path, nli_folder: Path, tmp_path: Path
) -> None:
    store, prompts = registry_store, make_prompts(registry_store, cite=True)
    adapter = make_adapter(store, base_folder, prompts, seed=1)
    moved = shutil.copytree(nli_folder, tmp_path / "moved")
    other = write_tiny_nli_model(tmp_path / "other", seed=6)
    keys = [
        evaluate_adapter(make_spec(base_folder, nli_model=str(each)), adapter, prompts, store, Progress()).key
        for each in (nli_folder, moved, other)
    ]
    assert keys[0] == keys[1] != keys[2]


def test_where_answers_do_not_cite_no_model_judges(
    registry_store: ArtifactStore, base_folder: Path, nli_folder: Path
) -> None:
    store, prompts = registry_store, make_prompts(registry_store)
    adapter = make_adapter(store, base_folder, prompts, seed=1)
    plain = evaluate_adapter(make_spec(base_folder), adapter, prompts, store, Progress())
    spec = make_spec(base_folder, nli_model=str(nli_folder))
    assert evaluate_adapter(spec, adapter, prompts, store, Progress()).key == plain.key
    assert report_of(plain)["citation_support"] is None


@pytest.mark.parametrize("damage", ["no such folder", "no entailment", "no weights"])
def test_a_bad_model_is_refused_before_anything_is_asked(
    registry_store: ArtifactStore,
    base_folder: Path,
    nli_folder: Path,
    tmp_path: Path,
    generated: list[bool],
    damage: str,
) -> None:
    store, prompts = registry_store, make_prompts(registry_store, cite=True)
    adapter = make_adapter(store, base_folder, prompts, seed=1)
    bad = tmp_path / "bad"
    if damage != "no such folder":
        shutil.copytree(nli_folder, bad)
    if damage == "no entailment":
        config = json.loads((bad / "config.json").read_text())
        (bad / "config.json").write_text(json.dumps(config | {"id2label": {"0": "LABEL_0"}}))
    elif damage == "no weights":
        (bad / "model.safetensors").write_bytes(b"")
    spec = make_spec(base_folder, nli_model=str(bad), shards=2)
    with pytest.raises(InputError, match=r"^evaluation\.nli_model"):
        answer_shard(spec, adapter, prompts, store, Progress(), 0)
    with pytest.raises(InputError, match=r"^evaluation\.nli_model"):
        evaluate_adapter(spec, adapter, prompts, store, Progress())
    assert generated == []
    assert not list((store.home / "artifacts").glob("predictions/[!.]*"))
