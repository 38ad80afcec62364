"""Where an adapter is from, stated, signed by option, and checked link by link.

The statement is in-toto's (in-toto.io/Statement/v1) with SLSA's provenance (slsa.dev/provenance/v1) as its
predicate: the subjects are the adapter's files, the resolved dependencies everything that made it, down to
the documents. It holds no time of its own, so the same adapter and key make the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jora_tasks import signing
from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.lineage import ABSENT, DAMAGED, DIFFERENT, PRESENT, SOURCE, Node, trace
from jora_tasks.writing import write_text

STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1"
# SLSA wants URIs here; they name what the fields of this predicate mean.
_BUILD_TYPE, _BUILDER = "urn:jora-tasks:adapter:1", "urn:jora-tasks"
# An artifact's digest is over its files' names and digests, a source's as its manifest says.
_TREE = "sha256Tree"
_FILE = "provenance.dsse.json"
SIGNING_KEY = "JORA_SIGNING_KEY"
"""Variable of the environment that names the PEM file to sign with; without it nothing is signed."""

State = Literal["ok", "failed", "unchecked"]
OK: State = "ok"
FAILED: State = "failed"
UNCHECKED: State = "unchecked"
_WRONG = {
    ABSENT: "it is no longer in the home",
    DAMAGED: "a file or the manifest is missing or altered",
    DIFFERENT: "it was made again with other content",
}


@dataclass(frozen=True)
class Link:
    """One thing that was checked.

    Attributes:
      name: kind and key or name.
      state: "unchecked" for what the home cannot tell: a source that was read and not kept.
    """

    name: str
    state: State
    detail: str = ""


def statement(store: ArtifactStore, adapter: Artifact) -> dict[str, Any]:
    """The in-toto statement over an adapter of the home, as JSON."""
    root = trace(store, adapter)
    nodes = [node for node in _nodes(root) if not node.get("repeated")]
    manifest = adapter.manifest
    return {
        "_type": STATEMENT,
        "subject": [
            {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}
            for name, digest in sorted(manifest["files"].items())
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD_TYPE,
                "externalParameters": {
                    "spec": {_name(node): node["settings"] for node in nodes if "settings" in node}
                },
                "internalParameters": {},
                "resolvedDependencies": [_dependency(node) for node in nodes[1:]],
            },
            "runDetails": {
                "builder": {"id": _BUILDER, "version": {"jora-tasks": manifest["code_version"]}},
                "metadata": {
                    "invocationId": str(root["airflow_run"] or ""),
                    "finishedOn": manifest["created"],
                },
            },
        },
    }


def statement_file(store: ArtifactStore, key: str) -> Path:
    """Where the home keeps the signed statement over the adapter of this key."""
    return store.home / "provenance" / key / _FILE


def sign_adapter(store: ArtifactStore, adapter: Artifact) -> Path | None:
    """Sign the statement over an adapter with the key that the environment names, if it names one.

    Returns:
      The envelope's file.

    Raises:
      InputError: if that file is no private key.
    """
    named = os.environ.get(SIGNING_KEY)
    if not named:
        return None
    key = signing.private_key(Path(named))
    payload = json.dumps(statement(store, adapter), sort_keys=True).encode()
    file = statement_file(store, adapter.key)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(signing.sign(payload, key), indent=2) + "\n")
    return file


def verify(store: ArtifactStore, key: str, public_key: Path | None = None) -> list[Link]:
    """Recompute every digest that an adapter rests on, and check the statement over it if there is one.

    Args:
      key: of the adapter, or the start of it.
      public_key: PEM file of the key that must have signed; without it a signature is not checked.

    Raises:
      InputError: if there is no such adapter, or no key in that file.
    """
    signer = signing.public_key(public_key) if public_key else None
    folder = _folder(store, key)
    try:
        adapter = store.get("adapter", folder.name)
    except InputError:
        return [Link(f"adapter {folder.name}", FAILED, _WRONG[DAMAGED])]
    links = []
    for node in _nodes(trace(store, adapter)):
        if not node.get("repeated"):
            links.append(_checked(node))
        if node["kind"] == "corpus" and node["state"] == PRESENT and not node.get("repeated"):
            links.append(_documents(store.get("corpus", node["key"])))
    file = statement_file(store, adapter.key)
    if file.is_file():
        whole = all(link.state != FAILED for link in links)
        links += _statement(file, statement(store, adapter), whole, signer)
    elif signer is not None:
        links.append(
            Link("statement", FAILED, f"there is none; sign with {SIGNING_KEY} set at `jora register`")
        )
    return links


def _folder(store: ArtifactStore, key: str) -> Path:
    """The folder of an adapter, whatever state it is in."""
    found = sorted((store.home / "artifacts" / "adapter").glob(f"{key}*")) if key.isalnum() else []
    return found[0] if len(found) == 1 else store.get("adapter", key).path  # says what is wrong


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.get("inputs", {}).values():
        yield from _nodes(child)


def _name(node: Node) -> str:
    return f"{node['kind']} {node.get('key') or node['name']}"


def _dependency(node: Node) -> dict[str, Any]:
    return {"name": _name(node), "digest": {_TREE: node["digest"].removeprefix("sha256:")}}


def _checked(node: Node) -> Link:
    if node["state"] == PRESENT:  # `trace` has read every file of it
        return Link(_name(node), OK)
    if node["state"] == SOURCE:
        return Link(_name(node), UNCHECKED, f"{node['digest'][:19]} as it was read; not kept in the home")
    return Link(_name(node), FAILED, _WRONG[node["state"]])


def _documents(corpus: Artifact) -> Link:
    """Whether each document of the table has the digest that stands beside it."""
    import pyarrow.parquet as pq

    from retrieval.documents import Document, document_digest

    count = 0
    for batch in pq.ParquetFile(corpus.file("documents.parquet")).iter_batches(batch_size=64):
        for row in batch.to_pylist():
            count += 1
            metadata = dict(row["metadata"])
            document = Document(row["document_id"], row["source"], row["title"], row["text"], metadata)
            if document_digest(document) != row["digest"]:
                return Link(
                    "table of documents", FAILED, f"{row['document_id']} has not the digest of its row"
                )
    return Link("table of documents", OK, f"{count} documents")


def _statement(file: Path, expected: Mapping[str, Any], whole: bool, signer: Any) -> Iterator[Link]:
    try:
        envelope = json.loads(file.read_text(encoding="utf-8"))
        told = json.loads(signing.payload_of(envelope))
    except (ValueError, OSError) as error:
        reason = str(error) if isinstance(error, signing.BadSignature) else "it is not valid JSON"
        yield Link("statement", FAILED, reason)
        return
    if not whole:
        yield Link("statement", UNCHECKED, "not everything that it names is there to be compared")
    elif told == json.loads(json.dumps(expected)):
        yield Link("statement", OK, f"{len(told['subject'])} files and what made them, as in the home")
    else:
        yield Link("statement", FAILED, "it states another adapter, or other things that made it")
    if signer is None:
        yield Link("signature", UNCHECKED, "give the public key with --key")
        return
    try:
        signing.check(envelope, signer)
    except signing.BadSignature as error:
        yield Link("signature", FAILED, str(error))
    else:
        yield Link("signature", OK, f"by key {signing.key_id(signer)[:16]}")
