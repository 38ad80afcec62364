"""Content-addressed artifacts: a folder of files and a manifest, whole or absent.

An artifact lies in ``$JORA_HOME/artifacts/<kind>/<key>/``. Its key is a hash of what makes it: the
stage and its version, the stage's part of the spec and the digests of its inputs. So the same
inputs and settings find the same artifact, and a stage that finds it does no work.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jora_tasks import __version__
from jora_tasks.copies import Copies
from jora_tasks.digests import digest_file, digest_json
from jora_tasks.errors import InputError
from jora_tasks.manifest import MANIFEST, Manifest, is_whole, key_of, parse_manifest
from jora_tasks.metering import Meter
from jora_tasks.shared_store import ARTIFACTS, SharedStore
from jora_tasks.uses import Uses
from jora_tasks.writing import atomic_folder, write_text


def jora_home() -> Path:
    """The folder of everything kept: ``$JORA_HOME``, by default ``./.jora``. Absolute."""
    return Path(os.environ.get("JORA_HOME") or ".jora").resolve()


def artifacts_place(home: Path, kind: str) -> str:
    """Where artifacts of a kind are kept, as a URI that is the same on every machine that shares them."""
    shared = os.environ.get(ARTIFACTS)
    return f"{shared.rstrip('/')}/artifacts/{kind}" if shared else (home / "artifacts" / kind).as_uri()


@dataclass(frozen=True)
class Artifact:
    """A verified artifact on disk, where it stays as long as this object lives."""

    path: Path
    manifest: Manifest
    reused: bool = False
    _use: object = field(default=None, compare=False, repr=False)

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
      shared: where machines share their artifacts, by `shared_store.ARTIFACTS`; the home then has copies.
      uses: of the home's artifacts, by this process and others.
      meter: what this store has read and written, and what its user has had devices for.
    """

    def __init__(self, home: str | Path | None = None) -> None:
        self.home = Path(home).resolve() if home else jora_home()
        self.shared = SharedStore.of_environment()
        self.meter = Meter()
        self.uses = Uses(self.home)
        self._copies = Copies(self.home, self.uses)
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
        use = self.uses.use(kind, key)

        def make(path: Path) -> Artifact:
            with atomic_folder(path) as temporary:
                started = time.monotonic()
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
                    "seconds": round(time.monotonic() - started, 3),
                }
                (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
            return Artifact(path, manifest)

        artifact = self._published(self._found_or_made(kind, key, make))
        if artifact.reused:
            self.meter.found(artifact.path)
        else:
            self.meter.made(artifact.path)
        self._copies.shrink(self.shared)
        return replace(artifact, _use=use)

    def key(
        self, kind: str, *, version: int, settings: Mapping[str, Any], inputs: Mapping[str, Input]
    ) -> str:
        """The key under which `build` would keep this artifact: 16 hex digits."""
        digests = {role: value.digest for role, value in inputs.items()}
        return key_of(kind, version, settings, digests)

    def get(self, kind: str, key: str) -> Artifact:
        """The artifact of this kind and key (or unambiguous start of a key).

        Raises:
          InputError: if there is none, or its files are not those of its manifest.
        """
        folder = self.home / "artifacts" / kind
        found = sorted(self._keys(kind, key)) if key.isalnum() else []
        if len(found) > 1:
            raise InputError(
                f"{kind} {key!r} could be any of {len(found)} in {folder}; give more of the key."
            )
        if not found:
            stage = KINDS.get(kind, kind)
            raise InputError(f"{kind} {key!r} does not exist in {folder}; run `jora {stage}` to make one.")
        path = folder / found[0]
        use = self.uses.use(kind, found[0])
        artifact = _verified(path)
        if artifact is None and self.shared is not None:
            with self._only_writer(path):
                artifact = _verified(path) or self._fetched(kind, found[0])
        self._copies.shrink(self.shared)
        if artifact is None:
            raise InputError(
                f"{path} does not match its manifest: a file is missing or altered; run its stage again."
            )
        self.meter.taken(artifact.path)
        return replace(artifact, _use=use)

    def find(self, kind: str, key: str) -> Artifact | None:
        """The artifact if it is whole in this home or shared by others; waits for who is writing it here."""
        path, use = self._folder(kind, key), self.uses.use(kind, key)
        with self._only_writer(path):
            found = _verified(path) or self._fetched(kind, key)
        if found is None:
            return None
        self.meter.found(path)
        return replace(self._published(found), _use=use)

    def manifest(self, kind: str, key: str) -> Manifest | None:
        """What the manifest of this kind and key says, or None if there is none whole.

        `get` verifies the files.
        """
        if not (kind.isidentifier() and key.isalnum()):  # neither can lead out of the folder
            return None
        with contextlib.suppress(OSError, ValueError):
            return parse_manifest((self._folder(kind, key) / MANIFEST).read_bytes())
        data = self.shared.manifest(kind, key) if self.shared else None
        with contextlib.suppress(ValueError):
            return parse_manifest(data) if data else None
        return None

    def set_latest(self, name: str, artifact: Artifact) -> None:
        """Record the artifact that a run of this name made or found last."""
        if self.shared is not None:
            self.shared.set_latest(name, artifact.kind, artifact.key)
            return
        pointer = self.home / "latest" / name / artifact.kind
        pointer.parent.mkdir(parents=True, exist_ok=True)
        write_text(pointer, artifact.key)

    def given_or_latest(self, name: str, kind: str, key: str | None) -> Artifact:
        """The artifact of this key, or the latest of this name; other machines see that it is used.

        Raises:
          InputError: if there is none, or for an empty key, as an unset variable of a shell gives it.
        """
        if key == "":
            raise InputError(f"--{kind} is empty; give a key, or leave it out for the latest.")
        artifact = self.latest(name, kind) if key is None else self.get(kind, key)
        if self.shared is not None:
            self.shared.mark_used(kind, artifact.key)
        return artifact

    def latest(self, name: str, kind: str) -> Artifact:
        """The artifact that runs of this name made or found last.

        Raises:
          InputError: if there is none yet.
        """
        key = self.latest_key(name, kind)
        if key is None:
            there = self.shared or self
            others = there.names(kind)
            hint = f"; there is one for {', '.join(others)}: give its --spec" if others else ""
            place = self.shared.url if self.shared else self.home
            raise InputError(
                f"No {kind} yet for {name!r} in {place}; run `jora {STAGE_OF[kind]}` first{hint}."
            )
        return self.get(kind, key)

    def latest_key(self, name: str, kind: str) -> str | None:
        """Key of the artifact that runs of this name made or found last."""
        if self.shared is not None:
            return self.shared.latest(name, kind)
        try:
            return (self.home / "latest" / name / kind).read_text(errors="replace").strip()
        except OSError:
            return None

    def names(self, kind: str) -> list[str]:
        """The names that have a latest artifact of this kind."""
        return sorted(found.parent.name for found in (self.home / "latest").glob(f"*/{kind}"))

    def _folder(self, kind: str, key: str) -> Path:
        return self.home / "artifacts" / kind / key

    def _keys(self, kind: str, prefix: str) -> set[str]:
        """The keys of this kind that begin so, in this home and among those that machines share."""
        here = {path.name for path in (self.home / "artifacts" / kind).glob(f"{prefix}*")}
        if self.shared is None or prefix in here:
            return here
        return here | set(self.shared.keys(kind, prefix))

    def _found_or_made(self, kind: str, key: str, make: Callable[[Path], Artifact]) -> Artifact:
        path = self._folder(kind, key)
        if (existing := _verified(path)) is not None:
            return existing
        with self._only_writer(path):
            return _verified(path) or self._fetched(kind, key) or make(path)

    def _fetched(self, kind: str, key: str) -> Artifact | None:
        """The artifact that machines share, copied to this home; None if there is none."""
        data = self.shared.manifest(kind, key) if self.shared else None
        if self.shared is None or data is None:
            return None
        try:
            return self._fetch(kind, key, data)
        except InputError:
            if self.shared.manifest(kind, key) is not None:
                raise
            return None  # another machine pruned it meanwhile

    def _fetch(self, kind: str, key: str, data: bytes) -> Artifact:
        assert self.shared  # noqa: S101 callers have one
        try:
            manifest = parse_manifest(data)
        except ValueError:
            raise InputError(
                f"The manifest of {kind} {key} in {self.shared.url} is damaged; remove it there and run its "
                "stage again."
            ) from None
        path = self._folder(kind, key)
        with atomic_folder(path) as temporary:
            self.shared.fetch(kind, key, manifest["digest"], manifest["files"], temporary)
            (temporary / MANIFEST).write_bytes(data)
            if not is_whole(temporary, manifest):
                raise InputError(
                    f"{kind} {key} in {self.shared.url} does not match its manifest: a file is missing or "
                    "altered; remove it there and run its stage again."
                )
        return Artifact(path, manifest, reused=True)

    def _published(self, artifact: Artifact) -> Artifact:
        """The artifact where machines share some: this one, or that of the machine that was first."""
        if self.shared is None:
            return artifact
        own = artifact.file(MANIFEST).read_bytes()
        kept = self.shared.publish(
            artifact.kind, artifact.key, artifact.digest, artifact.manifest["files"], artifact.path, own
        )
        return artifact if kept == own else self._fetch(artifact.kind, artifact.key, kept)

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
# With the shards of a stage's work that other tasks make before it, which no line has a latest of.
KINDS = {**STAGE_OF, "embedded": "embed", "retrieved": "retrieve", "predictions": "evaluate"}


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
        manifest = parse_manifest((path / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    in_place = (manifest["kind"], manifest["key"]) == (path.parent.name, path.name)
    return Artifact(path, manifest, reused=True) if in_place and is_whole(path, manifest) else None
