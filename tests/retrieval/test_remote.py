import functools
import http.server
import socket
import threading
import uuid

import fsspec
import pytest

from jora_tasks.errors import InputError, RunStopped
from jora_tasks.spec import DocumentsConfig
from retrieval.collection import Tally, collect
from retrieval.remote import remote_files
from tests.retrieval.collecting import put


@pytest.fixture
def memory():
    """A folder of fsspec's memory: its file system and URL."""
    system = fsspec.filesystem("memory")
    root = f"/{uuid.uuid4().hex}/docs"
    yield system, f"memory:/{root}"
    system.rm(root.rpartition("/")[0], recursive=True)


def texts(url, cache, told=None):
    with remote_files(url, cache, told) as files:
        config = DocumentsConfig(path=url)
        return {document.id: document.text for document in collect(files, config, Tally())}


def kept(cache):
    return [path for path in cache.glob("*/*") if path.name != "lock"]


def test_files_are_fetched_once_a_version(memory, tmp_path):
    system, url = memory
    root = url.removeprefix("memory:/")
    system.pipe({f"{root}/a.md": b"a", f"{root}/sub/b.jsonl": b'{"text": "b"}', f"{root}/c.png": b"no"})
    system.pipe(f"{root}/.hidden/d.md", b"no")
    told = []
    assert texts(url, tmp_path, lambda *seen: told.append(seen)) == {"a.md": "a", "sub/b.jsonl:1": "b"}
    assert told == [(2, 2)]
    assert texts(url, tmp_path, lambda *seen: told.append(seen)) == {"a.md": "a", "sub/b.jsonl:1": "b"}
    assert told == [(2, 2)]

    system.pipe(f"{root}/a.md", b"A")
    system.rm(f"{root}/sub/b.jsonl")
    assert texts(url, tmp_path, lambda *seen: told.append(seen)) == {"a.md": "A"}
    assert told == [(2, 2), (1, 1)]
    assert [path.read_bytes() for path in kept(tmp_path)] == [b"A"]


def test_a_file_that_was_fetched_in_part_is_fetched_again(memory, tmp_path):
    system, url = memory
    system.pipe(f"{url.removeprefix('memory:/')}/a.md", b"whole")
    texts(url, tmp_path)
    (file,) = kept(tmp_path)
    file.write_bytes(b"who")
    put(file.parent, "tmp-killed", "half")
    assert texts(url, tmp_path) == {"a.md": "whole"}
    assert kept(tmp_path) == [file]


def test_a_name_cannot_lead_out_of_the_mirror(memory, tmp_path):
    system, url = memory
    root = url.removeprefix("memory:/")
    system.pipe(f"{root}/x/a.md", b"a")
    system.store[f"{root}/../../../escape.md"] = system.store[f"{root}/x/a.md"]
    try:
        assert texts(url, tmp_path / "cache") == {"x/a.md": "a"}
        assert not [path for path in tmp_path.rglob("escape*")]
    finally:
        del system.store[f"{root}/../../../escape.md"]


def test_one_file_behind_a_url(memory, tmp_path):
    system, url = memory
    system.pipe(f"{url.removeprefix('memory:/')}/a.csv", b"text\na\n")
    assert texts(f"{url}/a.csv", tmp_path) == {"a.csv:1": "a"}


def test_a_file_url_is_read_where_it_lies(tmp_path):
    put(tmp_path / "docs", "a.md", "a")
    assert texts(f"file://{tmp_path}/docs", tmp_path / "cache") == {"a.md": "a"}
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def served(tmp_path):
    """A folder and the URL at which a server on loopback lists and serves it."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_web_server(served, tmp_path):
    folder, url = served
    put(folder, "a.md", "a")
    put(folder, "sub/b.txt", "b")
    cache, told = tmp_path / "cache", []
    assert texts(url, cache) == {"a.md": "a", "sub/b.txt": "b"}
    put(folder, "a.md", "changed")
    assert texts(url, cache, lambda *seen: told.append(seen)) == {"a.md": "changed", "sub/b.txt": "b"}
    assert told == [(1, 1)]


def test_what_cannot_be_fetched_stops_the_run_and_leaves_what_was_fetched(served, tmp_path, monkeypatch):
    folder, url = served
    put(folder, "a.md", "a")
    texts(url, tmp_path / "cache")
    put(folder, "b.md", "b")

    from fsspec.implementations.http import HTTPFileSystem

    async def refused(self, path, *arguments, **options):
        raise OSError(104, "Connection reset by peer")

    with monkeypatch.context() as patch:
        patch.setattr(HTTPFileSystem, "_get_file", refused)
        with pytest.raises(
            RunStopped, match=r"documents\.path http://.* cannot be fetched \(.*reset.*run this"
        ):
            texts(url, tmp_path / "cache")
    assert len(kept(tmp_path / "cache")) == 1
    assert texts(url, tmp_path / "cache") == {"a.md": "a", "b.md": "b"}


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(served, tmp_path, monkeypatch):
    folder, url = served
    put(folder, "a.md", "a")
    put(folder, "sub/b.md", "b")
    put(folder, "index.html", '<a href="a.md">a</a> <a href="sub/">sub</a> <a href="gone/">gone</a>')
    assert texts(url, tmp_path / "cache") == {"a.md": "a", "sub/b.md": "b"}
    listed = http.server.SimpleHTTPRequestHandler.list_directory

    def failing(self, path):
        if self.path.startswith("/sub"):
            self.send_error(503)
            return None
        return listed(self, path)

    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "list_directory", failing)
    with pytest.raises(RunStopped, match=r"cannot be fetched \(.*503"):
        texts(url, tmp_path / "cache")
    assert len(kept(tmp_path / "cache")) == 2


def test_a_host_that_refuses_stops_the_run(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/docs/"
        with pytest.raises(RunStopped, match=rf"documents\.path {url} cannot be fetched \(Client.*Connect"):
            texts(url, tmp_path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nowhere", r"memory://nowhere cannot be read \(FileNotFoundError\); name another"),
        ("nonsense://x/y", r"cannot be opened \(Protocol not known: nonsense"),
        ("gs://bucket/docs", r"cannot be opened \(.*install"),
    ],
)
def test_urls_that_lead_nowhere_are_refused(url, message, tmp_path):
    with pytest.raises(InputError, match=message):
        texts(url, tmp_path)


def test_secrets_in_a_url_are_refused():
    for url in ("https://me:pw@host/docs", "https://host/docs?X-Amz-Signature=abc"):
        with pytest.raises(ValueError, match="must hold no password and no query") as refused:
            DocumentsConfig(path=url)
        assert "abc" not in str(refused.value.errors()[0]["msg"])
