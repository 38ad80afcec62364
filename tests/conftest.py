"""Fixtures that several folders of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from jora_tasks.artifacts import jora_home
from jora_tasks.models import base_model_folder
from jora_tasks.spec import DEFAULT_BASE_MODEL
from tests.tiny import write_project


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, converted once by set-up."""
    return base_model_folder(DEFAULT_BASE_MODEL, jora_home())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ``$JORA_HOME``."""
    folder = tmp_path / "home"
    monkeypatch.setenv("JORA_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The spec file of a project with tiny random models: documents, questions, embedder, base."""
    return write_project(tmp_path_factory.mktemp("project"))
