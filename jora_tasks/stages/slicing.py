"""What held-out questions are told apart by: fields of the questions file, metadata of their documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.digests import digest_file
from jora_tasks.errors import InputError
from jora_tasks.reading import parse_rows, read_text
from jora_tasks.spec import RunSpec

if TYPE_CHECKING:
    from retrieval.questions import Question

NO_VALUE = "(none)"


def slice_names(spec: RunSpec) -> tuple[str, ...]:
    """Those of ``evaluation.slices`` and ``gate.slices``, each once."""
    return tuple(dict.fromkeys((*spec.evaluation.slices, *spec.gate.slices)))


def slice_values(
    spec: RunSpec,
    index: Artifact,
    store: ArtifactStore,
    documents: Mapping[str, Sequence[str]],
    questions_digest: str = "",
) -> dict[str, dict[str, str]]:
    """Question id → slice → its value there, ``(none)`` where it has none.

    A name is a field of the questions file; else a key of the metadata of the documents with the evidence,
    of which the first one counts.

    Args:
      index: of the documents.
      documents: question id → ids of the documents with its evidence.
      questions_digest: of the questions file that is meant; empty takes the file as it is.

    Raises:
      InputError: for a name that is neither, or a questions file that is no longer the one meant.
    """
    names = slice_names(spec)
    if not names:
        return {}
    from retrieval.documents import normalise
    from retrieval.questions import read_questions

    path = Path(spec.questions.path)
    if questions_digest and digest_file(path) != questions_digest:
        raise InputError(
            f"questions.path {path} changed after contexts were made of it, so that its fields are not known "
            "any more; run `jora contexts` again, or leave out evaluation.slices and gate.slices."
        )
    fields = [row for row, _ in parse_rows(normalise(read_text(path, f"questions.path {path}")), path)]
    asked: list[Question] = read_questions(path, spec.questions.group_field)
    in_file = {name for row in fields for name in row}
    metadata = _metadata(index, store) if set(names) - in_file else {}
    in_documents = {name for values in metadata.values() for name in values}
    for name in names:
        if name not in in_file | in_documents:
            known = ", ".join(sorted(in_file | in_documents))
            raise InputError(
                f"evaluation.slices or gate.slices: {name!r} is neither a field of {path.name} nor in the "
                f"documents' metadata; there are {known}."
            )

    def value(name: str, question: Question, row: Mapping[str, Any]) -> str:
        if name in in_file:
            found = row.get(name)
        else:
            places = [
                metadata[id_] for id_ in documents.get(question.id, ()) if name in metadata.get(id_, {})
            ]
            found = places[0][name] if places else None
        return NO_VALUE if found is None or not str(found).strip() else str(found).strip()[:200]

    return {
        question.id: {name: value(name, question, row) for name in names}
        for question, row in zip(asked, fields, strict=True)
    }


def _metadata(index: Artifact, store: ArtifactStore) -> dict[str, dict[str, str]]:
    """Document id → its metadata."""
    import pyarrow.parquet as pq

    corpus = store.get("corpus", index.manifest["inputs"]["corpus"]["key"])
    table = pq.read_table(corpus.file("documents.parquet"), columns=["document_id", "metadata"])
    return {row["document_id"]: dict(row["metadata"]) for row in table.to_pylist()}
