"""Content-addressed artifacts: a folder of files and a manifest, whole or absent.

An artifact lies in ``$JORA_HOME/artifacts/<kind>/<key>/``. Its key is a hash of what makes it: the
stage and its version, the stage's part of the spec and the digests of its inputs. So the same
inputs and settings find the same artifact, and a stage that finds it does no work.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

from jora_tasks import __version__
from jora_tasks.errors import InputError

MANIFEST = "manifest.json"


def jora_home() -> Path:
    """The folder of everything kept: ``$JORA_HOME``, by default ``./.jora``. Absolute."""
    return Path(os.environ.get("JORA_HOME") or ".jora").resolve()


def digest_bytes(data: bytes) -> str:
    """``sha256:<hex>`` of the data."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_file(path: Path) -> str:
    """``sha256:<hex>`` of a file's content."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def digest_json(value: Any) -> str:
    """``sha256:<hex>`` of a JSON value, the same for equal values whatever their key order."""
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def digest_folder(path: Path) -> str:
    """``sha256:<hex>`` over the relative names and contents of a folder's visible files."""
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    return digest_json({file.relative_to(path).as_posix(): digest_file(file) for file in files})


class Manifest(TypedDict):
    """What ``manifest.json`` says of an artifact: its content, what made it, and how.

    ``digest`` is that of ``files`` (name → digest); ``inputs`` holds kind, key or name, and digest by role.
    """

    kind: str
    key: str
    digest: str
    files: dict[str, str]
    inputs: dict[str, dict[str, str]]
    settings: dict[str, Any]
    stage_version: int
    code_version: str
    counts: dict[str, Any]
    provenance: dict[str, Any]
    created: str
    seconds: float


_MANIFESTS = TypeAdapter(Manifest)


@dataclass(frozen=True)
class Artifact:
    """A verified artifact on disk."""

    path: Path
    manifest: Manifest
    reused: bool = False

    @property
    def kind(self) -> str:
        return self.manifest["kind"]

    @property
    def key(self) -> str:
        return self.manifest["key"]

    @property
    def digest(self) -> str:
        """Digest of the content: the files' names and digests, not when or how fast it was made."""
        return self.manifest["digest"]

    @property
    def counts(self) -> Mapping[str, Any]:
        return self.manifest["counts"]

    def file(self, name: str) -> Path:
        return self.path / name

    def recounted(self, counts: Mapping[str, Any]) -> Artifact:
        """The same with counts that are of now; those in its file are of when it was made."""
        return replace(self, manifest={**self.manifest, "counts": {**self.counts, **counts}})


@dataclass(frozen=True)
class Source:
    """An input that is not an artifact: a folder of documents, a questions file, a base model.

    Attributes:
      note: what its lineage should say beside its name, such as where its weights are from.
    """

    kind: str
    name: str
    digest: str
    note: str = ""

    def reference(self) -> dict[str, str]:
        note = {"note": self.note} if self.note else {}
        return {"kind": self.kind, "name": self.name, "digest": self.digest, **note}


Input = Artifact | Source
Write = Callable[[Path], Mapping[str, Any]]


