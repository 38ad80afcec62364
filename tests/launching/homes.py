"""A home with prompts, and commands that train on them, as tests of launches need them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from jora_tasks.airflow.processes import marked

EPOCHS = 150  # of three updates each
SECRET = "planted-storage-key"
TOGETHER = {
    "JORA_HOSTS": "localhost,localhost",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "JAX_PLATFORMS": "cpu",
    "AWS_SECRET_ACCESS_KEY": SECRET,
}
MESH = ("--set", "training.mesh.data=2", "--set", "training.mesh.fsdp=2")


@dataclass
class Home:
    """A home with prompts to train on."""

    folder: Path
    spec: Path
    prompts: str

    @property
    def progress(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}-progress.jsonl")

    def train(self, *options: str, **environment: str) -> subprocess.Popen[str]:
        own = {"JORA_HOME": str(self.folder), "JORA_PROGRESS": str(self.progress)}
        command = [sys.executable, "-m", "jora_tasks.cli", "train", "--json"]
        return subprocess.Popen(
            [*command, "--spec", str(self.spec), "--prompts", self.prompts, *options],
            env={**os.environ, **own, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def updates(self) -> int:
        """How many were told of, of all tries."""
        lines = self.progress.read_text().splitlines() if self.progress.exists() else []
        return sum(json.loads(line)["unit"] == "steps" for line in lines)

    def in_the_middle(self, running: subprocess.Popen[str]) -> None:
        seen = self.updates()
        wait(lambda: running.poll() is not None or self.updates() > seen + 60, 240, "updates")
        assert running.poll() is None, running.communicate()

    def processes(self) -> list[psutil.Process]:
        return marked("JORA_HOME", str(self.folder))

    def trainer(self, number: int) -> psutil.Process:
        """The process of this number, not the member that keeps it."""
        return next(
            process
            for process in self.processes()
            if process.environ().get("JORA_PROCESS_ID") == str(number)
            and "jora_tasks.cli" in process.cmdline()
        )

    def adapter(self) -> Path:
        [folder] = (self.folder / "artifacts" / "adapter").glob("[!.]*")
        return folder

    def losses(self) -> list[float]:
        lines = (self.adapter() / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]


def wait(condition: Callable[[], Any], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)
