"""The search of the contexts, settled before the first question is asked: for the stage and for its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_tasks.artifacts import Artifact, ArtifactStore, Input, Source
from jora_tasks.digests import digest_file
from jora_tasks.spec import AUTO_MODE, RunSpec
from jora_tasks.stages.canary import read_canaries
from jora_tasks.stages.corpus import document_texts
from jora_tasks.stages.judging import find_judge
from jora_tasks.stages.searching import Asked, SearchModels, find_models, find_weight, open_searcher
from jora_tasks.stages.slicing import slice_values

if TYPE_CHECKING:
    from retrieval.ahead import Ahead
    from retrieval.labels import Missing
    from retrieval.questions import Question
    from retrieval.search import Ranking, Searcher


@dataclass(frozen=True)
class Retrieving:
    """Which questions are asked of which index, by which models, and what is kept of that under which key."""

    spec: RunSpec
    index: Artifact
    store: ArtifactStore
    models: SearchModels
    questions: Sequence[Question]
    source: Source

    def settings(self) -> dict[str, Any]:
        """The settings that decide what is found."""
        spec = self.spec
        choosing = spec.evaluation.resampling() if spec.retrieval.mode == AUTO_MODE else {}
        return {**spec.retrieval.making(), **choosing, **spec.questions.making()}

    def inputs(self) -> dict[str, Input]:
        return {"index": self.index, "questions": self.source, **self.models.inputs()}

    def search(self, ahead: Ahead | None) -> Search:
        """Open the index, and tie the questions' evidence to its documents.

        Args:
          ahead: what was made before of some questions.

        Raises:
          InputError: for filters that no chunk passes, or by option evidence that the documents no longer
            have.
        """
        from retrieval.evidence import by_document, relevant_texts
        from retrieval.labels import with_evidence

        searcher = open_searcher(self.spec, self.index, self.models, ahead)
        texts = document_texts(self.store.get("corpus", self.index.manifest["inputs"]["corpus"]["key"]))
        labelled, missing = with_evidence(self.questions, texts, self.spec.questions.missing_evidence)
        documents = {span.document_id for _, spans in labelled for span in spans}
        chunks_of = by_document(chunk for chunk in searcher.index.chunks if chunk.document_id in documents)
        asked = [Asked(question, spans, relevant_texts(spans, chunks_of)) for question, spans in labelled]
        weight, why = find_weight(self.spec.retrieval, self.spec.evaluation, searcher, asked)
        return Search(searcher, asked, missing, weight, why)


@dataclass(frozen=True)
class Search:
    """An index opened for the questions.

    Attributes:
      missing: evidence that the documents no longer have.
      weight: of dense search.
      why: it is that.
    """

    searcher: Searcher
    asked: Sequence[Asked]
    missing: list[Missing]
    weight: float
    why: dict[str, Any]

    def rankings(self, asked: Sequence[Asked], done: Callable[[int], None]) -> Iterator[Ranking]:
        """What is found for these questions, in their order."""
        questions = [each.question.question for each in asked]
        for pool in self.searcher.pools(questions, [self.weight], done):
            yield self.searcher.rank(pool, self.weight)


def settle(spec: RunSpec, index: Artifact, store: ArtifactStore) -> Retrieving:
    """Read the questions and find the models, and refuse what would be found out only after the search.

    Raises:
      InputError: see `jora_tasks.stages.contexts.retrieve_contexts`.
    """
    models, questions = find_models(spec, index, store), read_split_questions(spec)
    read_canaries(spec)  # refused now rather than after training
    find_judge(spec, spec.prompts.cite, store)
    slice_values(spec, index, store, {})
    path = Path(spec.questions.path)
    return Retrieving(
        spec, index, store, models, questions, Source("questions", path.name, digest_file(path))
    )


def read_split_questions(spec: RunSpec) -> list[Question]:
    """The questions with their splits.

    Raises:
      InputError: for a malformed file, or one without train or test questions.
    """
    from retrieval.questions import read_questions
    from retrieval.splits import check_splits, split_questions

    path, settings = Path(spec.questions.path), spec.questions
    questions = split_questions(
        read_questions(path, settings.group_field),
        settings.dev_fraction,
        settings.test_fraction,
        settings.split_by,
    )
    check_splits(questions, path)
    return questions
