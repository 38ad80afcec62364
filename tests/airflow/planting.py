"""Secrets planted in the environment of a real Airflow, the servers that get them, and a search for them."""

from __future__ import annotations

import base64
import contextlib
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jora_tasks.airflow import notices
from jora_tasks.outbox import API_KEY, URL
from jora_tasks.provenance import SIGNING_KEY
from tests.openlineage_spec import lineage_server
from tests.registry.serving import serving
from tests.test_provenance import write_keys

SIGNING_SEED = b"planted-seed-of-the-signing-key!"
PASSWORD = "planted-registry-password"
SECRETS = {
    "OPENAI_API_KEY": "planted-endpoint-key",
    API_KEY: "planted-lineage-key",
    "MLFLOW_TRACKING_PASSWORD": "planted-tracking-password",
    "AWS_SECRET_ACCESS_KEY": "planted-storage-key",
    "AIRFLOW_CONN_OTHER": "http://someone:planted-connection@host",
}
HOOK = "planted-hook-token"


@dataclass(frozen=True)
class Planted:
    """Where secrets went.

    Attributes:
      environment: to start Airflow with.
      events: what the OpenLineage server got.
      registry: folder of the MLflow server.
      needles: bytes to search for, by what they are.
    """

    environment: dict[str, str]
    events: list[dict[str, Any]]
    registry: Path
    needles: dict[str, bytes]


@contextlib.contextmanager
def planted(folder: Path, database: Path) -> Iterator[Planted]:
    """The secrets, in a folder of keys and with an OpenLineage and an MLflow server that ask for some.

    Args:
      database: an empty registry's.
    """
    key, _ = write_keys(folder, "signer", SIGNING_SEED)
    registry = folder / "server"
    registry.mkdir()
    shutil.copy(database, registry / "server.db")
    with lineage_server() as (lineage, events), serving(registry) as server:
        environment = SECRETS | {
            URL: lineage,
            SIGNING_KEY: str(key),
            "MLFLOW_TRACKING_URI": server.address.replace("//", f"//someone:{PASSWORD}@"),
            # No one takes notices there, which must not be told with the address either.
            notices.NOTIFY: f"{lineage}/{HOOK}",
        }
        needles = {name: value.encode() for name, value in SECRETS.items()}
        needles |= {"the registry's password": PASSWORD.encode(), "the hook's token": HOOK.encode()}
        needles["the connection"] = b"planted-connection"
        needles["the signing key"] = SIGNING_SEED
        needles["the signing key's file"] = key.read_bytes().splitlines()[1]
        for name, value in list(needles.items()):
            needles[f"{name} in base64"] = base64.b64encode(value).rstrip(b"=")
        basic = base64.b64encode(f"someone:{PASSWORD}".encode())
        yield Planted(environment, events, registry, needles | {"the registry's login": basic})


def found(needles: dict[str, bytes], texts: Iterable[tuple[str, bytes]]) -> list[str]:
    """Which secrets lie where, in words."""
    return [
        f"{name} in {where}" for where, text in texts for name, needle in needles.items() if needle in text
    ]


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """What every file below a folder holds, compressed tables as they are and in plain."""
    for file in folder.rglob("*"):
        if not file.is_file():
            continue
        with contextlib.suppress(FileNotFoundError):  # Airflow is at work
            yield str(file), file.read_bytes()
        if file.suffix == ".parquet":
            yield f"{file}, read", str(pq.read_table(file).to_pylist()).encode()
        if file.suffix == ".db":
            with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
                yield f"{file}, dumped", "\n".join(database.iterdump()).encode()
