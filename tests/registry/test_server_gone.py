"""An `mlflow server` that is killed while an adapter is registered, and comes back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jora_tasks import cli
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.registry import Registry
from tests.registry.serving import Server, serving


@pytest.fixture(scope="module")
def server(empty_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_registry, folder / "server.db")
    with serving(folder) as started:
        yield started


@pytest.fixture
def store(
    finished_home: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ArtifactStore:
    """A home with all but the registration, which goes to the server."""
    for folder in ("artifacts", "latest"):
        shutil.copytree(finished_home / folder, tmp_path / "home" / folder)
    monkeypatch.setenv("JORA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address.replace("//", "//someone:planted-password@"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # MLflow's own goes on for minutes
    return ArtifactStore(tmp_path / "home")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["log_artifacts", "create_model_version"])
def test_a_server_killed_in_the_middle_is_told_and_the_next_try_registers_once(
    moment: str,
    store: ArtifactStore,
    server: Server,
    tiny_project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before the files are sent; and after the version was made, so that its answer is lost."""
    line = moment.replace("_", "-")
    command = ["register", "--spec", str(tiny_project), "--set", f"name={line}", "--json"]
    for kind in ("adapter", "evaluation", "verdict"):
        command += [f"--{kind}", store.latest("tiny", kind).key]

    def killed(client: Any, *args: Any, **kwargs: Any) -> Any:
        if moment == "create_model_version":
            method(client, *args, **kwargs)
        server.kill()
        return method(client, *args, **kwargs)

    from mlflow import MlflowClient

    method = getattr(MlflowClient, moment)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, moment, killed)
        code, _, told = run(command, capsys, monkeypatch)
    assert code == 1
    assert told.splitlines()[-1].startswith("jora: The registry failed (")
    assert told.splitlines()[-1].endswith("run this again.") and "planted-password" not in told

    code, _, told = run(command, capsys, monkeypatch)
    assert code == 2
    assert "No registry answers at http://127.0.0.1" in told and "start the server" in told

    server.start()
    code, printed, told = run(command, capsys, monkeypatch)
    assert code == 0, told
    again = json.loads(printed.splitlines()[-1])
    assert (again["version"], again["state"]) == (1, "built" if moment == "log_artifacts" else "reused")
    assert [each.version for each in Registry(store.home).versions(line)] == [1]
    assert not list((store.home / "mlflow").glob("*"))


def run(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    """Exit code and output of the command, in this process."""
    monkeypatch.setattr("sys.argv", ["jora", *command])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err
