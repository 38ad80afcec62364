import shutil

import numpy as np
import pytest

from jora_tasks.errors import InputError
from jora_tasks.spec import RetrievalConfig
from retrieval.chunking import Chunk
from retrieval.fusion import fuse
from retrieval.lexical import write_lexical
from retrieval.reranking import Reranker
from retrieval.search import Searcher, dense_weight_of, mode_of, shown_text
from retrieval.vectors import InMemory
from tests.retrieval.indexes import write_index
from tests.tiny import pickle_weights, write_tiny_reranker

NAMES = [f"{a}_{b}" for a in ("red", "blue", "long", "zero") for b in ("limit", "path", "size", "key")]
QUESTIONS = ["default of blue_path", "zero_key", "the long option", "zebra crossing"]


def chunk(number, text, document="guide.md", **metadata):
    return Chunk(f"c{number}", document, number * 1000, number * 1000 + len(text), "Guide", text, 9, metadata)


CHUNKS = [chunk(i, f"The default of {name} is {i}.", kind=name.split("_")[1]) for i, name in enumerate(NAMES)]


def write(folder, embedder, chunks):
    folder.mkdir()
    texts = [shown_text(each) for each in chunks]
    write_index(folder, chunks, InMemory(embedder.embed_texts(texts)), embedder.identity)
    write_lexical(folder, texts)
    return folder


@pytest.fixture(scope="session")
def index_folder(tmp_path_factory, tiny_embedder):
    return write(tmp_path_factory.mktemp("search") / "index", tiny_embedder, CHUNKS)


@pytest.fixture(scope="session")
def reranker_folder(tmp_path_factory):
    """A cross-encoder of one random layer over the tiny embedder's tokens."""
    return write_tiny_reranker(tmp_path_factory.mktemp("reranker") / "tiny")


def search(folder, embedder, weight, questions=QUESTIONS, reranker=None, **settings):
    searcher = Searcher(folder, embedder, RetrievalConfig(**settings), reranker)
    return [searcher.rank(pool, weight) for pool in searcher.pools(questions, [weight])]


def test_dense_is_the_order_of_the_cosines(index_folder, tiny_embedder):
    vectors = tiny_embedder.embed_texts([shown_text(each) for each in CHUNKS])
    for question, ranking in zip(QUESTIONS, search(index_folder, tiny_embedder, 1.0), strict=True):
        cosines = vectors @ tiny_embedder.embed_questions([question])[0]
        assert [found.chunk for found in ranking.found] == [CHUNKS[i] for i in np.argsort(-cosines)]
        np.testing.assert_allclose(
            [found.score for found in ranking.found], sorted(cosines, reverse=True), atol=1e-5
        )
        assert [found.rank for found in ranking.found] == list(range(1, 17))


def test_lexical_finds_only_what_has_a_word(index_folder, tiny_embedder):
    blue, zero, long, zebra = search(index_folder, tiny_embedder, 0.0)
    assert blue.found[0].chunk.text == "The default of blue_path is 5."
    assert zero.found[0].chunk.text == "The default of zero_key is 15."
    assert {found.chunk.id for found in zero.found} == {
        each.id for each in CHUNKS if "zero" in each.text or "key" in each.text
    }
    assert all("long" in found.chunk.text for found in long.found[:4])
    assert zebra.found == []


@pytest.mark.parametrize("weight", [0.25, 0.5, 0.75])
def test_hybrid_is_the_fusion_of_both(index_folder, tiny_embedder, weight):
    rankings = (search(index_folder, tiny_embedder, each) for each in (1.0, 0.0, weight))
    for dense, lexical, hybrid in zip(*rankings, strict=True):
        rows = [[found.chunk.id for found in ranking.found] for ranking in (dense, lexical)]
        fused = fuse(rows, [weight, 1 - weight])
        assert [(found.chunk.id, found.score) for found in hybrid.found] == fused
        for found in hybrid.found:
            assert found.places["fused"].rank == found.rank
            assert found.places["dense"].rank == rows[0].index(found.chunk.id) + 1
            assert ("lexical" in found.places) == (found.chunk.id in rows[1])


def test_near_duplicates_are_left_out_and_counted(tmp_path, tiny_embedder):
    text = "One text that stands in two documents, and is long enough to have many runs of five words."
    chunks = [*CHUNKS, chunk(16, text, "b.md"), chunk(17, text, "a.md"), chunk(18, text + " More.", "c.md")]
    folder = write(tmp_path / "index", tiny_embedder, chunks)
    for weight in (1.0, 0.5, 0.0):
        (all_,) = search(folder, tiny_embedder, weight, [text], near_duplicates=0)
        ranked = [found.chunk.document_id for found in all_.found if found.chunk.document_id != "guide.md"]
        assert ranked.index("b.md") < ranked.index("a.md")  # equal scores go by row
        assert all_.near_duplicates == 0
        (ranking,) = search(folder, tiny_embedder, weight, [text], near_duplicates=0.9)
        kept = [found.chunk.document_id for found in ranking.found if found.chunk.document_id != "guide.md"]
        assert kept == ranked[:1]
        assert ranking.near_duplicates == 2
        assert [found.rank for found in ranking.found] == list(range(1, len(all_.found) - 1))


