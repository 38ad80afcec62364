"""How documents and questions moved since the champion was trained, from the artifacts that made it."""

from __future__ import annotations

from typing import Any

from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.evaluation.drift import Profile, compare_profiles
from jora_tasks.registry import RegisteredAdapter
from jora_tasks.stages.corpus import changes, document_digests


def drift_report(
    champion: RegisteredAdapter | None, contexts: Artifact | None, store: ArtifactStore
) -> dict[str, Any]:
    """For report.json: ``against`` the champion's version, how many ``documents`` changed, and ``figures``
    (see `jora_tasks.evaluation.drift.compare_profiles`); or the ``reason`` why it cannot be told."""
    if champion is None:
        return {"reason": "there is no champion whose documents and questions these could be compared with"}
    if contexts is None:
        return {"reason": "the contexts of this evaluation are gone"}
    try:
        before = _input("contexts", _input("prompts", store.get("adapter", champion.key), store), store)
        then_corpus, now_corpus = (
            _input("corpus", _input("index", each, store), store) for each in (before, contexts)
        )
    except InputError:
        return {"reason": f"what champion version {champion.version} was made of is no longer in this home"}
    then, now = (_profile(*pair) for pair in ((before, then_corpus), (contexts, now_corpus)))
    return {
        "against": champion.version,
        "documents": changes(document_digests(now_corpus), document_digests(then_corpus)),
        "figures": compare_profiles(then, now),
    }


def _input(kind: str, artifact: Artifact, store: ArtifactStore) -> Artifact:
    """The artifact of this kind that another was made from.

    Raises:
      InputError: if there is none any more.
    """
    for reference in artifact.manifest["inputs"].values():
        if reference["kind"] == kind and "key" in reference:
            return store.get(kind, reference["key"])
    raise InputError(f"{artifact.kind} {artifact.key} was made from no {kind}.")


def _profile(contexts: Artifact, corpus: Artifact) -> Profile:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from retrieval.answers import find_answer

    texts = pq.read_table(corpus.file("documents.parquet"), columns=["text"])["text"]
    rows = pq.read_table(
        contexts.file("contexts.parquet"), columns=["question", "answers", "contexts"]
    ).to_pylist()
    chosen = contexts.counts.get("retriever", {})
    return Profile(
        document_lengths=pc.utf8_length(texts).to_pylist(),
        question_lengths=[len(row["question"]) for row in rows],
        top_scores=[max(each["score"] for each in row["contexts"]) for row in rows if row["contexts"]],
        without_answer=[
            not any(
                find_answer(f"{each['heading']}\n{each['text']}", answer)
                for each in row["contexts"]
                for answer in row["answers"]
            )
            for row in rows
        ],
        retriever=f"{chosen.get('mode')} {chosen.get('dense_weight')}",
    )
