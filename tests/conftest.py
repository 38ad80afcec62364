"""Fixtures that several folders of tests share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from jora_tasks.artifacts import ArtifactStore, jora_home
from jora_tasks.models import base_model_folder
from jora_tasks.spec import DEFAULT_BASE_MODEL
from tests.tiny import write_project

settings.register_profile("untimed", deadline=None)  # the machine may be busy
settings.load_profile("untimed")


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


@pytest.fixture(autouse=True)
def no_registry_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded registry, whatever the environment of the tests names."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded registry's database without an adapter; making one takes seconds, so tests copy it."""
    from jora_tasks.registry import Registry

    home = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        Registry(home)._client().search_registered_models()
    return home / "mlflow" / "mlflow.db"


@pytest.fixture
def registry_store(tmp_path: Path, empty_registry: Path) -> ArtifactStore:
    """A home without artifacts, its registry's database ready."""
    store = ArtifactStore(tmp_path / "home")
    (store.home / "mlflow").mkdir(parents=True)
    shutil.copy(empty_registry, store.home / "mlflow")
    return store
