import json

import ir_measures
import pyarrow.parquet as pq
import pytest

from jora_tasks.errors import InputError
from jora_tasks.stages.contexts import retrieve_contexts
from retrieval.index import read_chunks
from tests.tiny import write_tiny_reranker


def rows_of(artifact):
    return pq.read_table(artifact.file("contexts.parquet")).to_pylist()


def test_rows_and_ranks(rag):
    contexts = rag.contexts()
    rows = rows_of(contexts)
    assert [row["question_id"] for row in rows] == [question["id"] for question in rag.questions]
    chunks = {chunk.id: chunk for chunk in read_chunks(rag.index().path)}
    for row in rows:
        assert [context["rank"] for context in row["contexts"]] == [1, 2, 3]
        scores = [context["score"] for context in row["contexts"]]
        assert scores == sorted(scores, reverse=True)
        for context in row["contexts"]:
            chunk = chunks[context["chunk_id"]]
            assert (context["text"], context["heading"]) == (chunk.text, chunk.heading)
    assert contexts.counts["questions"] == {"train": 8, "dev": 2, "test": 6}


def test_candidates_are_the_ranks_after_the_contexts(rag):
    whole = rows_of(rag.contexts(retrieval={"top_k": 7, "candidates": 0}))
    split = rows_of(rag.contexts(retrieval={"top_k": 3, "candidates": 7}))
    for one, other in zip(whole, split, strict=True):
        assert one["candidates"] == []
        assert one["contexts"] == other["contexts"] + other["candidates"]
        assert [each["rank"] for each in other["candidates"]] == [4, 5, 6, 7]


def test_measures_equal_ir_measures(rag):
    contexts = rag.contexts(retrieval={"top_k": 8})
    chunks = read_chunks(rag.index().path)
    means = contexts.counts["measures"]
    for split in ("train", "dev", "test"):
        qrels, run = {}, {}
        for row in rows_of(contexts):
            if row["split"] == split:
                (span,) = row["evidence"]
                evidence = set(range(span["start"], span["end"]))
                qrels[row["question_id"]] = {
                    chunk.id: 1 for chunk in chunks if evidence & set(range(chunk.start, chunk.end))
                }
                run[row["question_id"]] = {each["chunk_id"]: -float(each["rank"]) for each in row["contexts"]}
        oracles = {
            "recall@1": ir_measures.R @ 1,
            "recall@8": ir_measures.R @ 8,
            "rr@8": ir_measures.RR @ 8,
            "ndcg@8": ir_measures.nDCG @ 8,
        }
        expected = ir_measures.calc_aggregate(oracles.values(), qrels, run)
        assert means[split] == pytest.approx({name: expected[each] for name, each in oracles.items()})
    train = means["train"]
    assert 0 < train["recall@1"] < train["recall@8"] < 1  # else the comparison shows little
    assert contexts.counts["recall_at_k"] == {k: means["test"][f"recall@{k}"] for k in ("1", "8")}


def test_evidence_that_is_gone_is_counted(rag):
    rag.questions[0]["evidence"] = [{"document_id": "guide.md", "text": "no such text"}]
    contexts = rag.contexts()
    assert contexts.counts["evidence_missing"] == 1
    assert rows_of(contexts)[0]["evidence"] == []
    assert contexts.counts["with_evidence"] == len(rag.questions) - 1


def test_evidence_spans_hold_their_text(rag):
    texts = {"guide.md": (rag.folder / "documents" / "guide.md").read_text()}
    for row, question in zip(rows_of(rag.contexts()), rag.questions, strict=True):
        (span,) = row["evidence"]
        assert texts[span["document_id"]][span["start"] : span["end"]] == question["evidence"][0]["text"]


def test_reused_unless_questions_or_settings_change(rag):
    first = rag.contexts()
    assert rag.contexts().reused
    assert rag.contexts(retrieval={"top_k": 2}).key != first.key
    rag.questions[0]["question"] += "?"
    assert rag.contexts().key != first.key


def test_fewer_chunks_than_asked_for(rag):
    rows = rows_of(rag.contexts(retrieval={"top_k": 100}))
    assert len(rows[0]["contexts"]) == len(read_chunks(rag.index().path))


