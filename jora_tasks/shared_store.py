"""Artifacts that several machines share, under a URL that fsspec opens; each has those it needs in its home.

    artifacts/<kind>/<key>/<content digest>/<file>
    artifacts/<kind>/<key>/manifest.json              written last, and only where there is none
    artifacts/<kind>/<key>/used                       written again at each use of what was made before
    latest/<name>/<kind>                              key of what a run of this name made or found last
    work/<kind>/<key>/                                state of what is being made; see `shared_work`

Of two machines that make the same artifact, the first to write the manifest has published it; the other takes
that one. Files lie under the digest of their artifact's content, so that neither can tear the other's. While
the store refuses, calls are tried again until `PATIENCE` is over.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from jora_tasks.errors import InputError, RunStopped, first_line, untrusted
from jora_tasks.file_systems import create, get, limit, put, write, written_at
from jora_tasks.manifest import MANIFEST
from jora_tasks.variables import number_of

ARTIFACTS = "JORA_ARTIFACTS"
"""Environment variable: URL of the artifacts that machines share, as in ``s3://bucket/jora``."""

PATIENCE = "JORA_STORE_PATIENCE_SECONDS"
"""Environment variable: how long a store that refuses is tried again or waited for, 180 s by default."""

USED = "used"
_DEFAULT_PATIENCE = 180.0
# What no further try would mend.
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)

Result = TypeVar("Result")


