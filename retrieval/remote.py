"""Documents behind a URL: fetched into a local mirror, each version of a file once."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_tasks.errors import InputError, RunStopped
from retrieval.files import SourceFile, checked_files, is_document, local_files

# What file systems tell of a file that is another when its content is.
# fmt: off
_VERSIONS = frozenset((
    "etag", "md5", "md5hash", "content_md5", "content-md5", "crc32c", "digest", "generation", "version",
    "lastmodified", "last_modified", "last-modified", "updated", "modified", "mtime", "created",
))
# fmt: on
_AT_ONCE = 64


@contextlib.contextmanager
def remote_files(
    url: str, cache: Path, told: Callable[[int, int], None] | None = None
) -> Iterator[list[SourceFile]]:
    """The files of documents behind a URL, on this machine as long as the block lasts.

    A version of a file that the mirror has is not fetched again; one that the URL has no more is
    removed from it. What a killed run had fetched is used.

    Args:
      url: of a folder or a file, for any file system of fsspec.
      cache: folder of mirrors; each URL has one in it.
      told: called with the number of files fetched and to fetch.

    Raises:
      InputError: if the URL cannot be opened, does not exist or holds no document.
      RunStopped: if fetching fails.
    """
    system, root = _open(url)
    if "file" in _protocols(system):
        yield local_files(Path(root))
        return
    mirror = cache / hashlib.sha256(url.encode()).hexdigest()[:16]
    mirror.mkdir(parents=True, exist_ok=True)
    with (mirror / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run would remove files that this one reads
        with _explained(url):
            found = list(_found(system, root))
        files = checked_files([SourceFile(each.name, mirror / each.kept_as) for each in found], url)
        there = {path.name: path.stat().st_size for path in mirror.iterdir()}
        waiting = [each for each in found if there.get(each.kept_as) != each.size or not each.versioned]
        wanted = {each.kept_as for each in found} | {"lock"}
        for name in there.keys() - wanted:
            (mirror / name).unlink()
        with _explained(url):
            for start in range(0, len(waiting), _AT_ONCE):
                _fetch(system, waiting[start : start + _AT_ONCE], mirror)
                if told:
                    told(min(start + _AT_ONCE, len(waiting)), len(waiting))
        yield files


def remote_listing(url: str) -> dict[str, str]:
    """The documents behind a URL, none of them fetched: name → what tells one version from another.

    Raises:
      InputError: if the URL cannot be opened or does not exist.
      RunStopped: if its file system fails.
    """
    system, root = _open(url)
    with _explained(url):
        return {each.name: each.version or str(each.size) for each in _found(system, root)}


@dataclass(frozen=True)
class _Remote:
    path: str
    name: str
    size: int | None
    version: str

    @property
    def versioned(self) -> bool:
        return bool(self.version) and self.size is not None

    @property
    def kept_as(self) -> str:
        """The mirror's name for this version: no remote name can lead out of the mirror."""
        return hashlib.sha256(json.dumps([self.name, self.version]).encode()).hexdigest()[:32]


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, root = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(". ")
        raise InputError(
            f"documents.path {url} cannot be opened ({reason}); install what opens it, or give another."
        ) from None
    system.invalidate_cache()  # of this process: object stores' systems keep listings for good
    return system, root


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def _found(system: Any, root: str) -> Iterator[_Remote]:
    entries = dict(_listed(system, root))
    if not entries and system.isfile(root):
        entries = {root: system.info(root)}
    prefix = root.rstrip("/") + "/"
    for path, info in entries.items():
        name = path.removeprefix(prefix) if path.startswith(prefix) else path.rpartition("/")[2]
        if not is_document(name):
            continue
        version = _version(info)
        if not version or info.get("size") is None:
            info = {**info, **system.info(path)}
            version = _version(info)
        yield _Remote(path, name, info.get("size"), version)


def _listed(system: Any, root: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Path and facts of every file below.

    fsspec's own walk leaves out a folder that it cannot list, and its documents would count as removed.
    """
    waiting, seen = [root], {root.rstrip("/")}
    while waiting:
        folder = waiting.pop()
        try:
            entries = system.ls(folder, detail=True)
        except FileNotFoundError:
            if folder == root:
                raise
            continue  # a link to nowhere, as web pages have
        for info in entries:
            path = info["name"].rstrip("/")
            if info["type"] != "directory":
                yield info["name"], info
            elif path not in seen:
                seen.add(path)
                waiting.append(info["name"])


def _version(info: Mapping[str, Any]) -> str:
    told = {key.lower(): str(value) for key, value in info.items() if key.lower() in _VERSIONS and value}
    return json.dumps([told, info.get("size")], sort_keys=True) if told else ""


def _fetch(system: Any, files: list[_Remote], mirror: Path) -> None:
    """Fetch files side by side, each to a temporary name first."""
    temporary = [mirror / f"tmp-{uuid.uuid4().hex}" for _ in files]
    system.get([file.path for file in files], [str(path) for path in temporary])
    for file, path in zip(files, temporary, strict=True):
        path.replace(mirror / file.kept_as)


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except (InputError, RunStopped):
        raise
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(
            f"documents.path {url} cannot be read ({type(error).__name__}); name another, "
            "or mend its permissions."
        ) from None
    except Exception as error:  # each file system raises what its library does
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200].rstrip(". ")
        raise RunStopped(f"documents.path {url} cannot be fetched ({reason}); run this again.") from None
