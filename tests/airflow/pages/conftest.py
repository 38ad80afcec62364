"""Airflow's own web server in this process, with users, over a home with a line of adapters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jora_tasks.artifacts import Artifact, ArtifactStore
from tests.lines import USERS, make_line


@pytest.fixture(scope="session")
def line_home(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Path:
    """A home with three versions of the line ``tiny``, of which none is champion; to be copied."""
    home = tmp_path_factory.mktemp("line") / "home"
    (home / "mlflow").mkdir(parents=True)
    shutil.copy(empty_registry, home / "mlflow")
    make_line(ArtifactStore(home))
    return home


@pytest.fixture
def store(line_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """A copy of `line_home`, which the pages show."""
    shutil.copytree(line_home, tmp_path / "home")
    monkeypatch.setenv("JORA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return ArtifactStore(tmp_path / "home")


@pytest.fixture(scope="session")
def server(airflow_db: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Airflow's app with `USERS`, whose passwords are their names doubled."""
    from airflow.api_fastapi.app import create_app, purge_cached_app

    passwords = tmp_path_factory.mktemp("users") / "passwords.json"
    passwords.write_text(json.dumps({name: name * 2 for name in USERS}))
    with pytest.MonkeyPatch.context() as patch:
        prefix = "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER"
        patch.setenv(f"{prefix}_USERS", ",".join(f"{name}:{role}" for name, role in USERS.items()))
        patch.setenv(f"{prefix}_PASSWORDS_FILE", str(passwords))
        purge_cached_app()
        yield create_app(apps="core")
        purge_cached_app()


@pytest.fixture
def stranger(server: Any, store: ArtifactStore) -> TestClient:
    """A browser without a login."""
    return TestClient(server, headers={"Accept": "text/html"}, follow_redirects=False)


@pytest.fixture
def browser(server: Any, store: ArtifactStore) -> Callable[[str], TestClient]:
    """Makes a browser that this user is logged in with, by password, as the login page does."""

    def log_in(user: str) -> TestClient:
        client = TestClient(server, headers={"Accept": "text/html"}, follow_redirects=False)
        answer = client.post("/auth/token", json={"username": user, "password": user * 2})
        assert answer.status_code == 201, answer.text
        client.cookies.set("_token", answer.json()["access_token"])
        return client

    return log_in


@pytest.fixture
def uma(browser: Callable[[str], TestClient]) -> TestClient:
    """May trigger and edit DAGs."""
    return browser("uma")


@pytest.fixture
def vic(browser: Callable[[str], TestClient]) -> TestClient:
    """May only read."""
    return browser("vic")


@pytest.fixture
def newest(store: ArtifactStore) -> Callable[[str], Artifact]:
    """The artifact of a kind that version 3 was made with."""
    return lambda kind: store.latest("tiny", kind)
