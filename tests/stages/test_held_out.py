"""What arms are asked: gold contexts, clusters and slices, over a real index."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from jora_tasks.errors import InputError
from jora_tasks.stages.held_out import CLOSED, GOLD, OPEN, read_held_out
from jora_tasks.trainer.tokenizer import load_tokenizer


def read(rag, **sections):
    contexts, prompts = rag.contexts(**sections), rag.prompts(**sections)
    return read_held_out(prompts, contexts, rag.spec(write=False, **sections), rag.model, rag.store)


def test_gold_prompts_hold_the_evidence_alone(rag) -> None:
    del rag.questions[-1]["evidence"]
    held = read(rag)
    assert (len(held.asked[OPEN]), len(held.asked[CLOSED]), len(held.asked[GOLD])) == (6, 6, 5)
    assert held.without_gold is not None and held.without_gold["questions"] == 1
    tokenizer = load_tokenizer(rag.model)
    evidence = {row["id"]: row["evidence"][0]["text"] for row in rag.questions if "evidence" in row}
    for each in held.asked[GOLD]:
        text = tokenizer.decode(each.prompt)
        assert evidence[each.question.id] in text
        assert text.count("\n[") + text.startswith("[") <= 1 and "[2] (" not in text
        assert each.shown.evidence == (1,)
        assert tokenizer.decode(each.known).startswith(each.question.answers[0])


def test_all_arms_are_asked_the_same_questions_in_one_order(rag) -> None:
    held = read(rag)
    ids = [[each.question.id for each in asked] for asked in held.asked.values()]
    assert ids[0] == ids[1] == ids[2]
    known = [[each.known for each in asked] for asked in held.asked.values()]
    assert known[0] == known[1] == known[2]


def test_citing_arms_are_told_their_sources_and_closed_book_cites_nothing(rag) -> None:
    held = read(rag, prompts={"cite": True})
    tokenizer = load_tokenizer(rag.model)
    for opened, closed, gold in zip(held.asked[OPEN], held.asked[CLOSED], held.asked[GOLD], strict=True):
        assert opened.shown.sources is not None and closed.shown.sources is None
        assert len(opened.shown.sources) == 3 and len(gold.shown.sources or ()) == 1
        assert "[1]" in tokenizer.decode(gold.known)
        assert "[" not in tokenizer.decode(closed.known)


def test_an_arm_is_told_the_labels_that_hold_the_evidence(rag) -> None:
    retrieval = {"top_k": 10}
    for cite in (True, False):
        sections = {"prompts": {"cite": cite, "token_budget": 2000}, "retrieval": retrieval}
        table = pq.read_table(rag.prompts(**sections).file("prompts.parquet"))
        labels = {row["example_id"]: tuple(row["oracle_labels"]) for row in table.to_pylist()}
        asked = read(rag, **sections).asked[OPEN]
        assert len(asked) == 6
        assert all(each.shown.evidence == labels[each.question.id] for each in asked)
        assert all((each.shown.sources is not None) == cite for each in asked)
        assert any(each.shown.evidence for each in asked)


def test_one_document_is_one_cluster_unless_clusters_are_groups(rag) -> None:
    assert {question.cluster for question in read(rag).questions} == {read(rag).questions[0].id}
    held = read(rag, evaluation={"cluster_by": "group"})
    assert len({question.cluster for question in held.questions}) == 6
    assert held.clustered_by == {"question": 6}


def test_slices_are_fields_of_the_questions_or_metadata_of_their_documents(rag) -> None:
    for row in rag.questions:
        row["kind"] = row["id"].partition("_")[0]
    (rag.folder / "documents" / "guide.md").unlink()
    text = "# Guide\n\n" + "\n\n".join(row["evidence"][0]["text"] for row in rag.questions)
    table = {"id": "guide.md", "text": text, "team": "data"}
    (rag.folder / "documents" / "guide.jsonl").write_text(json.dumps(table) + "\n")
    documents = {"id_column": "id", "text_column": "text", "metadata_columns": ["team"]}
    del rag.questions[-1]["evidence"]
    slices = {"documents": documents, "evaluation": {"slices": ["kind", "team"]}}
    rag.corpus(**slices)
    found = {question.id: dict(question.slices) for question in read_all(rag, slices)}
    assert found["long_size"] == {"kind": "long", "team": "data"}
    assert found[rag.questions[-1]["id"]] == {"kind": "zero", "team": "(none)"}


def read_all(rag, sections):
    from jora_tasks.stages.contexts import retrieve_contexts
    from jora_tasks.stages.index import build_index
    from jora_tasks.stages.prompts import assemble_prompts

    spec = rag.spec(**sections)
    index = build_index(spec, rag.corpus(**sections), rag.store, rag.progress)
    contexts = retrieve_contexts(spec, index, rag.store, rag.progress)
    prompts = assemble_prompts(spec, contexts, rag.store, rag.progress)
    return read_held_out(prompts, contexts, spec, rag.model, rag.store).questions


def test_unknown_slices_and_missing_canaries_or_nli_models_stop_before_anything_is_trained(rag) -> None:
    with pytest.raises(
        InputError, match=r"'team' is neither a field of questions\.jsonl nor .* there are answers"
    ):
        rag.contexts(evaluation={"slices": ["team"]})
    with pytest.raises(InputError, match=r"gate\.canary_path .*gone\.jsonl cannot be read"):
        rag.contexts(gate={"canary_path": str(rag.folder / "gone.jsonl")})
    with pytest.raises(InputError, match=r"evaluation\.nli_model: 'gone' is neither a folder nor a hub id"):
        rag.contexts(prompts={"cite": True}, evaluation={"nli_model": "gone"})
    assert rag.left("contexts") == []


def test_fields_of_a_questions_file_that_changed_are_not_guessed(rag) -> None:
    for row in rag.questions:
        row["kind"] = "a"
    sections = {"evaluation": {"slices": ["kind"]}}
    contexts, prompts = rag.contexts(**sections), rag.prompts(**sections)
    rag.questions[0]["kind"] = "b"
    with pytest.raises(InputError, match=r"changed after contexts were made of it"):
        read_held_out(prompts, contexts, rag.spec(**sections), rag.model, rag.store)
