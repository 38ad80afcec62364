"""A small real pipeline for the stages before training: documents, questions, embedder, tokenizer."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.progress import Progress
from jora_tasks.spec import parse_spec
from tests.stages.evaluating import write_word_base
from tests.tiny import options, write_byte_tokenizer, write_documents, write_questions, write_tiny_embedder


@pytest.fixture(scope="session")
def stage_embedders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage-embedders")
    return write_tiny_embedder(folder / "tiny", seed=0), write_tiny_embedder(folder / "other", seed=1)


@pytest.fixture
def other_embedder_folder(stage_embedders):
    return stage_embedders[1]


@pytest.fixture(scope="session")
def byte_tokenizer_folder(tmp_path_factory):
    return write_byte_tokenizer(tmp_path_factory.mktemp("models") / "bytes")


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    return write_word_base(tmp_path_factory.mktemp("base") / "tiny-base")


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the adapter was used, for each call of the real generation."""
    import jora_tasks.evaluation.generation as generation

    real: Callable[..., Any] = generation.generate_and_score
    calls: list[bool] = []

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["use_adapter"])
        return real(*args, **kwargs)

    monkeypatch.setattr(generation, "generate_and_score", counting)
    return calls


class Rag:
    """The stages up to prompts, on 16 options of one document, 16 questions."""

    def __init__(self, folder: Path, embedder: Path, model: Path) -> None:
        self.folder, self.embedder, self.model = folder, embedder, model
        self.store = ArtifactStore(folder / "home")
        self.progress = Progress()
        write_documents(folder / "documents")
        self.questions = options()

    def spec(self, write: bool = True, **sections):
        file = self.folder / "questions.jsonl"
        if write:
            write_questions(file, self.questions)
        settings = {
            "documents": {"path": str(self.folder / "documents")},
            "questions": {"path": str(file)},
            "index": {"embedder": str(self.embedder), "chunk_tokens": 40},
            "retrieval": {"top_k": 3},
            "prompts": {"token_budget": 1000},
            "model": {"base": str(self.model)},
        }
        for name, values in sections.items():
            settings[name] = {**settings.get(name, {}), **values}
        return parse_spec(settings)

    def copy_guide(self) -> None:
        """A copy of the document that sorts before it."""
        documents = self.folder / "documents"
        (documents / "aaa").mkdir()
        shutil.copy(documents / "guide.md", documents / "aaa" / "guide-copy.md")

    def left(self, kind: str) -> list[Path]:
        """What lies among the artifacts of a kind, finished or not."""
        return list((self.store.home / "artifacts" / kind).glob("*"))

    def corpus(self, **sections):
        from jora_tasks.stages.corpus import build_corpus

        return build_corpus(self.spec(**sections), self.store, self.progress)

    def index(self, **sections):
        from jora_tasks.stages.index import build_index

        return build_index(self.spec(**sections), self.corpus(), self.store, self.progress)

    def contexts(self, **sections):
        from jora_tasks.stages.contexts import retrieve_contexts

        return retrieve_contexts(self.spec(**sections), self.index(**sections), self.store, self.progress)

    def prompts(self, **sections):
        from jora_tasks.stages.prompts import assemble_prompts

        return assemble_prompts(self.spec(**sections), self.contexts(**sections), self.store, self.progress)


@pytest.fixture
def rag(tmp_path, stage_embedders, byte_tokenizer_folder):
    return Rag(tmp_path, stage_embedders[0], byte_tokenizer_folder)
