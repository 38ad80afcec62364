"""Checkpoints that machines share, so that another one goes on where one was lost.

work/<kind>/<key>/<step>/<file>     a checkpoint
work/<kind>/<key>/state.json        which one counts, and the digests of its files; written last
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path

from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

from jora_tasks.digests import digest_file
from jora_tasks.shared_store import SharedStore
from jora_tasks.writing import atomic_folder

STATE = "state.json"

_log = logging.getLogger(__name__)


class _State(TypedDict):
    step: int
    files: dict[str, str]


_STATES = TypeAdapter(_State)


def keep(shared: SharedStore, kind: str, key: str, work: Path, step: int, names: list[str]) -> None:
    """Share a checkpoint; the one before it goes.

    Args:
      work: the folder of the unfinished artifact.
      step: a number that grows from one checkpoint to the next.
      names: the files that make the checkpoint.
    """
    place = ("work", kind, key)
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for each in names:  # one that grows, as metrics do, is kept as it is now
            (copy / each).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(work / each, copy / each)
        files = {each: digest_file(copy / each) for each in names}
        shared.send(files, copy, *place, str(step))
    shared.write(json.dumps({"step": step, "files": files}).encode(), *place, STATE)
    for old in shared.listed(*place):
        if old.isdigit() and int(old) < step:
            shared.remove(*place, old)


def take_up(shared: SharedStore, kind: str, key: str, work: Path, here: int) -> int | None:
    """Copy the shared checkpoint into the work folder, if it is further than what is there.

    One that is damaged is left out with a warning: what it would have saved is done again.

    Args:
      here: the step of the checkpoint in the folder, -1 if it has none.

    Returns:
      The step taken up, or None.
    """
    place = ("work", kind, key)
    data = shared.read(*place, STATE)
    if data is None:
        return None
    try:
        state = _STATES.validate_json(data)
        if state["step"] <= here:
            return None
        with atomic_folder(work) as temporary:
            shared.take(state["files"], temporary, *place, str(state["step"]))
            wrong = [
                name for name, digest in state["files"].items() if digest_file(temporary / name) != digest
            ]
            if wrong:
                raise ValueError(f"{wrong[0]} is not what was kept")
    except ValueError as error:
        _log.warning("The checkpoint in %s/%s cannot be used: %s", shared.url, "/".join(place), error)
        return None
    return state["step"]


def forget(shared: SharedStore, kind: str, key: str) -> None:
    """Remove the checkpoints of what is made by now."""
    shared.remove("work", kind, key)
