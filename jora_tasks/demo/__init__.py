"""The demo's data: Airflow's configuration reference, as installed, and questions about its options."""

from __future__ import annotations

import json
from pathlib import Path

from jora_tasks.demo.documents import airflow_sections, python_topics, section_document
from jora_tasks.demo.questions import make_questions
from jora_tasks.spec import (
    DocumentsConfig,
    EvaluationConfig,
    IndexConfig,
    PromptsConfig,
    QuestionsConfig,
    RetrievalConfig,
    RunSpec,
    TrainConfig,
)
from jora_tasks.writing import atomic_folder, write_text

DOCUMENTS, QUESTIONS = "documents", "questions.jsonl"


def write_demo(folder: Path) -> dict[str, int]:
    """Write the demo's documents and questions; the same installed packages give the same files.

    Args:
      folder: gets ``documents/`` and ``questions.jsonl``; what lay there is replaced.

    Returns:
      How many documents, options and questions of each split there are.
    """
    sections = airflow_sections()
    rendered = [section_document(section) for section in sections]
    topics = python_topics()
    questions = make_questions(rendered)
    with atomic_folder(folder / DOCUMENTS) as target:
        for name in ("airflow", "python"):
            (target / name).mkdir()
        for document in rendered:
            (target / document.path).write_text(document.text, encoding="utf-8")
        for name, text in topics.items():
            (target / "python" / f"{name}.txt").write_text(text, encoding="utf-8")
    lines = [json.dumps(question, ensure_ascii=False) for question in questions]
    write_text(folder / QUESTIONS, "".join(f"{line}\n" for line in lines))
    splits = [question["split"] for question in questions]
    return {
        "documents": len(rendered) + len(topics),
        "options": sum(len(section.options) for section in sections),
        **{split: splits.count(split) for split in ("train", "dev", "test")},
    }


def demo_spec(folder: Path) -> RunSpec:
    """The settings of the demo on the files that `write_demo` put into the folder."""
    return RunSpec(
        name="demo",
        documents=DocumentsConfig(path=str((folder / DOCUMENTS).resolve())),
        questions=QuestionsConfig(path=str((folder / QUESTIONS).resolve())),
        index=IndexConfig(chunk_tokens=160),
        # Hybrid search finds more, but options so much alike that so small a model mixes them up.
        retrieval=RetrievalConfig(mode="dense", top_k=3),
        prompts=PromptsConfig(token_budget=640),
        # More updates from as many tokens: it learns more from few questions.
        training=TrainConfig(batch_size=2),
        # Each token more reads all weights, however many answers it goes on with.
        evaluation=EvaluationConfig(batch_size=16),
    )
