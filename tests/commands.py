"""Runs `jora` commands in forks of one process that has imported what they need; it spares seconds of each.

``Commands`` starts that process, of its own namespace or clock if need be, and asks it for commands by lines
of JSON; run as a module this file is that process. A command ends as the real one: by its exit code, with all
that it printed.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "JAX_PLATFORMS": "cpu"}
"""No thread that a fork would not have, and no look for devices."""

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        return next(iter(self.stderr.strip().splitlines()[::-1]), "")

    @property
    def result(self) -> dict:
        """The JSON object of a command that ended well."""
        assert self.code == 0, self.stderr
        return json.loads(self.stdout.strip().splitlines()[-1])


class Commands:
    """A process to run commands in.

    Args:
      prefix: words before its command line, such as those of `unshare`.
      environment: further variables of it.
    """

    def __init__(self, prefix: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.commands"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **QUIET, **(environment or {})},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, *arguments: str | Path, **environment: str | Path) -> Ended:
        """Run ``jora`` with these arguments to its end."""
        return self.run_together([arguments], **environment)[0]

    def run_together(
        self, commands: Sequence[Sequence[str | Path]], **environment: str | Path
    ) -> list[Ended]:
        """Run several at once, each to its end."""
        assert self._process.stdin and self._process.stdout
        variables = {name: str(value) for name, value in environment.items()}
        asked = [{"arguments": list(map(str, each)), "environment": variables} for each in commands]
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return [Ended(**each) for each in json.loads(self._process.stdout.readline())]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("\n")  # closing it would not do: a fork of this process may have it open
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def _serve() -> dict | None:
    """Answer what is asked until a line is empty; in a fork, returns what it has to run."""
    while line := sys.stdin.readline().strip():
        forks = []
        for asked in json.loads(line):
            files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115 (closed by _ended)
            if not (pid := os.fork()):
                for descriptor, file in zip((1, 2), files, strict=True):
                    os.dup2(file.fileno(), descriptor)
                return asked
            forks.append((pid, files))
        print(json.dumps([_ended(*fork) for fork in forks]), flush=True)
    return None


def _ended(pid: int, files: Sequence[IO[str]]) -> dict:
    code, printed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), []
    for file in files:
        with file:
            file.seek(0)
            printed.append(file.read())
    return {"code": code, "stdout": printed[0], "stderr": printed[1]}


def _import() -> None:
    """What stages import when they need it; nothing that starts threads or looks for devices."""
    import faiss  # noqa: F401
    import jax  # noqa: F401
    import mlflow  # noqa: F401
    import sentence_transformers  # noqa: F401

    from jora_tasks.stages.pipeline import STAGES

    for stage in STAGES.values():
        importlib.import_module(f"jora_tasks.stages.{stage.function.partition(':')[0]}")
    for module in ("cli", "events"):
        importlib.import_module(f"jora_tasks.{module}")
    gc.freeze()  # a fork looks through none of it again when it ends


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "os.fork")  # JAX has no backend yet, so there is nothing to break
    _import()
    if asked := _serve():
        os.environ |= asked["environment"]
        sys.argv = ["jora", *asked["arguments"]]
        from jora_tasks.cli import main

        try:
            main()
        except Exception:
            traceback.print_exc()
            sys.exit(1)