class SharedStore:
    """The artifacts under one URL.

    Methods raise `RunStopped` if the store keeps refusing, and `InputError` if it does not let them in.

    Args:
      url: for any file system of fsspec; credentials come from the environment.
      patience: seconds that a store which refuses is tried again, by default what `PATIENCE` says.

    Attributes:
      sent, fetched: bytes moved so far.
    """

    def __init__(self, url: str, patience: float | None = None) -> None:
        self.url = url.rstrip("/")
        self._moved = {"sent": 0, "fetched": 0}
        if urlsplit(url).password is not None:
            raise InputError(f"{ARTIFACTS} has a password in it; give credentials in the environment.")
        self._patience = number_of(PATIENCE, _DEFAULT_PATIENCE) if patience is None else patience

    @classmethod
    def of_environment(cls) -> SharedStore | None:
        """The store that `ARTIFACTS` names, or None."""
        url = os.environ.get(ARTIFACTS)
        return cls(url) if url else None

    @property
    def sent(self) -> int:
        return self._moved["sent"]

    @property
    def fetched(self) -> int:
        return self._moved["fetched"]

    def within(self, patience: float) -> SharedStore:
        """The same store, whose refusals are borne for so many seconds; bytes are counted together."""
        other = copy.copy(self)
        other._patience = patience
        return other

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        import fsspec

        try:
            # Listings that were kept would hide what other machines have published meanwhile.
            return fsspec.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError, TypeError) as error:
            raise InputError(
                f"{ARTIFACTS} {self.url} cannot be opened ({first_line(error)}); install what opens it, "
                "as in `pip install -c constraints.txt -e '.[fleet]'` for S3, or give another."
            ) from None

    def manifest(self, kind: str, key: str) -> bytes | None:
        """What is published under this kind and key, or None."""
        return self.read("artifacts", kind, key, MANIFEST)

    def keys(self, kind: str, prefix: str = "") -> list[str]:
        """The published keys of a kind that begin so, sorted."""
        names = [name for name in self.listed("artifacts", kind) if name.startswith(prefix)]
        return [name for name in names if self.manifest(kind, name) is not None]

    def fetch(self, kind: str, key: str, content: str, files: Iterable[str], folder: Path) -> None:
        """Copy the files of an artifact into a folder; their digests are not checked.

        Args:
          content: digest of the artifact.
          files: those of its manifest.
        """
        self.take(files, folder, "artifacts", kind, key, _hex(content))

    def publish(
        self, kind: str, key: str, content: str, files: Iterable[str], folder: Path, manifest: bytes
    ) -> bytes:
        """Copy an artifact's files and then its manifest; one that is published already is marked as used.

        Returns:
          The manifest that is published now: this one, or that of whoever was first.
        """
        if self.manifest(kind, key) is not None:
            self.mark_used(kind, key)
            # Read after the mark: who prunes it looks for a mark after removing the manifest.
            if (published := self.manifest(kind, key)) is not None:
                return published
        self.send(files, folder, "artifacts", kind, key, _hex(content))
        place = self._path("artifacts", kind, key, MANIFEST)
        self._patiently(partial(create, self._system, place, manifest, **self._limit))
        return self._patiently(partial(self._system.cat_file, place, **self._limit))

    def mark_used(self, kind: str, key: str) -> None:
        """Note that an artifact is used, so that no machine prunes it soon."""
        self.write(b"", "artifacts", kind, key, USED)

    def latest(self, name: str, kind: str) -> str | None:
        """Key of the artifact that runs of this name made or found last."""
        data = self.read("latest", name, kind)
        return data.decode(errors="replace").strip() if data else None

    def set_latest(self, name: str, kind: str, key: str) -> None:
        self.write(key.encode(), "latest", name, kind)

    def names(self, kind: str) -> list[str]:
        """The names that have a latest artifact of this kind."""
        return [name for name in self.listed("latest") if kind in self.listed("latest", name)]

    def send(self, files: Iterable[str], folder: Path, *place: str) -> None:
        """Copy files of a folder to a place; large ones go in several parts."""
        for name in files:
            path = self._path(*place, name)
            self._patiently(partial(put, self._system, folder / name, path, self._patience))
            self._moved["sent"] += (folder / name).stat().st_size

    def take(self, files: Iterable[str], folder: Path, *place: str) -> None:
        """Copy files of a place to a folder."""
        for name in files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise InputError(
                    f"{self.url}/{'/'.join(place)} has a file {name!r}, which leads out of it; remove it."
                )
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            self._patiently(partial(get, self._system, self._path(*place, name), target, self._patience))
            self._moved["fetched"] += target.stat().st_size

    def read(self, *place: str, size: int | None = None) -> bytes | None:
        """What a file holds, or its first bytes if ``size`` tells how many; None if there is none."""
        part = {} if size is None else {"start": 0, "end": size}  # which spares asking how long it is
        try:
            return self._patiently(
                partial(self._system.cat_file, self._path(*place), **part, **self._limit),
                absent=FileNotFoundError,
            )
        except FileNotFoundError:
            return None

    def write(self, data: bytes, *place: str) -> None:
        """Write a small file, whole or not at all; one that is there is replaced."""
        self._patiently(partial(write, self._system, self._path(*place), data, **self._limit))

    def listed(self, *place: str) -> list[str]:
        """Names of the files and folders in a place, sorted."""
        try:
            found = self._patiently(
                partial(self._system.ls, self._path(*place), detail=False, **self._limit),
                absent=FileNotFoundError,
            )
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def files(self, *place: str) -> Iterator[tuple[tuple[str, ...], int, float]]:
        """Every file in a place, however deep: its path there in parts, its bytes and when it was written.

        Times are seconds since 1970 by the store's clock.
        """
        root = self._path(*place)
        try:
            found = self._patiently(partial(self._system.find, root, detail=True), absent=FileNotFoundError)
        except FileNotFoundError:
            return
        for path, told in sorted(found.items()):
            parts = path.strip("/").removeprefix(root.strip("/")).strip("/").split("/")
            yield tuple(parts), int(told["size"] or 0), written_at(told)

    def modified(self, *place: str) -> float | None:
        """When a file was written, in seconds since 1970 by the store's clock; None if there is none."""
        try:
            told = self._patiently(
                partial(self._system.info, self._path(*place), **self._limit), absent=FileNotFoundError
            )
        except FileNotFoundError:
            return None
        return written_at(told)

    def remove(self, *place: str) -> None:
        """Remove a file or a folder, if it is there."""
        try:
            self._patiently(
                partial(self._system.rm, self._path(*place), recursive=True), absent=FileNotFoundError
            )
        except FileNotFoundError:
            return

    @property
    def _system(self) -> Any:
        return self._opened[0]

    @property
    def _limit(self) -> dict[str, float]:
        """How long a call about a small file may last."""
        return limit(self._system, self._patience)

    def _path(self, *parts: str) -> str:
        return "/".join((self._opened[1].rstrip("/"), *parts))

    def _patiently(self, call: Callable[[], Result], absent: type[Exception] | None = None) -> Result:
        """The call's result, tried again while the store is away; ``absent`` is passed on as it is."""
        import tenacity

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_mend),
            stop=tenacity.stop_after_delay(self._patience),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=10),
            reraise=True,
        )
        try:
            return retrying(call)
        except InputError:
            raise
        except FileNotFoundError as error:
            if absent is not None:
                raise
            raise InputError(
                f"{ARTIFACTS} {self.url} has no such place ({first_line(error)}); make its bucket or folder, "
                "or name another."
            ) from None
        except PermissionError as error:
            raise InputError(
                f"{ARTIFACTS} {self.url} does not let this machine in ({first_line(error)}); "
                "correct its credentials or permissions."
            ) from None
        except Exception as error:  # each file system has its own
            if untrusted(error):
                raise InputError(
                    f"{ARTIFACTS} {self.url} has a certificate that is not trusted here "
                    f"({first_line(error)}); name the file of its authority in AWS_CA_BUNDLE, or in "
                    "SSL_CERT_FILE where it is no S3."
                ) from None
            raise RunStopped(
                f"{ARTIFACTS} {self.url} did not answer for {self._patience:.0f} s ({first_line(error)}); "
                "what was made is kept in the home, and the next try goes on from there."
            ) from None


def _may_mend(error: BaseException) -> bool:
    """Whether another try may do better."""
    return not isinstance(error, (*_FINAL, InputError)) and not untrusted(error)


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