def test_index_of_another_embedder_is_refused(rag, other_embedder_folder):
    index = rag.index()
    spec = rag.spec(index={"embedder": str(other_embedder_folder)})
    with pytest.raises(InputError, match=r"built by the embedder tiny .* is other .*jora index"):
        retrieve_contexts(spec, index, rag.store, rag.progress)
    assert rag.left("contexts") == []


def test_malformed_questions_are_refused_before_any_work(rag):
    index = rag.index()
    rag.spec()
    (rag.folder / "questions.jsonl").write_text(json.dumps({"question": "x", "answers": []}) + "\n")
    with pytest.raises(InputError, match=r"questions\.jsonl:1 has no answer"):
        retrieve_contexts(rag.spec(write=False), index, rag.store, rag.progress)


@pytest.mark.parametrize("only", ["train", "test"])
def test_questions_of_one_split_alone_are_refused(rag, only):
    index = rag.index()
    rag.questions = [{**question, "split": only} for question in rag.questions]
    with pytest.raises(InputError, match=r"questions\.path .* has no (train|test) question"):
        retrieve_contexts(rag.spec(), index, rag.store, rag.progress)
    assert rag.left("contexts") == []


def test_evidence_that_is_gone_is_counted_and_listed_or_by_option_left_out_or_refused(rag):
    gone = {"document_id": "guide.md", "text": "## no such option"}
    rag.questions[0]["evidence"].append(gone)
    kept = rag.contexts()
    assert kept.counts["evidence_missing"] == 1
    listed = [json.loads(line) for line in kept.file("missing_evidence.jsonl").read_text().splitlines()]
    assert listed == [{"question_id": "red_limit", **gone, "start": None, "end": None}]
    assert rows_of(kept)[0]["evidence"]
    left = rag.contexts(questions={"missing_evidence": "drop"})
    assert [row["question_id"] for row in rows_of(left)] == [each["id"] for each in rag.questions[1:]]
    before = rag.left("contexts")
    with pytest.raises(InputError, match=r"jsonl:1: its evidence is no longer in guide\.md"):
        rag.contexts(questions={"missing_evidence": "error"})
    assert rag.left("contexts") == before


def test_names_and_ids_in_decomposed_form_are_found(rag):
    """As a Mac writes them: ü as u and a diaeresis, in the questions file byte for byte the same."""
    documents = rag.folder / "documents"
    guide, city = "U\u0308bersicht.md", "ko\u0308ln"
    (documents / "guide.md").rename(documents / guide)
    row = {"id": city, "text": "The dome of the city.", "metadata": {"river": "Do\u0308llbach"}}
    (documents / "cities.jsonl").write_text(json.dumps(row, ensure_ascii=False))
    for question in rag.questions:
        question["evidence"][0]["document_id"] = guide
    rag.questions[0]["evidence"] = [{"document_id": city, "text": "The dome"}]
    index, escaped = rag.index(), rag.contexts()
    raw = "".join(json.dumps(question, ensure_ascii=False) + "\n" for question in rag.questions)
    (rag.folder / "questions.jsonl").write_text(raw)
    contexts = retrieve_contexts(rag.spec(write=False), index, rag.store, rag.progress)
    for each in (escaped, contexts):
        assert each.counts["evidence_missing"] == 0
        assert each.counts["with_evidence"] == len(rag.questions)
    filtered = rag.contexts(retrieval={"filters": {"river": "Do\u0308llbach"}})
    assert {each["document_id"] for row in rows_of(filtered) for each in row["contexts"]} == {"k\u00f6ln"}


def test_a_copied_document_changes_no_measure(rag):
    alone = rag.contexts(retrieval={"mode": "lexical"})
    rag.copy_guide()
    for near_duplicates, top_k in ((0.9, 3), (0.0, 6)):
        retrieval = {"mode": "lexical", "near_duplicates": near_duplicates, "top_k": top_k}
        contexts = rag.contexts(retrieval=retrieval)
        test = contexts.counts["measures"]["test"]
        assert test["recall@1"] == alone.counts["measures"]["test"]["recall@1"] == 1
        assert {value for name, value in test.items()} == {1}
        for row in rows_of(contexts):
            held = [each["relevant"] for each in row["contexts"]]
            assert held == [f"## {row['question_id']}\n" in each["text"] for each in row["contexts"]]
            assert row["contexts"][0]["document_id"] == "aaa/guide-copy.md"


