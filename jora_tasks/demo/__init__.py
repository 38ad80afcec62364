"""The demo's data: Airflow's configuration reference, as installed, and questions about its options."""

from __future__ import annotations

import json
from pathlib import Path

from jora_tasks.artifacts import atomic_folder, digest_folder
from jora_tasks.demo.documents import airflow_sections, python_topics, section_document
from jora_tasks.demo.questions import make_questions
from jora_tasks.spec import (
    DocumentsConfig,
    IndexConfig,
    PromptsConfig,
    QuestionsConfig,
    RetrievalConfig,
    RunSpec,
)

DOCUMENTS, QUESTIONS = "documents", "questions.jsonl"


def write_demo(folder: Path) -> dict[str, int]:
    """Write the demo's documents and questions; the same installed packages give the same files.

    Args:
      folder: gets ``documents/`` and ``questions.jsonl``.

    Returns:
      How many documents, options and questions of each split there are.
    """
    sections = airflow_sections()
    rendered = {section.name: section_document(section) for section in sections}
    topics = python_topics()
    questions = make_questions(sections, rendered)
    with atomic_folder(folder / f".{DOCUMENTS}.new") as target:
        for section in sections:
            _write(target / "airflow" / f"{section.name}.md", rendered[section.name].text)
        for name, text in topics.items():
            _write(target / "python" / f"{name}.txt", text)
    _take_place(folder / f".{DOCUMENTS}.new", folder / DOCUMENTS)
    lines = (json.dumps(question, ensure_ascii=False) for question in questions)
    _write(folder / QUESTIONS, "".join(f"{line}\n" for line in lines))
    splits = [question["split"] for question in questions]
    return {
        "documents": len(sections) + len(topics),
        "options": sum(len(section.options) for section in sections),
        **{split: splits.count(split) for split in ("train", "dev", "test")},
    }
