"""The registry against a real embedded MLflow."""

from __future__ import annotations

import http.server
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.registry import COMPARED_WITH, DIGEST, Registry
from tests.registry.registering import make_adapter, register


@pytest.fixture
def store(registry_store: ArtifactStore) -> ArtifactStore:
    return registry_store


def test_nothing_registered_needs_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    registry = Registry(tmp_path)
    assert registry.get_champion("documents") is None
    assert registry.versions("documents") == []
    assert registry.find_version("documents", "sha256:x") is None
    assert list(tmp_path.iterdir()) == []


def test_two_processes_open_a_fresh_home_at_once_over_what_a_killed_one_left(tmp_path: Path) -> None:
    folder = tmp_path / "mlflow"
    folder.mkdir()
    for name in (".mlflow.db.tmp-1", ".mlflow.db.tmp-1-journal"):
        (folder / name).write_text("half a database")
    code = f"""
import sys
from pathlib import Path
import mlflow
from jora_tasks.registry import Registry
print(flush=True)
sys.stdin.readline()
home = Path({str(tmp_path)!r})
Registry(home).register(home / "adapter", "documents", metrics={{}}, tags={{}}, params={{}})
"""
    (tmp_path / "adapter").mkdir()
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for child in children:  # both wait behind their imports, then start together
        assert child.stdout is not None and child.stdout.readline()
    for child in children:
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
    for child in children:
        child.communicate(timeout=60)
        assert child.returncode == 0
    assert [each.version for each in Registry(tmp_path).versions("documents")] == [1, 2]
    assert sorted(file.name for file in folder.iterdir()) == ["artifacts", "mlflow.db"]


def test_versions_may_be_kept_apart_from_runs(
    store: ArtifactStore, tmp_path: Path, empty_registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = store.home / "mlflow" / "mlflow.db"
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{database}")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(empty_registry, tmp_path / 'runs.db')}")
        register(Registry(store.home), make_adapter(store, 1))
    assert list((tmp_path / "artifacts").rglob("adapter_config.json"))
    assert [each.version for each in Registry(store.home).versions("documents")] == [1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'runs.db'}")
    assert Registry(store.home).versions("documents") == []


def test_a_full_disk_leaves_no_half_database(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"make room for the database, .*sqlite3\.OperationalError"):
            Registry(tmp_path)._ensure_model("documents")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not any((tmp_path / "mlflow").iterdir())