def test_questions_by_document_and_by_a_field_of_choice(rag):
    for row in rag.questions:
        row["topic"] = row["split"]
        del row["split"]
    rag.questions[0]["split"] = "test"
    by_topic = rows_of(rag.contexts(questions={"group_field": "topic", "test_fraction": 0.5}))
    assert {row["group"] for row in by_topic} == {"train", "dev", "test"}
    rag.questions[0].pop("split")
    with pytest.raises(InputError, match="has no"):  # all have their evidence in one document
        rag.contexts(questions={"split_by": "document"})


def test_the_dev_questions_choose_the_retriever(rag):
    for question in rag.questions[2:12]:
        question["split"] = "dev"
    contexts = rag.contexts()
    retriever = contexts.counts["retriever"]
    assert retriever["mode"] in ("lexical", "hybrid")  # the embedder's weights are random
    chosen = retriever["minus_dense"][str(retriever["dense_weight"])]
    assert chosen["interval"][0] > 0
    assert (retriever["dev_questions"], retriever["groups"], retriever["k"]) == (10, 10, 3)
    set_ = {"mode": retriever["mode"], "dense_weight": retriever["dense_weight"] or 0.5}
    assert rows_of(rag.contexts(retrieval=set_)) == rows_of(contexts)
    assert rows_of(rag.contexts(retrieval={"mode": "dense"})) != rows_of(contexts)


def test_train_and_test_questions_have_no_say_in_the_choice(rag):
    for question in rag.questions:
        if question["split"] == "dev":
            question["evidence"] = []
    contexts = rag.contexts()
    assert contexts.counts["retriever"]["mode"] == "dense"
    assert "no dev question has evidence" in contexts.counts["retriever"]["reason"]
    assert rows_of(contexts) == rows_of(rag.contexts(retrieval={"mode": "dense"}))


def test_a_question_without_result_counts_as_zero(rag):
    known = rag.contexts(retrieval={"mode": "lexical"})
    rag.questions[-1]["question"] = "zebra"
    contexts = rag.contexts(retrieval={"mode": "lexical"})
    assert contexts.counts["without_result"] == 1
    row = rows_of(contexts)[-1]
    assert row["contexts"] == row["candidates"] == []
    assert dict(row["measures"]) == {"recall@1": 0, "recall@3": 0, "rr@3": 0, "ndcg@3": 0}
    drop = dict(rows_of(known)[-1]["measures"])["recall@3"] / 6
    assert known.counts["recall_at_k"]["3"] - contexts.counts["recall_at_k"]["3"] == pytest.approx(drop)


def test_the_same_contexts_for_every_question_are_said(rag):
    assert "warning" not in rag.contexts().counts
    for number, question in enumerate(rag.questions):
        question |= {"question": "The same question?", "id": f"q{number}"}
    counts = rag.contexts().counts
    assert counts["distinct_rankings"] == 1
    assert counts["warning"].startswith("every question has the same contexts")


def test_a_reranker_is_an_input_of_the_contexts(rag, tmp_path):
    folder = write_tiny_reranker(tmp_path / "reranker")
    plain, reranked = rag.contexts(), rag.contexts(retrieval={"reranker": str(folder)})
    assert reranked.key != plain.key
    assert reranked.manifest["inputs"]["reranker"]["name"] == "reranker"
    assert str(folder) not in (reranked.path / "manifest.json").read_text()
    moved = folder.rename(tmp_path / "elsewhere")
    assert rag.contexts(retrieval={"reranker": str(moved)}).key == reranked.key
    with pytest.raises(InputError, match=r"retrieval\.reranker: 'nowhere' is neither a folder nor a hub id"):
        rag.contexts(retrieval={"reranker": "nowhere"})


def test_the_settings_of_the_choice_count_only_where_there_is_one(rag):
    auto, dense = rag.contexts(), rag.contexts(retrieval={"mode": "dense"})
    assert rag.contexts(evaluation={"confidence": 0.9}).key != auto.key
    assert rag.contexts(evaluation={"confidence": 0.9}, retrieval={"mode": "dense"}).key == dense.key
