"""Registries to test against: the one in the home, and a real server on loopback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jora_tasks.artifacts import ArtifactStore
from tests.registry.serving import serving


@pytest.fixture(scope="session")
def mlflow_server(empty_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an `mlflow server` over SQLite."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_registry, folder / "server.db")
    with serving(folder, workers=2) as server:
        yield server.address


@pytest.fixture(params=["embedded", pytest.param("server", marks=pytest.mark.slow)])
def any_registry(
    request: pytest.FixtureRequest, registry_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> ArtifactStore:
    """A home whose registry lies in it, or is the server's."""
    if request.param == "server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("mlflow_server"))
    return registry_store
