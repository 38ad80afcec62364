"""Each stage on a real file system that is full: one sentence, nothing half-made, gone on with later."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jora_tasks.digests import digest_file
from jora_tasks.stages.pipeline import STAGES
from jora_tasks.trainer.checkpoint import SPARE_BYTES
from tests.commands import Commands, Ended

PAGE = 4096  # the least that a file of a tmpfs takes
SIZE = 64 << 20
TIMED = {"adapter": ["adapter_model.safetensors"], "evaluation": ["predictions.parquet"], "verdict": []}
"""Kinds whose digest follows from how long training took, and their files that do not."""


@pytest.fixture
def disk(commands: Commands, tmp_path: Path) -> Iterator[Path]:
    """The folder of a small file system, which the commands alone see there."""
    apart = ["nsenter", "-t", str(commands.pid), "-m"]
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(tmp_path)]
    here, there = Path("/proc/self/ns/mnt"), Path(f"/proc/{commands.pid}/ns/mnt")
    if here.readlink() == there.readlink() or subprocess.run([*apart, *mounted]).returncode:
        pytest.skip("a file system of its own needs root and the right to mount")
    yield tmp_path
    subprocess.run([*apart, "umount", str(tmp_path)], check=True)


def fill(folder: Path, room: int) -> Path:
    """A ballast that leaves so many bytes of a file system."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        left = shutil.disk_usage(folder).free - room
        assert left > 0
        os.posix_fallocate(file.fileno(), 0, left)
    return ballast


def pages(folder: Path) -> int:
    """What the files of a folder take of a tmpfs."""
    return sum(-(-file.stat().st_size // PAGE) * PAGE for file in folder.rglob("*") if file.is_file())


def outcome(ended: dict, root: Path) -> list:
    """What a stage came to, without the times that an adapter's metrics hold and what follows from them."""
    if "path" not in ended:
        return [ended["version"], ended["alias"]]
    if ended["kind"] not in TIMED:
        return [ended["digest"]]
    files = [Path(ended["path"], name) for name in TIMED[ended["kind"]]]
    return [digest_file(root / file.relative_to("/")) for file in files] + [ended["counts"].get("alias")]


def said(ended: Ended) -> str:
    """The sentence of a command that had no room."""
    assert ended.code == 28, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.last_line


@pytest.mark.slow
def test_a_full_disk_in_each_stage(
    commands: Commands, disk: Path, finished_home: Path, tiny_project: Path
) -> None:
    """Full to the last byte, and with room for half of what the stage makes."""
    home, root = disk / "home", Path(f"/proc/{commands.pid}/root")
    seen = root / disk.relative_to("/")
    for stage in STAGES.values():
        command = (stage.name, "--spec", tiny_project, "--json")
        undisturbed = commands.run(*command, JORA_HOME=finished_home).result
        made = pages(Path(undisturbed["path"])) if stage.kind else pages(finished_home / "mlflow")
        if stage.name == "train":
            made = 2 * SPARE_BYTES  # it begins, and has too little left for a checkpoint
        for room in (0, made // 2 // PAGE * PAGE):
            ballast = fill(seen, room)
            sentence = said(commands.run(*command, JORA_HOME=home))
            assert re.search("no (room|space)", sentence.lower()) and str(home) in sentence
            assert re.search("run (this|it) again", sentence)
            if stage.kind:
                left = seen / "home" / "artifacts" / stage.kind
                assert not left.exists() or not list(left.iterdir())
            ballast.unlink()
        print(f"{stage.name}: {sentence}")
        ended = commands.run(*command, JORA_HOME=home).result
        assert ended["state"] == "built"
        assert outcome(ended, root) == outcome(undisturbed, Path("/")), stage.name
