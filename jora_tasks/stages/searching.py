"""An index opened for search as the spec says: for the contexts stage, and for whoever asks afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_tasks.artifacts import Artifact, ArtifactStore, Source
from jora_tasks.errors import InputError
from jora_tasks.models import model_source, reranker_folder
from jora_tasks.spec import AUTO_MODE, EvaluationConfig, RetrievalConfig, RunSpec
from jora_tasks.stages.embed import open_embedder

if TYPE_CHECKING:
    from retrieval.ahead import Ahead
    from retrieval.embedding import Embedder
    from retrieval.evidence import Span
    from retrieval.questions import Question
    from retrieval.search import Searcher


@dataclass(frozen=True)
class SearchModels:
    """The models of a search, unopened: the embedder; the reranker's folder and what it is as an input."""

    embedder: Embedder
    reranker: tuple[Path, Source] | None

    def inputs(self) -> dict[str, Source]:
        """The inputs of what is found, beside the index, which has the embedder among its own."""
        return {"reranker": self.reranker[1]} if self.reranker else {}


@dataclass(frozen=True)
class Asked:
    """A question with its evidence in the documents as they are, and the texts of the chunks that hold it."""

    question: Question
    evidence: list[Span]
    relevant: frozenset[str]


def find_models(spec: RunSpec, index: Artifact, store: ArtifactStore) -> SearchModels:
    """The models that a search of this index takes, without opening them.

    Raises:
      InputError: for a model that is not there, or an index that another embedder built.
    """
    from retrieval.index import check_embedder

    embedder, _ = open_embedder(spec, store)
    check_embedder(index.path, embedder)
    return SearchModels(embedder, find_reranker(spec, store))


def find_reranker(spec: RunSpec, store: ArtifactStore) -> tuple[Path, Source] | None:
    """The spec's reranker as `SearchModels` has it.

    Raises:
      InputError: for one that is not there.
    """
    name = spec.retrieval.reranker
    if not name:
        return None
    folder = reranker_folder(name, store.home)
    return folder, model_source(folder, name)


def check_question(question: str) -> None:
    """Refuse a question without a word.

    Raises:
      InputError: if it is empty.
    """
    if not question.strip():
        raise InputError("The question is empty; write one in words.")


def open_searcher(
    spec: RunSpec, index: Artifact, models: SearchModels, ahead: Ahead | None = None
) -> Searcher:
    """The index opened with the spec's settings.

    Args:
      ahead: what the models made before, and where is kept what they make now.

    Raises:
      InputError: see `retrieval.search.Searcher`.
    """
    from retrieval.index import check_identity
    from retrieval.reranking import Reranker
    from retrieval.search import Searcher

    check_identity(index.path, models.embedder.identity)
    reranker = Reranker(models.reranker[0], models.reranker[1].name) if models.reranker else None
    if ahead is None:
        return Searcher(index.path, models.embedder, spec.retrieval, reranker)
    scorer = ahead.reranker(reranker) if reranker else None
    return Searcher(index.path, ahead.embedder(models.embedder), spec.retrieval, scorer)


def find_weight(
    config: RetrievalConfig, evaluation: EvaluationConfig, searcher: Searcher, asked: Sequence[Asked]
) -> tuple[float, dict[str, Any]]:
    """The weight of dense search that the mode means, and why; ``auto`` looks at the dev questions alone."""
    from jora_tasks.evaluation.retriever_choice import DENSE, RIVALS, choose_weight
    from jora_tasks.evaluation.summary import Resampling
    from retrieval.measures import ndcg_at, recall_at
    from retrieval.search import dense_weight_of

    if config.mode != AUTO_MODE:
        return dense_weight_of(config), {"reason": "set by retrieval.mode"}
    dev = [each for each in asked if each.question.split == "dev" and each.relevant]
    weights = (DENSE, *RIVALS)
    k = searcher.depth if config.reranker else config.top_k  # what goes on is what must hold the evidence
    ndcg: dict[float, list[float]] = {weight: [] for weight in weights}
    recall: dict[float, list[float]] = {weight: [] for weight in weights}
    for each, pool in zip(
        dev, searcher.pools([each.question.question for each in dev], weights), strict=True
    ):
        for weight in weights:
            found = searcher.rank(pool, weight, rerank=False).found
            ranked = [one.chunk.text for one in found]
            ndcg[weight].append(ndcg_at(ranked, each.relevant, k))
            recall[weight].append(recall_at(ranked, each.relevant, k))
    resampling = Resampling(evaluation.bootstrap_samples, evaluation.confidence, evaluation.seed)
    weight, why = choose_weight(ndcg, recall, [each.question.group for each in dev], resampling)
    return weight, {**why, "k": k}


def open_again(
    spec: RunSpec, index: Artifact, contexts: Artifact | None, store: ArtifactStore
) -> tuple[Searcher, float, str]:
    """The index opened for a search like the one that made these contexts.

    Args:
      contexts: None takes the spec's own settings, in which ``auto`` has chosen nothing yet.

    Returns:
      The searcher, the weight of dense search, and why it is that.

    Raises:
      InputError: as `find_models`, or if the spec's reranker is not that of the contexts.
    """
    from retrieval.search import DENSE, dense_weight_of

    if contexts is None:
        models = find_models(spec, index, store)
        if spec.retrieval.mode == AUTO_MODE:
            return open_searcher(spec, index, models), 1.0, f"{DENSE}, since nothing was chosen yet"
        return open_searcher(spec, index, models), dense_weight_of(spec.retrieval), "set by retrieval.mode"
    retrieval = _retrieval_of(contexts).model_copy(update={"reranker": spec.retrieval.reranker})
    spec = spec.model_copy(update={"retrieval": retrieval})
    models = find_models(spec, index, store)
    then, now = contexts.manifest["inputs"].get("reranker"), models.inputs().get("reranker")
    if (then and then["digest"]) != (now and now.digest):
        used = f"the reranker {then['name']} ({then['digest'][:19]})" if then else "no reranker"
        raise InputError(
            f"Contexts {contexts.key} were made with {used}, but retrieval.reranker is "
            f"{retrieval.reranker!r}; set it as it was then."
        )
    chosen = contexts.counts["retriever"]
    return open_searcher(spec, index, models), chosen["dense_weight"], chosen["reason"]


def latest_contexts(spec: RunSpec, store: ArtifactStore) -> Artifact | None:
    """The latest contexts of the spec's name if they were searched with its settings."""
    try:
        latest = store.latest(spec.name, "contexts")
    except InputError:
        return None
    return latest if _retrieval_of(latest).making() == spec.retrieval.making() else None


def _retrieval_of(contexts: Artifact) -> RetrievalConfig:
    settings = contexts.manifest["settings"]
    return RetrievalConfig.model_validate({name: settings[name] for name in RetrievalConfig().making()})
