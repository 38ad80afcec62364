"""The evaluation stage on a tiny random model, with transformers and peft as oracles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jora_tasks.artifacts import ArtifactStore, Source
from jora_tasks.errors import InputError
from jora_tasks.evaluation.answers import normalise
from jora_tasks.progress import Event, Progress
from jora_tasks.registry import BASE_MODEL, COMPARED_WITH
from jora_tasks.stages.evaluate import evaluate_adapter
from tests.stages.evaluating import (
    RETRIEVAL,
    make_adapter,
    make_prompts,
    make_spec,
    register,
    report_of,
    rows_of,
)

ARMS = ("base_closed_book", "base_with_contexts", "adapter_with_contexts")


@pytest.fixture
def store(registry_store: ArtifactStore) -> ArtifactStore:
    return registry_store


def test_arms_answer_as_transformers_and_peft_do(store: ArtifactStore, base_folder: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompts = make_prompts(store)
    adapter = make_adapter(store, base_folder, prompts, seed=1)
    evaluation = evaluate_adapter(make_spec(base_folder), adapter, prompts, store, Progress())

    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    examples = {
        row["example_id"]: row
        for row in pq.read_table(prompts.file("prompts.parquet")).to_pylist()
        if row["split"] == "test"
    }

    def answers(model: Any, column: str) -> dict[str, str]:
        found = {}
        for name, row in examples.items():
            ids = row["input_ids"][: row["prompt_length"]] if column == "open" else row["closed_book_ids"]
            with torch.no_grad():
                out = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=4, do_sample=False)
            found[name] = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()
        return found

    def ours(arm: str) -> dict[str, str]:
        return {name: row["prediction"] for name, row in rows_of(evaluation, arm).items()}

    def losses(model: Any, column: str) -> dict[str, float]:
        """Teacher forcing: the prompt's tokens have no label."""
        found = {}
        for name, row in examples.items():
            length = row["prompt_length"]
            prompt = row["input_ids"][:length] if column == "open" else row["closed_book_ids"]
            ids = torch.tensor([[*prompt, *row["input_ids"][length:]]])
            labels = ids.clone()
            labels[0, : len(prompt)] = -100
            with torch.no_grad():
                found[name] = model(input_ids=ids, labels=labels).loss.item()
        return found

    def our_losses(arm: str) -> dict[str, float]:
        return {name: row["answer_loss"] for name, row in rows_of(evaluation, arm).items()}

    assert our_losses("base_closed_book") == pytest.approx(losses(base, "closed"), abs=1e-4)
    assert our_losses("base_with_contexts") == pytest.approx(losses(base, "open"), abs=1e-4)
    assert ours("base_closed_book") == answers(base, "closed")
    with_contexts = answers(base, "open")
    assert ours("base_with_contexts") == with_contexts
    peft = PeftModel.from_pretrained(base, adapter.path)
    assert our_losses("adapter_with_contexts") == pytest.approx(losses(peft, "open"), abs=1e-4)
    adapted = answers(peft, "open")
    assert ours("adapter_with_contexts") == adapted
    assert adapted != with_contexts


