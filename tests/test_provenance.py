"""Provenance of a small chain of real artifacts: stated, signed, and checked after every kind of harm."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from jora_tasks.artifacts import Artifact, ArtifactStore, Input, Source
from jora_tasks.digests import digest_file, digest_json
from jora_tasks.errors import InputError
from jora_tasks.provenance import FAILED, SIGNING_KEY, sign_adapter, statement, statement_file, verify
from retrieval.documents import Document, document_digest

SECRET = bytes(range(32))


def build(
    store: ArtifactStore, kind: str, file: str, content: Any, inputs: dict[str, Input], **settings: Any
) -> Artifact:
    def write(folder: Path) -> dict[str, Any]:
        if isinstance(content, list):
            pq.write_table(pa.Table.from_pylist(content), folder / file)
        else:
            (folder / file).write_text(content)
        return {}

    return store.build(kind, version=1, settings=settings, inputs=inputs, write=write)


def document(name: str, text: str) -> dict[str, Any]:
    made = Document(name, name, "Title", text, {"by": "anna"})
    return {
        "document_id": name,
        "source": name,
        "title": "Title",
        "text": text,
        "digest": document_digest(made),
        "metadata": [("by", "anna")],
    }


def chain(store: ArtifactStore, documents: list[dict[str, Any]]) -> Artifact:
    folder = Source("documents", "guide", "sha256:d")
    corpus = build(store, "corpus", "documents.parquet", documents, {"documents": folder})
    index = build(store, "index", "chunks.parquet", [{"x": 1}], {"corpus": corpus}, chunk_tokens=200)
    questions = Source("questions", "q.jsonl", "sha256:q")
    contexts = build(
        store,
        "contexts",
        "contexts.parquet",
        [{"x": 1}],
        {"index": index, "corpus": corpus, "questions": questions},
    )
    prompts = build(store, "prompts", "prompts.parquet", [{"x": 1}], {"contexts": contexts}, seed=3)
    base = Source("model", "tiny-base", "sha256:b")
    return build(
        store, "adapter", "adapter_config.json", "{}", {"prompts": prompts, "base_model": base}, epochs=2
    )


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "home")


@pytest.fixture
def adapter(store: ArtifactStore) -> Artifact:
    return chain(store, [document("a.md", "one"), document("b.md", "two")])


def write_keys(folder: Path, name: str, secret: bytes) -> tuple[Path, Path]:
    """Files of a private and its public key."""
    key = Ed25519PrivateKey.from_private_bytes(secret)
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Private and public key; the environment names the private one."""
    pair = write_keys(tmp_path, "signer", SECRET)
    monkeypatch.setenv(SIGNING_KEY, str(pair[0]))
    return pair


def states(store: ArtifactStore, adapter: Artifact, public: Path | None = None) -> dict[str, str]:
    return {link.name.split()[0]: link.state for link in verify(store, adapter.key, public)}


WHOLE = {
    "adapter": "ok", "prompts": "ok", "contexts": "ok", "index": "ok", "corpus": "ok", "table": "ok",
    "documents": "unchecked", "questions": "unchecked", "model": "unchecked",
}  # fmt: skip


def test_the_statement_names_everything(store: ArtifactStore, adapter: Artifact) -> None:
    told = statement(store, adapter)
    assert told["_type"] == "https://in-toto.io/Statement/v1"
    assert told["predicateType"] == "https://slsa.dev/provenance/v1"
    digest = digest_file(adapter.file("adapter_config.json")).removeprefix("sha256:")
    assert told["subject"] == [{"name": "adapter_config.json", "digest": {"sha256": digest}}]
    definition = told["predicate"]["buildDefinition"]
    named = {each["name"].split()[0]: each["digest"] for each in definition["resolvedDependencies"]}
    assert set(named) == set(WHOLE) - {"adapter", "table"}
    assert named["model"] == {"sha256Tree": "b"}
    assert len(definition["resolvedDependencies"]) == 7  # the corpus, used twice, is named once
    assert definition["externalParameters"]["spec"][f"adapter {adapter.key}"] == {"epochs": 2}
    assert told["predicate"]["runDetails"]["metadata"]["finishedOn"] == adapter.manifest["created"]
    assert str(store.home) not in json.dumps(told)


def test_without_a_key_nothing_is_signed_and_the_digests_are_checked(
    store: ArtifactStore, adapter: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SIGNING_KEY, raising=False)
    assert sign_adapter(store, adapter) is None
    assert states(store, adapter) == WHOLE
    _, public = write_keys(tmp_path, "any", SECRET)
    assert states(store, adapter, public) == WHOLE | {"statement": "failed"}


def test_what_is_signed_is_verified(store: ArtifactStore, adapter: Artifact, keys: tuple[Path, Path]) -> None:
    file = sign_adapter(store, adapter)
    assert file == statement_file(store, adapter.key)
    first = file.read_bytes()
    assert sign_adapter(store, adapter) == file and file.read_bytes() == first
    assert states(store, adapter, keys[1]) == WHOLE | {"statement": "ok", "signature": "ok"}
    assert states(store, adapter) == WHOLE | {"statement": "ok", "signature": "unchecked"}
    secret = base64.b64encode(SECRET)
    assert not [each for each in store.home.rglob("*") if each.is_file() and secret in each.read_bytes()]


