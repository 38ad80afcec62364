"""The way to MLflow: addresses that are checked, a first contact that is quick, a database made whole.

A SQLite database is made under another name and renamed, by one process at a time: it is whole or
absent, whoever is killed and whatever disk is full.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import textwrap
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jora_tasks.errors import InputError, no_room, untrusted

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
# Where the variables of the environment do not say otherwise, the first contact with a server waits so
# many seconds, and tries again so often; MLflow's own values take minutes to find out that none is there.
_FIRST_CONTACT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}

# What MLflow answers where another process wrote the same rows at the same time; so often is it tried again.
CONTENDED = ("BAD_REQUEST", "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
TRIES, PAUSE_SECONDS = 8, 0.1


def database_file(address: str) -> Path | None:
    """The file of a SQLite address, or None for a server."""
    file = address.removeprefix(SQLITE).partition("?")[0]
    return Path(file) if address.startswith(SQLITE) else None


def is_made(database: Path) -> bool:
    """Whether there is a database; an empty file is what SQLite leaves of none."""
    return database.is_file() and database.stat().st_size > 0


def check_address(variable: str, address: str) -> None:
    """See that a variable of the environment is empty or could name a registry.

    Raises:
      InputError: naming the variable, if it could not.
    """
    database = database_file(address)
    in_folder = database is not None and bool(database.name) and database.parent.is_dir()
    if address and not in_folder and not re.match(r"https?://[^/\s]|databricks", address):
        raise InputError(
            f"{variable} {without_password(address)!r} is no registry; give a server's http:// or https:// "
            "address, databricks, or sqlite:/// and a file in a folder that exists, or unset it."
        )


def contact(tracking: str, registry: str, remedy: str) -> MlflowClient:
    """A client that has spoken to both addresses.

    Raises:
      InputError: with the remedy, if one does not answer as MLflow does.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _defaults(_FIRST_CONTACT):
            client = MlflowClient(tracking_uri=tracking, registry_uri=registry)
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError, ValueError) as error:
        if no_room(error):
            raise
        addresses = without_password(" or ".join(dict.fromkeys((tracking, registry))))
        if untrusted(error):
            raise InputError(
                f"The registry at {addresses} has a certificate that is not trusted here; name the file of "
                "its authority in MLFLOW_TRACKING_SERVER_CERT_PATH."
            ) from None
        reason = textwrap.shorten(without_password(str(error)), 200, placeholder=" …")
        raise InputError(f"No registry answers at {addresses}; {remedy} ({reason}).") from None
    return client


def make_database(address: str, lock: Path, remedy: str) -> None:
    """Make the SQLite database of an address, unless it is there or is none.

    Args:
      address: tracking URI.
      lock: file that one process at a time locks for this.
      remedy: for the error, as of `contact`.

    Raises:
      InputError: if it cannot be made; nothing is left of it.
    """
    database = database_file(address)
    if database is None or is_made(database):
        return
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if is_made(database):
            return
        database.parent.mkdir(exist_ok=True)
        unfinished = f".{database.name}.tmp-"
        for left in database.parent.glob(f"{unfinished}*"):
            left.unlink()
        temporary = database.with_name(f"{unfinished}{uuid.uuid4().hex[:8]}")
        try:
            contact(f"{SQLITE}{temporary}", f"{SQLITE}{temporary}", remedy)
            temporary.rename(database)
        finally:
            for left in database.parent.glob(f"{temporary.name}*"):  # SQLite's journal too
                left.unlink()


@contextlib.contextmanager
def _defaults(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment that are not set, within the block."""
    missing = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def without_password(text: str) -> str:
    """A text without what stands before the host of the addresses in it."""
    return re.sub(r"//[^/\s]*@", "//", text)