def test_report_has_figures_of_the_stored_predictions(store: ArtifactStore, base_folder: Path) -> None:
    prompts = make_prompts(store)
    adapter = make_adapter(store, base_folder, prompts, seed=1)
    events: list[Event] = []
    evaluation = evaluate_adapter(make_spec(base_folder), adapter, prompts, store, Progress(events.append))

    report = report_of(evaluation)
    assert set(report["arms"]) == set(ARMS)
    means = {}
    for arm in ARMS:
        rows = rows_of(evaluation, arm)
        assert len(rows) == 10
        for row in rows.values():
            assert row["exact_match"] == float(
                normalise(row["prediction"]) in [normalise(answer) for answer in row["answers"]]
            )
        means[arm] = np.mean([row["exact_match"] for row in rows.values()])
        assert report["arms"][arm]["exact_match"] == pytest.approx(means[arm])
        assert report["arms"][arm]["n"] == 10
        low, high = report["arms"][arm]["interval"]["f1"]
        assert low <= report["arms"][arm]["f1"] <= high
    assert report["difference"]["exact_match"] == pytest.approx(
        means["adapter_with_contexts"] - means["base_with_contexts"]
    )
    assert report["difference"]["against"] == "base_with_contexts"
    assert (report["questions"], report["champion"]) == (10, None)
    assert report["clusters"] == {"n": 5, "by": {"group": 10}}
    assert report["without_gold_context"] == {"questions": 10, "reason": "no evidence is known"}
    assert report["retrieval"]["measures"] == {"recall@1": 0.5, "rr@4": 0.5}
    low, high = report["retrieval"]["interval"]["recall@1"]
    assert low <= 0.5 <= high
    assert report["retrieval"]["recall_at_k"] == RETRIEVAL["recall_at_k"]
    assert report["retrieval"]["retriever"] == RETRIEVAL["retriever"]
    assert "no champion" in report["drift"]["reason"]
    assert "verdict" not in report
    assert evaluation.counts["questions"] == 10
    assert str(store.home) not in json.dumps(report) + json.dumps(dict(evaluation.manifest))
    assert str(base_folder) not in json.dumps(report) + json.dumps(dict(evaluation.manifest))

    assert (events[-1].done, events[-1].total, events[-1].unit) == (30, 30, "answers")
    assert [event.done for event in events] == sorted({event.done or 0 for event in events})
    assert {event.fields["arm"] for event in events} == set(ARMS)


