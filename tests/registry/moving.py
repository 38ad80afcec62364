"""Processes that move the champion at the same time, or are killed at it; in a module, to be started anew."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from jora_tasks.registry import ANY, ChampionMoved, Registry

MOVED = "moved"
_WRITES = ("create_registered_model", "create_model_version", "set_registered_model_alias")

# Children are forked from a process that has imported MLflow and opened nothing.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "tests.registry.moving",
        "mlflow.store.tracking.sqlalchemy_store",
        "mlflow.store.model_registry.sqlalchemy_store",
    ]
)


def together(
    home: Path, line: str, movers: Sequence[Sequence[tuple]], kill_at: int = 0
) -> list[tuple[str, Any]]:
    """Let each mover make its moves, all at once.

    Args:
      movers: for each its moves: (version, options of `Registry.promote`), or () to roll back.
      kill_at: number of a beginning or end of a write to the registry, from 1, at which a mover is killed.

    Returns:
      For each its name in the records, and the versions it made champion or `MOVED`; None if it was killed.
    """
    barrier = _context.Barrier(len(movers))
    server = os.environ.get("MLFLOW_TRACKING_URI")
    running = []
    for moves in movers:
        receiver, sender = _context.Pipe(duplex=False)
        process = _context.Process(target=_move, args=(home, server, line, moves, kill_at, barrier, sender))
        process.start()
        sender.close()
        running.append((process, receiver))
    told = []
    for process, receiver in running:
        process.join(120)
        assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
        told.append((f"process {process.pid}", receiver.recv() if process.exitcode == 0 else None))
    return told


def _move(
    home: Path,
    server: str | None,
    line: str,
    moves: Sequence[tuple],
    kill_at: int,
    barrier: Barrier,
    sender: Any,
) -> None:
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if server:
        os.environ["MLFLOW_TRACKING_URI"] = server
    registry = Registry(home)
    _kill_at(kill_at, registry._client())
    who: dict[str, str] = {"by": f"process {os.getpid()}", "reason": "at once"}
    told: list[int | str] = []
    barrier.wait(60)
    for move in moves:
        try:
            if move:
                version, options = move
                done = registry.promote(line, version, **{"expected": ANY, **options}, **who)
            else:
                done = registry.rollback(line, **who)
            told.append(done.version)
        except ChampionMoved:
            told.append(MOVED)
    sender.send(told)


def _kill_at(number: int, client: Any) -> None:
    """SIGKILL this process at the n-th beginning or end of a write."""
    passed = 0

    def step() -> None:
        nonlocal passed
        passed += 1
        if passed == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            step()
            result = method(*args, **kwargs)
            step()
            return result

        return call

    for name in _WRITES:
        setattr(client, name, watched(getattr(client, name)))