def test_filters_choose_by_metadata_in_every_mode(index_folder, tiny_embedder):
    for weight in (1.0, 0.5, 0.0):
        for filters, kinds in (({"kind": "path"}, {"path"}), ({"kind": ["path", "key"]}, {"path", "key"})):
            for ranking in search(index_folder, tiny_embedder, weight, QUESTIONS[:2], filters=filters):
                assert {found.chunk.metadata["kind"] for found in ranking.found} <= kinds
                assert ranking.found
    with pytest.raises(InputError, match=r"retrieval\.filters\.colour is not in .* metadata; use kind\."):
        search(index_folder, tiny_embedder, 1.0, filters={"colour": "red"})
    with pytest.raises(InputError, match=r"leave none of 16 chunks"):
        search(index_folder, tiny_embedder, 1.0, filters={"kind": "weight"})


def test_the_reranker_orders_what_was_found(index_folder, tiny_embedder, reranker_folder):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    plain = search(index_folder, tiny_embedder, 1.0, candidates=6)
    ranked = search(
        index_folder, tiny_embedder, 1.0, reranker=Reranker(reranker_folder, "tiny"), candidates=6
    )
    tokenizer = AutoTokenizer.from_pretrained(reranker_folder)
    oracle = AutoModelForSequenceClassification.from_pretrained(reranker_folder).eval()
    for question, before, after in zip(QUESTIONS, plain, ranked, strict=True):
        assert {found.chunk.id for found in before.found} == {found.chunk.id for found in after.found}
        scores = []
        for found in after.found:  # one at a time, so that nothing is padded
            pair = tokenizer(question, shown_text(found.chunk), truncation=True, return_tensors="pt")
            with torch.inference_mode():
                scores.append(oracle(**pair).logits.sigmoid().item())
        np.testing.assert_allclose([found.score for found in after.found], scores, atol=1e-4)
        assert list(scores) == sorted(scores, reverse=True)
        assert [found.places["reranked"].rank for found in after.found] == [1, 2, 3, 4, 5, 6]
    assert any(
        [found.chunk.id for found in before.found] != [found.chunk.id for found in after.found]
        for before, after in zip(plain, ranked, strict=True)
    )


def test_a_folder_that_is_no_reranker_is_named(reranker_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(reranker_folder, broken)
    (broken / "model.safetensors").write_bytes(b"none")
    with pytest.raises(InputError, match=r"retrieval\.reranker broken cannot be read as a cross-encoder"):
        Reranker(broken, "broken").scores("question", ["passage"], 1)
    pickled = tmp_path / "pickled"
    shutil.copytree(reranker_folder, pickled)
    pickle_weights(pickled)
    with pytest.raises(InputError, match=r"retrieval\.reranker pickled cannot be read as a cross-encoder"):
        Reranker(pickled, "pickled").scores("question", ["passage"], 1)
    many = write_tiny_reranker(tmp_path / "many", labels="abc")
    with pytest.raises(InputError, match=r"retrieval\.reranker many gives 3 figures"):
        Reranker(many, "many").scores("question", ["passage"], 1)
    assert Reranker(reranker_folder, "tiny").scores("question", [], 1).shape == (0,)


def test_blocks_of_questions_find_what_each_alone_finds(index_folder, tiny_embedder):
    many = [f"default of {name}" for name in NAMES] * 20  # more than are searched at once
    done = []
    searcher = Searcher(index_folder, tiny_embedder, RetrievalConfig())
    pools = list(searcher.pools(many, [0.5], done.append))
    assert [pool.question for pool in pools] == many
    assert done == [256, 320]
    for pool in pools[:16] + pools[-16:]:
        (alone,) = searcher.pools([pool.question], [0.5])
        assert [row for row, _ in pool.lexical] == [row for row, _ in alone.lexical]
        np.testing.assert_allclose([s for _, s in pool.dense], [s for _, s in alone.dense], atol=1e-5)


def test_modes_are_weights():
    for mode, weight in (("dense", 1.0), ("lexical", 0.0), ("hybrid", 0.3)):
        assert dense_weight_of(RetrievalConfig(mode=mode, dense_weight=0.3)) == weight
        assert mode_of(weight) == mode


@pytest.mark.parametrize("weight", [1.0, 0.5, 0.0])
def test_explanation_has_the_places_of_each_step(index_folder, tiny_embedder, reranker_folder, weight):
    reranker = Reranker(reranker_folder, "tiny")
    config = RetrievalConfig(top_k=2, candidates=4)
    searcher = Searcher(index_folder, tiny_embedder, config, reranker)
    explained = searcher.explain(QUESTIONS[0], weight)
    (pool,) = searcher.pools(QUESTIONS[:1], [0.5])
    ranked = [found.chunk.id for found in searcher.rank(pool, weight).found]
    assert [each.chunk.id for each in explained[: len(ranked)]] == ranked
    assert [each.rank for each in explained] == [1, 2, 3, 4, *[None] * (len(explained) - 4)]
    assert [each.places["reranked"].rank for each in explained[:4]] == [1, 2, 3, 4]
    rows = {f"c{row}": row for row in range(16)}
    for step, scored in (("dense", pool.dense), ("lexical", pool.lexical)):
        order = [row for row, _ in scored]
        for each in explained:
            if step in each.places:
                place = each.places[step]
                assert order[place.rank - 1] == rows[each.chunk.id]
                assert place.score == scored[place.rank - 1][1]
            else:
                assert rows[each.chunk.id] not in order
        assert set(order[:4]) <= {rows[each.chunk.id] for each in explained}
