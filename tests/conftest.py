"""Fixtures that several folders of tests share."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import settings

from jora_tasks.artifacts import ArtifactStore, jora_home
from jora_tasks.models import base_model_folder
from jora_tasks.spec import DEFAULT_BASE_MODEL
from tests.commands import Commands
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


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """Runs `jora` commands; in a mount namespace of its own where the system lets it have one."""
    apart = ["unshare", "-m"]
    able = shutil.which(apart[0]) and subprocess.run([*apart, "true"], capture_output=True).returncode == 0
    with Commands(apart if able else ()) as started:
        yield started


@pytest.fixture(scope="session")
def finished_home(commands: Commands, tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the tiny project was run once, up to the registry; tests leave it as it is."""
    home = tmp_path_factory.mktemp("finished") / "home"
    assert commands.run("run", "--spec", tiny_project, JORA_HOME=home).code == 0
    return home


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


@pytest.fixture(scope="module")
def object_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def objects(object_port: int) -> Iterator[Any]:
    """An S3 server on loopback."""
    from moto.server import ThreadedMotoServer

    made = ThreadedMotoServer("127.0.0.1", object_port, verbose=False)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def silent_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a place in a store that takes connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as silent:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "worker")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-worker")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        fsspec.filesystem("s3").clear_instance_cache()
        yield "s3://fleet/silent"
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture
def s3(objects: Any, object_port: int, request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty place in a bucket of `objects`."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "worker")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-worker")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{object_port}")
    fsspec.filesystem("s3").clear_instance_cache()  # of the server that an earlier module reached
    fsspec.filesystem("s3").makedirs("fleet", exist_ok=True)
    return f"s3://fleet/{abs(hash(request.node.nodeid))}"