@pytest.mark.parametrize("content", ["", "no database"])
def test_a_file_that_is_no_database(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / "mlflow.db"
    database.write_text(content)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    if content:
        with pytest.raises(InputError, match=f"^No registry answers at sqlite:///{database}; .*MLFLOW_TRACK"):
            Registry(tmp_path).versions("documents")
    else:
        assert Registry(tmp_path).versions("documents") == []


@pytest.mark.parametrize(
    "address",
    ["foo", "ftp://x", "http://", "sqlite://", "sqlite:///", "sqlite:///{}/nope/x.db", "ftp://u:secret@x"],
)
@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"])
def test_what_is_no_address_is_refused(
    variable: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, address.format(tmp_path))
    with pytest.raises(InputError, match=f"^{variable} .* is no registry; ") as refused:
        Registry(tmp_path)
    assert "secret" not in str(refused.value)
    assert not any(tmp_path.iterdir())


@pytest.fixture
def no_mlflow() -> Iterator[str]:
    """The address of a server that knows nothing of MLflow."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("kind", ["nobody", "another", "malformed"])
def test_where_no_registry_answers_it_is_said_soon(
    kind: str, no_mlflow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = {"nobody": "http://u:secret@127.0.0.1:9", "another": no_mlflow, "malformed": "http://[bad"}[
        kind
    ]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    before = dict(os.environ)
    started = time.monotonic()
    with pytest.raises(InputError, match=r"^No registry answers at http://.*MLFLOW_TRACKING_URI") as refused:
        Registry(tmp_path).get_champion("documents")
    assert time.monotonic() - started < 20
    assert "secret" not in str(refused.value)
    assert before.items() <= os.environ.items()
    assert not any(name.startswith("MLFLOW_HTTP") for name in os.environ)
    assert not any(tmp_path.iterdir())


def test_import_is_light() -> None:
    code = "import sys, jora_tasks.registry; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_version_is_found_by_its_digests(store: ArtifactStore) -> None:
    registry = Registry(store.home)
    first, second = make_adapter(store, 1), make_adapter(store, 2)
    assert register(registry, first, "sha256:one") == 1
    assert register(registry, second, "sha256:two") == 2
    assert register(registry, first, "sha256:three") == 3

    found = registry.find_version("documents", first.digest)
    assert found is not None and found.version == 3
    again = Registry(store.home).find_version("documents", first.digest, "sha256:one")
    assert again is not None and (again.version, again.key) == (1, first.key)
    assert registry.find_version("documents", second.digest, "sha256:one") is None
    assert registry.find_version("others", first.digest) is None


def test_a_run_has_metrics_params_and_files(store: ArtifactStore, tmp_path: Path) -> None:
    registry = Registry(store.home)
    adapter = make_adapter(store, 1)
    report = tmp_path / "report.html"
    report.write_text("<p>report</p>")
    version = registry.register(
        adapter.path,
        "documents",
        metrics={"exact_match": 0.75},
        tags={DIGEST: adapter.digest},
        params={f"setting.{i}": "x" * 7000 for i in range(120)},
        reports=[report],
    )
    client = registry._client()
    run = client.get_run(client.get_model_version("documents", str(version)).run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"exact_match": 0.75}
    assert len(run.data.params) == 120
    assert run.data.tags[DIGEST] == adapter.digest
    # MLflow itself would add the path of the running program.
    assert not any(str(store.home) in value or value.startswith("/") for value in run.data.tags.values())
    assert {item.path for item in client.list_artifacts(run.info.run_id, "adapter")} == {
        "adapter/README.md",
        "adapter/adapter_config.json",
        "adapter/manifest.json",
    }
    assert [item.path for item in client.list_artifacts(run.info.run_id, "report")] == ["report/report.html"]


def test_a_registration_that_fails_leaves_no_version(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(store.home)
    adapter = make_adapter(store, 1)
    client = registry._client()

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(client, "log_artifacts", full)
    with pytest.raises(OSError, match="disk full"):
        register(registry, adapter)
    assert registry.versions("documents") == []
    experiment = client.get_experiment_by_name("documents").experiment_id
    assert [run.info.status for run in client.search_runs([experiment])] == ["FAILED"]


def test_download_gives_the_registered_files_or_refuses(store: ArtifactStore, tmp_path: Path) -> None:
    registry = Registry(store.home)
    adapter = make_adapter(store, 1)
    register(registry, adapter)
    registered = registry.get("documents", 1)
    assert registered is not None
    folder = registry.download(registered, tmp_path / "a")
    assert (folder / "adapter_config.json").read_bytes() == adapter.file("adapter_config.json").read_bytes()

    kept = next((store.home / "mlflow" / "artifacts").rglob("adapter_config.json"))
    kept.write_text("{}")
    with pytest.raises(InputError, match="are not those"):
        registry.download(registered, tmp_path / "b")
    for file in sorted(kept.parent.iterdir()):
        file.unlink()
    kept.parent.rmdir()
    with pytest.raises(InputError, match="cannot be fetched"):
        registry.download(registered, tmp_path / "c")


def test_rival_is_the_champion_or_what_the_champion_beat(store: ArtifactStore) -> None:
    registry = Registry(store.home)
    first, second = make_adapter(store, 1), make_adapter(store, 2)
    assert registry.rival("documents", first.digest) is None
    register(registry, first)
    registry.promote("documents", 1, by="tests", reason="to see")
    assert registry.rival("documents", first.digest) is None
    rival = registry.rival("documents", second.digest)
    assert rival is not None and rival.version == 1
    register(registry, second, **{COMPARED_WITH: "1"})
    registry.promote("documents", 2, by="tests", reason="to see")
    rival = registry.rival("documents", second.digest)
    assert rival is not None and rival.version == 1
    rival = registry.rival("documents", first.digest)
    assert rival is not None and rival.version == 2


def test_everything_lies_in_the_home(store: ArtifactStore) -> None:
    registry = Registry(store.home)
    register(registry, make_adapter(store, 1))
    assert registry.location == f"sqlite:///{store.home / 'mlflow' / 'mlflow.db'}"
    with sqlite3.connect(store.home / "mlflow" / "mlflow.db") as database:
        assert database.execute("select count(*) from model_versions").fetchone() == (1,)
    assert list((store.home / "mlflow" / "artifacts").rglob("adapter_config.json"))