def test_harms_are_told_apart(
    store: ArtifactStore, adapter: Artifact, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    file = sign_adapter(store, adapter)
    assert file is not None
    signed = WHOLE | {"statement": "ok", "signature": "ok"}

    def failed(public: Path = keys[1]) -> dict[str, str]:
        links = verify(store, adapter.key, public)
        return {link.name.split()[0]: link.detail for link in links if link.state == FAILED}

    # another key
    _, other = write_keys(tmp_path, "other", bytes(32))
    (told,) = failed(other).items()
    assert told[0] == "signature" and "signed by key" in told[1]

    # an altered statement
    envelope = json.loads(file.read_text())
    payload = json.loads(base64.b64decode(envelope["payload"]))
    payload["predicate"]["buildDefinition"]["resolvedDependencies"].pop()
    altered = envelope | {"payload": base64.b64encode(json.dumps(payload).encode()).decode()}
    file.write_text(json.dumps(altered))
    assert "altered after signing" in failed()["signature"] and "other things" in failed()["statement"]
    file.write_text("{")
    assert failed() == {"statement": "it is not valid JSON"}
    file.write_text(json.dumps(envelope))
    assert states(store, adapter, keys[1]) == signed

    # altered files, one byte each; what lies below an altered one is no longer reached
    for kind in ("prompts", "index", "corpus"):
        folder = next((store.home / "artifacts" / kind).glob("[!.]*"))
        for name in (
            "manifest.json",
            next(iter(json.loads((folder / "manifest.json").read_text())["files"])),
        ):
            before = (folder / name).read_bytes()
            place = before.find(b"sha256:") + 8 if name == "manifest.json" else len(before) // 2
            (folder / name).write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
            assert failed() == {kind: "a file or the manifest is missing or altered"}
            (folder / name).write_bytes(before)
    assert states(store, adapter, keys[1]) == signed
    adapter.file("adapter_config.json").write_text("{ }")
    assert failed() == {"adapter": "a file or the manifest is missing or altered"}


def test_a_fact_of_the_manifest_that_makes_no_digest_is_covered_by_the_signature(
    store: ArtifactStore, adapter: Artifact, keys: tuple[Path, Path]
) -> None:
    sign_adapter(store, adapter)
    file = adapter.file("manifest.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"created": "2020-01-01T00:00:00Z"}))
    assert states(store, adapter, keys[1])["statement"] == "failed"


def test_the_table_of_documents_is_recomputed(store: ArtifactStore) -> None:
    adapter = chain(store, [document("a.md", "one"), document("b.md", "two") | {"text": "forged"}])
    links = {link.name.split()[0]: link for link in verify(store, adapter.key)}
    assert (links["corpus"].state, links["table"].state) == ("ok", "failed")
    assert "b.md" in links["table"].detail


def test_an_artifact_gone_or_made_again_otherwise(store: ArtifactStore, adapter: Artifact) -> None:
    prompts = next((store.home / "artifacts" / "prompts").glob("[!.]*"))
    manifest = json.loads((prompts / "manifest.json").read_text())
    (prompts / "prompts.parquet").write_bytes(b"other")
    files = {"prompts.parquet": digest_file(prompts / "prompts.parquet")}
    redone = manifest | {"files": files, "digest": digest_json(files)}
    (prompts / "manifest.json").write_text(json.dumps(redone))
    links = {link.name.split()[0]: link for link in verify(store, adapter.key)}
    assert links["prompts"].detail == "it was made again with other content"
    shutil.rmtree(prompts)
    links = {link.name.split()[0]: link for link in verify(store, adapter.key)}
    assert links["prompts"].detail == "it is no longer in the home"


def test_bad_input(store: ArtifactStore, adapter: Artifact, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(InputError, match="adapter 'feed' does not exist"):
        verify(store, "feed")
    with pytest.raises(InputError, match="cannot be read"):
        verify(store, adapter.key, tmp_path / "none")
    monkeypatch.setenv(SIGNING_KEY, str(tmp_path / "none"))
    with pytest.raises(InputError, match="cannot be read"):
        sign_adapter(store, adapter)
    assert not (store.home / "provenance").exists()


def test_the_command(
    store: ArtifactStore, adapter: Artifact, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JORA_HOME", str(store.home))
    sign_adapter(store, adapter)

    def jora(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jora_tasks.cli", "lineage", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    done = jora(adapter.key[:6], "--verify", "--key", str(keys[1]))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"ok         adapter {adapter.key}"
    assert lines[-1].startswith("ok         signature: by key ")
    adapter.file("adapter_config.json").write_text("{ }")
    done = jora(adapter.key, "--verify", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["verified"], told["links"][0]["state"]) == (1, False, "failed")
    for arguments in (
        ("feed", "--verify"),
        (adapter.key, "--verify", "--key", "none.pem"),
        (adapter.key, "--key", "x"),
    ):
        done = jora(*arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