class ArtifactStore:
    """The artifacts of one home.

    Raises:
      InputError: if the home cannot be written.

    Attributes:
      home: the folder that holds ``artifacts/``, ``latest/``, ``work/`` and ``locks/``.
    """

    def __init__(self, home: str | Path | None = None) -> None:
        self.home = Path(home).resolve() if home else jora_home()
        there = next(path for path in (self.home, *self.home.parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise InputError(
                f"JORA_HOME {self.home}: {there} is not a folder that can be written; name another."
            )

    def work_folder(self, kind: str, key: str) -> Path:
        """Where an unfinished artifact keeps what survives a kill, such as checkpoints."""
        return self.home / "work" / kind / key

    def build(
        self,
        kind: str,
        *,
        version: int,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Input],
        write: Write,
        provenance: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Return the artifact that these inputs and settings make, writing it only if absent.

        Args:
          kind: artifact kind, as in ``corpus``.
          version: raised whenever the stage's code would make other content from the same inputs.
          settings: the stage's part of the spec, JSON values.
          inputs: what it is made from, by role.
          write: fills an empty folder and returns the counts for the manifest.
          provenance: facts for the manifest that do not change the key.

        Returns:
          The verified artifact; ``reused`` tells whether it was there already.
        """
        key = self.key(kind, version=version, settings=settings, inputs=inputs)
        path = self.home / "artifacts" / kind / key
        existing = _verified(path)
        if existing is not None:
            return existing
        with self._only_writer(path):
            existing = _verified(path)
            if existing is not None:
                return existing
            with atomic_folder(path) as temporary:
                started = time.time()
                counts = write(temporary)
                files = {
                    file.relative_to(temporary).as_posix(): digest_file(file)
                    for file in sorted(temporary.rglob("*"))
                    if file.is_file()
                }
                manifest: Manifest = {
                    "kind": kind,
                    "key": key,
                    "digest": digest_json(files),
                    "files": files,
                    "inputs": {role: _reference(value) for role, value in inputs.items()},
                    "settings": dict(settings),
                    "stage_version": version,
                    "code_version": __version__,
                    "counts": dict(counts),
                    "provenance": _provenance() | dict(provenance or {}),
                    "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "seconds": round(time.time() - started, 3),
                }
                (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        return Artifact(path, manifest)

    def key(
        self, kind: str, *, version: int, settings: Mapping[str, Any], inputs: Mapping[str, Input]
    ) -> str:
        """The key under which `build` would keep this artifact: 16 hex digits."""
        identity = {
            "kind": kind,
            "version": version,
            "settings": dict(settings),
            "inputs": {role: value.digest for role, value in inputs.items()},
        }
        return _key(identity)

    def get(self, kind: str, key: str) -> Artifact:
        """The artifact of this kind and key (or unambiguous start of a key).

        Raises:
          InputError: if there is none, or its files are not those of its manifest.
        """
        folder = self.home / "artifacts" / kind
        found = sorted(folder.glob(f"{key}*")) if key.isalnum() else []
        if len(found) > 1:
            raise InputError(
                f"{kind} {key!r} could be any of {len(found)} in {folder}; give more of the key."
            )
        if not found:
            stage = STAGE_OF.get(kind, kind)
            raise InputError(f"{kind} {key!r} does not exist in {folder}; run `jora {stage}` to make one.")
        artifact = _verified(found[0])
        if artifact is None:
            raise InputError(
                f"{found[0]} does not match its manifest: a file is missing or altered; run its stage again."
            )
        return artifact

    def manifest(self, kind: str, key: str) -> Manifest | None:
        """What the manifest of this kind and key says, or None if there is none; `get` verifies the files."""
        if not (kind.isidentifier() and key.isalnum()):  # neither can lead out of the folder
            return None
        try:
            return _MANIFESTS.validate_json((self.home / "artifacts" / kind / key / MANIFEST).read_bytes())
        except (OSError, ValueError):
            return None

    def set_latest(self, name: str, artifact: Artifact) -> None:
        """Record the artifact that a run of this name made or found last."""
        pointer = self.home / "latest" / name / artifact.kind
        pointer.parent.mkdir(parents=True, exist_ok=True)
        write_text(pointer, artifact.key)

    def given_or_latest(self, name: str, kind: str, key: str | None) -> Artifact:
        """The artifact of this key; without one, the latest of this name."""
        return self.get(kind, key) if key else self.latest(name, kind)

    def latest(self, name: str, kind: str) -> Artifact:
        """The artifact that runs of this name made or found last.

        Raises:
          InputError: if there is none yet.
        """
        pointer = self.home / "latest" / name / kind
        if not pointer.is_file():
            others = sorted(found.parent.name for found in (self.home / "latest").glob(f"*/{kind}"))
            there = f"; there is one for {', '.join(others)}: give its --spec" if others else ""
            raise InputError(
                f"No {kind} yet for {name!r} in {self.home}; run `jora {STAGE_OF[kind]}` first{there}."
            )
        return self.get(kind, pointer.read_text(errors="replace").strip())

    @contextlib.contextmanager
    def _only_writer(self, path: Path) -> Iterator[None]:
        """Wait until no other process writes this artifact, then clear what a killed one left.

        The lock is the kernel's, so it ends with its holder, however that dies.
        """
        file = self.home / "locks" / f"{path.parent.name}-{path.name}"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in path.parent.glob(f".{path.name}.tmp-*"):
                shutil.rmtree(left, ignore_errors=True)
            yield


STAGE_OF = {
    "corpus": "corpus",
    "index": "index",
    "contexts": "contexts",
    "prompts": "prompts",
    "adapter": "train",
    "evaluation": "evaluate",
    "verdict": "gate",
}


def run_name(line: str) -> str:
    """What others are told of this process: its Airflow run, or the line of adapters it works on."""
    return _provenance().get("airflow_run") or f"a run of {line!r} by hand"


def _provenance() -> dict[str, str]:
    """Which Airflow run this process works for, as ``dag_id/run_id``, if any."""
    run = os.environ.get("JORA_AIRFLOW_RUN")
    return {"airflow_run": run} if run else {}


def _reference(value: Input) -> dict[str, str]:
    if isinstance(value, Source):
        return value.reference()
    return {"kind": value.kind, "key": value.key, "digest": value.digest}


def _verified(path: Path) -> Artifact | None:
    """The artifact if its manifest is whole and all its files have the digests in it, else None."""
    try:
        manifest = _MANIFESTS.validate_json((path / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    in_place = (manifest["kind"], manifest["key"]) == (path.parent.name, path.name)
    return Artifact(path, manifest, reused=True) if in_place and _is_whole(path, manifest) else None


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    """Whether the files are those of the manifest, and its key is that of what it says made them."""
    identity = {
        "kind": manifest["kind"],
        "version": manifest["stage_version"],
        "settings": manifest["settings"],
        "inputs": {role: reference["digest"] for role, reference in manifest["inputs"].items()},
    }
    try:
        return (
            manifest["key"] == _key(identity)
            and manifest["digest"] == digest_json(manifest["files"])
            and all(digest_file(folder / name) == digest for name, digest in manifest["files"].items())
        )
    except OSError:
        return False


def _key(identity: Mapping[str, Any]) -> str:
    return digest_json(identity).removeprefix("sha256:")[:16]


def check_copy(folder: Path) -> None:
    """See that a folder copied from a home still has what its manifest says; one without has nothing to say.

    Raises:
      InputError: naming the folder.
    """
    if not (folder / MANIFEST).is_file():
        return
    try:
        whole = _is_whole(folder, _MANIFESTS.validate_json((folder / MANIFEST).read_bytes()))
    except ValueError:
        whole = False
    if not whole:
        raise InputError(
            f"{folder} does not match its manifest: a file is missing or altered; copy or make it again."
        )


def check_unused(output: Path) -> None:
    """Refuse a folder for output that holds anything already, or cannot be made.

    Raises:
      InputError: naming it.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"output {output} is in use; give a folder that is absent or empty.")
    if file := next((each for each in output.absolute().parents if each.is_file()), None):
        raise InputError(f"output {output} is below the file {file}; give a folder that can be made.")


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder that becomes ``path`` when the block ends well, and vanishes if not.

    A folder that lies there already is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _sync(file)
        _sync(temporary)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        temporary.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file that is there whole or as before, whoever is killed."""
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
