"""Artifacts shared by machines, over a real S3 server on loopback and over a folder."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from jora_tasks import file_systems
from jora_tasks.artifacts import Artifact, ArtifactStore, Source
from jora_tasks.errors import InputError, RunStopped
from jora_tasks.manifest import MANIFEST
from jora_tasks.shared_store import ARTIFACTS, PATIENCE, SharedStore

DOCUMENTS = Source("documents", "guide", "sha256:d")


@pytest.fixture(params=["s3", "folder"])
def url(request: Any, tmp_path: Path) -> str:
    return request.getfixturevalue("s3") if request.param == "s3" else (tmp_path / "share").as_uri()


@pytest.fixture
def machine(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ArtifactStore]:
    """Makes the store of a machine with a home of its own."""
    monkeypatch.setenv(ARTIFACTS, url)
    return lambda name: ArtifactStore(tmp_path / name)


def build(store: ArtifactStore, text: str = "a", **inputs: Any) -> Artifact:
    def write(folder: Path) -> Mapping[str, Any]:
        (folder / "tables").mkdir()
        (folder / "tables" / "rows.txt").write_text(text)
        (folder / "notes.txt").write_text(f"notes of {text}")
        return {"rows": 1}

    return store.build(
        "corpus", version=1, settings={}, inputs={"documents": DOCUMENTS, **inputs}, write=write
    )


def forbidden(folder: Path) -> Mapping[str, Any]:
    raise AssertionError("made already, by another machine")


def test_what_one_machine_made_the_others_have(machine: Callable[[str], ArtifactStore]) -> None:
    made = build(machine("one"))
    other = machine("two")
    for key in (made.key, made.key[:6]):
        found = other.get("corpus", key)
        assert (found.digest, found.key) == (made.digest, made.key)
        assert found.file("tables/rows.txt").read_text() == "a"
        assert found.path.is_relative_to(other.home)
    third = machine("three")
    assert third.manifest("corpus", made.key) == made.manifest
    reused = third.build("corpus", version=1, settings={}, inputs={"documents": DOCUMENTS}, write=forbidden)
    assert reused.reused and reused.manifest == made.manifest
    assert third.shared and third.shared.fetched == sum(
        (made.path / name).stat().st_size for name in made.manifest["files"]
    )
    with pytest.raises(InputError, match="does not exist"):
        other.get("corpus", "0" * 16)


@pytest.mark.parametrize("call", ["manifest", "set_latest", "names", "modified"])
def test_a_call_to_a_store_that_never_answers_ends_with_the_patience(silent_s3: str, call: str) -> None:
    given = {"manifest": ("corpus", "0"), "set_latest": ("guide", "corpus", "0"), "names": ("corpus",)}
    started = time.monotonic()
    with pytest.raises(RunStopped, match=f"{silent_s3} did not answer for 1 s .FSTimeoutError"):
        getattr(SharedStore(silent_s3, 1.0), call)(*given.get(call, ("latest",)))
    assert time.monotonic() - started < 10


class FallsSilent(BaseHTTPRequestHandler):
    """An object store that takes or gives the first part of a file, and then nothing more."""

    size = 8_000_000

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(self.size))
        self.send_header("Last-Modified", "Fri, 27 Nov 2026 00:00:00 GMT")
        self.send_header("ETag", '"0"')
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(bytes(65_536))
        self.server.over.wait()  # type: ignore[attr-defined]

    def do_PUT(self) -> None:
        self.rfile.read(65_536)
        self.server.over.wait()  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def half_silent_s3(silent_s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), FallsSilent) as server:
        server.over = threading.Event()  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield silent_s3
        server.over.set()  # type: ignore[attr-defined]
        server.shutdown()


@pytest.mark.parametrize("call", ["send", "take"])
def test_a_store_that_falls_silent_in_the_middle_of_a_file_is_not_waited_for_without_end(
    half_silent_s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(file_systems, "SLOWEST", FallsSilent.size)  # one more second for the file
    (tmp_path / "shard").write_bytes(bytes(FallsSilent.size))
    started = time.monotonic()
    with pytest.raises(RunStopped, match=r"did not answer for 1 s .FSTimeoutError"):
        getattr(SharedStore(half_silent_s3, 1.0), call)(["shard"], tmp_path, "work", "index", "0")
    assert 2 <= time.monotonic() - started < 15


def test_the_latest_is_that_of_all_machines(machine: Callable[[str], ArtifactStore], url: str) -> None:
    one, two = machine("one"), machine("two")
    with pytest.raises(InputError, match=f"No corpus yet for 'guide' in {url}"):
        two.latest("guide", "corpus")
    made = build(one)
    one.set_latest("guide", made)
    assert two.latest("guide", "corpus").key == made.key
    with pytest.raises(InputError, match="there is one for guide: give its --spec"):
        two.latest("other", "corpus")


def test_of_two_that_make_the_same_at_once_one_is_published(machine: Callable[[str], ArtifactStore]) -> None:
    """They differ on purpose, as results of two devices may."""
    stores = [machine(name) for name in ("one", "two")]
    together = threading.Barrier(2)
    made: dict[int, Artifact] = {}

    def work(number: int) -> None:
        def write(folder: Path) -> Mapping[str, Any]:
            together.wait()
            (folder / "rows.txt").write_text(f"made by {number}" * (1 + 1000 * number))
            return {}

        made[number] = stores[number].build(
            "index", version=1, settings={}, inputs={"documents": DOCUMENTS}, write=write
        )

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made[0].manifest == made[1].manifest
    for number in (0, 1):
        again = stores[number].get("index", made[number].key)
        assert again.digest == made[0].digest
        assert again.file("rows.txt").read_text() == made[0].file("rows.txt").read_text()


def test_what_was_not_published_to_its_end_is_published_by_the_next_try(
    machine: Callable[[str], ArtifactStore], monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.delenv(ARTIFACTS)
    made = build(machine("one"))
    monkeypatch.setenv(ARTIFACTS, url)
    store = machine("one")
    assert store.shared and store.shared.manifest("corpus", made.key) is None
    system, root = fsspec.url_to_fs(url)  # a file without a manifest, as a kill leaves it, is nothing yet
    system.makedirs(_file(f"{root}/artifacts/corpus/{made.key}", made).rpartition("/")[0], exist_ok=True)
    system.pipe_file(_file(f"{root}/artifacts/corpus/{made.key}", made), b"half")
    with pytest.raises(InputError, match="does not exist"):
        machine("two").get("corpus", made.key[:8])
    assert build(store).reused
    assert machine("two").get("corpus", made.key).digest == made.digest


def test_a_store_that_refuses_for_a_while_is_waited_for(
    s3: str, objects: ThreadedMotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ARTIFACTS, s3)
    store = ArtifactStore(tmp_path / "one")
    objects.stop()

    def back() -> None:
        time.sleep(3)
        objects._thread = threading.Thread(target=objects._server_entry, daemon=True)
        objects.start()

    returning = threading.Thread(target=back)
    returning.start()
    made = build(store)
    returning.join()
    assert ArtifactStore(tmp_path / "two").get("corpus", made.key).digest == made.digest


def test_a_store_that_stays_away_says_so_and_loses_nothing(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ARTIFACTS, s3)
    with monkeypatch.context() as away:
        away.setenv(PATIENCE, "1")
        away.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        fsspec.filesystem("s3").clear_instance_cache()
        with pytest.raises(RunStopped, match=r"JORA_ARTIFACTS s3://fleet/\d+ did not answer for 1 s"):
            build(ArtifactStore(tmp_path / "one"))
    fsspec.filesystem("s3").clear_instance_cache()
    made = build(ArtifactStore(tmp_path / "one"))
    assert ArtifactStore(tmp_path / "two").get("corpus", made.key).digest == made.digest


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda system, folder, made: system.pipe_file(_file(folder, made), b"other"), "does not match its"),
        (lambda system, folder, made: system.pipe_file(f"{folder}/{MANIFEST}", b"{"), "manifest of corpus"),
        (
            lambda system, folder, made: system.pipe_file(f"{folder}/{MANIFEST}", _escaping(made)),
            "leads out of it",
        ),
    ],
    ids=["file", "manifest", "escape"],
)
def test_what_was_altered_is_refused_by_its_place(
    machine: Callable[[str], ArtifactStore], url: str, harm: Callable[..., None], said: str
) -> None:
    made = build(machine("one"))
    system, root = fsspec.url_to_fs(url)
    harm(system, f"{root}/artifacts/corpus/{made.key}", made)
    other = machine("two")
    with pytest.raises(InputError, match=said) as refused:
        other.get("corpus", made.key)
    assert url in str(refused.value)
    assert not list((other.home / "artifacts").rglob("*.txt"))


def _file(folder: str, made: Artifact) -> str:
    return f"{folder}/{made.digest.removeprefix('sha256:')}/notes.txt"


def _escaping(made: Artifact) -> bytes:
    return json.dumps({**made.manifest, "files": {"../../../../escaped.txt": "sha256:0"}}).encode()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://user:hunter2@bucket/x", "has a password in it"),
        ("nothing-of-the-kind://bucket/x", "cannot be opened"),
        ("s3://no-such-bucket/x", "has no such place"),
    ],
)
def test_a_place_that_cannot_be_is_refused_in_a_sentence(
    s3: str, url: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ARTIFACTS, url)
    with pytest.raises(InputError, match=said) as refused:
        build(ArtifactStore(tmp_path))
    assert "hunter2" not in str(refused.value)


@pytest.mark.slow
def test_a_large_file_goes_in_parts(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ARTIFACTS, s3)
    size = 101 << 20  # s3fs sends two parts of 50 MiB and more

    def write(folder: Path) -> Mapping[str, Any]:
        with (folder / "index.faiss").open("wb") as file:
            file.seek(size - 1)
            file.write(b"x")
        return {}

    made = ArtifactStore(tmp_path / "one").build(
        "index", version=1, settings={}, inputs={"documents": DOCUMENTS}, write=write
    )
    shared = SharedStore(s3)
    place = f"artifacts/index/{made.key}/{made.digest.removeprefix('sha256:')}/index.faiss"
    info = fsspec.filesystem("s3").info(f"{s3.removeprefix('s3://')}/{place}")
    assert info["ETag"].strip('"').endswith("-3")  # how S3 tells the number of parts
    assert shared.manifest("index", made.key) is not None
    assert ArtifactStore(tmp_path / "two").get("index", made.key).digest == made.digest
