"""Questions embedded and reranked in parts, ahead of contexts that take them: these are as without parts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.progress import Event, Progress
from jora_tasks.stages.contexts import retrieve_contexts
from jora_tasks.stages.retrieve import retrieve_shard
from jora_tasks.stages.searching import latest_contexts
from retrieval.embedding import Embedder
from retrieval.reranking import Reranker
from tests.tiny import write_tiny_reranker

SHARDS = 3


@pytest.fixture(scope="session")
def reranker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_reranker(tmp_path_factory.mktemp("reranker") / "tiny")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The questions that the real models read: embedded, reranked."""
    asked: dict[str, list[str]] = {"embedded": [], "reranked": []}
    embed, score = Embedder.embed_questions, Reranker.scores

    def embedding(self: Any, texts: Any, done: Any = None) -> Any:
        asked["embedded"] += texts
        return embed(self, texts, done)

    def scoring(self: Any, question: str, *rest: Any) -> Any:
        asked["reranked"].append(question)
        return score(self, question, *rest)

    monkeypatch.setattr(Embedder, "embed_questions", embedding)
    monkeypatch.setattr(Reranker, "scores", scoring)
    return asked


class Sharded:
    """The same questions and index in two homes, one of which makes parts ahead."""

    def __init__(self, rag: Any, reranker: Path, apart: Path) -> None:
        self.rag, self.reranker = rag, reranker
        self.index = rag.index()
        self.apart = ArtifactStore(shutil.copytree(rag.store.home, apart))

    def spec(self, **retrieval: Any) -> Any:
        return self.rag.spec(retrieval={"reranker": str(self.reranker), **retrieval})

    def part(self, shard: int, **retrieval: Any) -> dict[str, int]:
        spec = self.spec(shards=SHARDS, **retrieval)
        return retrieve_shard(spec, self.index, self.apart, Progress(), shard)

    def alone(self, **retrieval: Any) -> Any:
        return retrieve_contexts(self.spec(**retrieval), self.index, self.rag.store, Progress())

    def joined(self, progress: Progress | None = None, **retrieval: Any) -> Any:
        spec = self.spec(shards=SHARDS, **retrieval)
        return retrieve_contexts(spec, self.index, self.apart, progress or Progress())


@pytest.fixture
def sharded(rag: Any, reranker_folder: Path, tmp_path: Path) -> Sharded:
    for question in rag.questions[4:10]:
        question["split"] = "dev"
    return Sharded(rag, reranker_folder, tmp_path / "apart")


@pytest.mark.parametrize("mode", ["auto", "hybrid", "dense", "lexical"])
def test_contexts_of_parts_are_those_of_one_process_to_the_last_bit(
    sharded: Sharded, read: dict[str, list[str]], mode: str
) -> None:
    texts = [question["question"] for question in sharded.rag.questions]
    dev = [each["question"] for each in sharded.rag.questions if each["split"] == "dev"]
    alone = sharded.alone(mode=mode)
    for shard in range(SHARDS):
        for each in read.values():
            each.clear()
        mine = texts[shard::SHARDS]
        assert sharded.part(shard, mode=mode) == {"questions": len(mine), "questions_reused": 0}
        assert read["reranked"] == mine
        chosen_by = dev if mode == "auto" else []  # every part sees for itself what the mode means
        searched = mine if alone.counts["retriever"]["mode"] != "lexical" else []
        assert sorted(read["embedded"]) == sorted({*chosen_by, *searched})
        assert sharded.part(shard, mode=mode)["questions_reused"] == len(mine)

    for each in read.values():
        each.clear()
    events: list[Event] = []
    joined = sharded.joined(Progress(events.append), mode=mode)
    assert read == {"embedded": [], "reranked": []}
    assert not joined.reused
    assert (joined.key, joined.digest, joined.counts) == (alone.key, alone.digest, alone.counts)
    assert (events[-1].done, events[-1].total) == (len(texts), len(texts))


def test_contexts_make_what_parts_are_missing_or_damaged(
    sharded: Sharded, read: dict[str, list[str]]
) -> None:
    alone = sharded.alone()
    sharded.part(1)
    (damaged,) = (sharded.apart.home / "artifacts" / "retrieved").glob("*/questions.parquet")
    damaged.write_bytes(damaged.read_bytes()[:-20])
    sharded.part(2)
    read["reranked"].clear()
    assert sharded.joined().digest == alone.digest
    texts = [question["question"] for question in sharded.rag.questions]
    assert read["reranked"] == [text for place, text in enumerate(texts) if place % SHARDS != 2]
    read["reranked"].clear()
    sharded.part(1)
    assert read["reranked"] == texts[1::SHARDS]  # the damaged one is made again


def test_parts_of_other_questions_settings_or_documents_are_not_taken(
    sharded: Sharded, read: dict[str, list[str]]
) -> None:
    for shard in range(SHARDS):
        sharded.part(shard)
    read["reranked"].clear()
    sharded.joined(top_k=2)
    assert len(read["reranked"]) == len(sharded.rag.questions)
    read["reranked"].clear()
    sharded.rag.questions[0]["question"] += "?"
    sharded.joined()
    assert len(read["reranked"]) == len(sharded.rag.questions)


def test_more_parts_than_questions_leave_some_empty(rag: Any) -> None:
    spec = rag.spec(retrieval={"shards": 20, "mode": "dense"})
    counts = [retrieve_shard(spec, rag.index(), rag.store, Progress(), shard) for shard in (0, 19)]
    assert [each["questions"] for each in counts] == [1, 0]
    alone = rag.contexts(retrieval={"mode": "dense"})
    assert retrieve_contexts(spec, rag.index(), rag.store, Progress()).key == alone.key


def test_contexts_of_parts_are_those_that_later_searches_go_by(rag: Any) -> None:
    rag.store.set_latest(rag.spec().name, rag.contexts())
    for retrieval, known in (({"shards": 2}, True), ({"shards": 2, "top_k": 2}, False)):
        assert (latest_contexts(rag.spec(retrieval=retrieval), rag.store) is not None) == known


@pytest.mark.parametrize("shard", [-1, 2])
def test_a_part_that_is_not_there_is_refused(rag: Any, shard: int) -> None:
    spec = rag.spec(retrieval={"shards": 2})
    with pytest.raises(InputError, match=rf"shard {shard} is none of retrieval\.shards 2; give one from 0"):
        retrieve_shard(spec, rag.index(), rag.store, Progress(), shard)
    assert rag.left("retrieved") == []


def test_what_the_contexts_would_refuse_is_refused_before_a_part_is_made(rag: Any) -> None:
    spec = rag.spec(retrieval={"shards": 2, "filters": {"team": "none"}})
    with pytest.raises(InputError, match=r"retrieval\.filters\.team"):
        retrieve_shard(spec, rag.index(), rag.store, Progress(), 0)
    spec = rag.spec(retrieval={"shards": 2}, evaluation={"slices": ["nowhere"]})
    with pytest.raises(InputError, match="'nowhere' is neither"):
        retrieve_shard(spec, rag.index(), rag.store, Progress(), 0)
    assert rag.left("retrieved") == []