def test_second_time_loads_no_model(
    store: ArtifactStore, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jora_tasks.trainer.load as load

    prompts = make_prompts(store)
    adapter = make_adapter(store, base_folder, prompts, seed=1)
    first = evaluate_adapter(make_spec(base_folder), adapter, prompts, store, Progress())
    monkeypatch.setattr(load, "load_model", None)
    again = evaluate_adapter(make_spec(base_folder), adapter, prompts, store, Progress())
    assert (again.key, again.digest, again.reused) == (first.key, first.digest, True)
    wider = make_spec(base_folder, confidence=0.8)
    assert evaluate_adapter(wider, adapter, prompts, store, Progress()).key != first.key


def test_each_arm_is_generated_once(store: ArtifactStore, base_folder: Path, generated: list[bool]) -> None:
    prompts = make_prompts(store)
    first, second = (make_adapter(store, base_folder, prompts, seed) for seed in (1, 2))
    evaluate_adapter(make_spec(base_folder), first, prompts, store, Progress())
    assert generated == [False, False, True]
    register(store, first)

    evaluation = evaluate_adapter(make_spec(base_folder), second, prompts, store, Progress())
    assert generated == [False, False, True, True]  # only the new adapter; the champion answered before
    report = report_of(evaluation)
    assert set(report["arms"]) == {*ARMS, "champion_with_contexts"}
    assert report["champion"]["version"] == 1
    assert report["champion"]["difference"]["against"] == "champion_with_contexts"
    assert rows_of(evaluation, "champion_with_contexts") != rows_of(evaluation, "adapter_with_contexts")

    evaluate_adapter(make_spec(base_folder, max_questions=9), second, prompts, store, Progress())
    assert len(generated) == 8


def test_evaluating_the_champion_again_finds_the_same_evaluation(
    store: ArtifactStore, base_folder: Path
) -> None:
    prompts = make_prompts(store)
    first, second = (make_adapter(store, base_folder, prompts, seed) for seed in (1, 2))
    spec = make_spec(base_folder)
    before = evaluate_adapter(spec, first, prompts, store, Progress())
    register(store, first, **{COMPARED_WITH: ""})
    assert evaluate_adapter(spec, first, prompts, store, Progress()).key == before.key
    before = evaluate_adapter(spec, second, prompts, store, Progress())
    register(store, second, **{COMPARED_WITH: "1"})
    after = evaluate_adapter(spec, second, prompts, store, Progress())
    assert (after.key, after.reused) == (before.key, True)


def test_champion_whose_artifact_is_gone_comes_from_the_registry(
    store: ArtifactStore, base_folder: Path
) -> None:
    prompts = make_prompts(store)
    first, second = (make_adapter(store, base_folder, prompts, seed) for seed in (1, 2))
    alone = evaluate_adapter(make_spec(base_folder), first, prompts, store, Progress())
    register(store, first)
    for kind in ("adapter", "predictions"):
        shutil.rmtree(store.home / "artifacts" / kind)
    second = make_adapter(store, base_folder, prompts, 2)
    evaluation = evaluate_adapter(make_spec(base_folder), second, prompts, store, Progress())
    champion = rows_of(evaluation, "champion_with_contexts")
    assert {name: row["prediction"] for name, row in champion.items()} == {
        name: row["prediction"] for name, row in rows_of(alone, "adapter_with_contexts").items()
    }


def test_champion_over_another_base_cannot_be_compared(store: ArtifactStore, base_folder: Path) -> None:
    prompts = make_prompts(store)
    first, second = (make_adapter(store, base_folder, prompts, seed) for seed in (1, 2))
    register(store, first, **{BASE_MODEL: "sha256:other"})
    report = report_of(evaluate_adapter(make_spec(base_folder), second, prompts, store, Progress()))
    assert set(report["arms"]) == set(ARMS)
    assert report["champion"]["difference"] is None
    assert report["champion"]["reason"] == "it was trained over another base model"


def test_fewer_questions_are_the_same_ones(store: ArtifactStore, base_folder: Path) -> None:
    prompts = make_prompts(store)
    adapter = make_adapter(store, base_folder, prompts, seed=1)
    few, more = (
        rows_of(
            evaluate_adapter(make_spec(base_folder, max_questions=n), adapter, prompts, store, Progress()),
            "base_with_contexts",
        )
        for n in (3, 6)
    )
    assert (len(few), len(more)) == (3, 6)
    assert few.items() <= more.items()
    assert set(few) != {"q0", "q1", "q2"}


def test_without_contexts_each_question_is_its_own_group(store: ArtifactStore, base_folder: Path) -> None:
    prompts = make_prompts(store)
    shutil.rmtree(store.home / "artifacts" / "contexts")
    adapter = make_adapter(store, base_folder, prompts, seed=1)
    report = report_of(evaluate_adapter(make_spec(base_folder), adapter, prompts, store, Progress()))
    assert report["clusters"] == {"n": 10, "by": {"question": 10}}
    assert report["retrieval"] == {
        "n": 0,
        "measures": {},
        "interval": {},
        "recall_at_k": None,
        "retriever": None,
        "calibration": [],
    }


def test_no_test_question(store: ArtifactStore, base_folder: Path) -> None:
    prompts = make_prompts(store, test=0)
    adapter = make_adapter(store, base_folder, prompts, seed=1)
    with pytest.raises(InputError, match=r"no test question.*test_fraction"):
        evaluate_adapter(make_spec(base_folder), adapter, prompts, store, Progress())
    assert {folder.name for folder in (store.home / "artifacts").iterdir()} == {
        "adapter",
        "contexts",
        "prompts",
    }


def test_adapter_of_another_base(store: ArtifactStore, base_folder: Path) -> None:
    prompts = make_prompts(store)
    other = Source("model", "other-base", "sha256:other")
    adapter = make_adapter(store, base_folder, prompts, seed=1, base=other)
    with pytest.raises(InputError, match="trained over other-base"):
        evaluate_adapter(make_spec(base_folder), adapter, prompts, store, Progress())
    assert not (store.home / "artifacts" / "predictions").exists()


@pytest.mark.parametrize(
    ("tokens", "address", "words"),
    [
        (250, "", r"evaluation\.max_new_tokens 250 after a prompt of \d+ tokens .* 256 that the model reads"),
        (4, "http://127.0.0.1:9", r"No registry answers at http://127\.0\.0\.1:9; .* MLFLOW_TRACKING_URI"),
    ],
)
def test_what_cannot_end_well_is_refused_before_the_first_answer(
    tokens: int,
    address: str,
    words: str,
    store: ArtifactStore,
    base_folder: Path,
    generated: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = make_prompts(store)
    adapter = make_adapter(store, base_folder, prompts, seed=1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(InputError, match=words):
        evaluate_adapter(make_spec(base_folder, max_new_tokens=tokens), adapter, prompts, store, Progress())
    assert generated == []
    assert not (store.home / "artifacts" / "predictions").exists()
