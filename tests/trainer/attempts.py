"""Trains a tiny adapter in children killed at given moments: ``python -m tests.trainer.attempts``.

The children are forked before any JAX backend starts, so that an attempt costs no import. Arguments, one
JSON object: ``output``, ``work``, ``training`` (settings), ``delays`` (seconds after which SIGKILL comes,
counted from the moment that training begins; after the last delay an attempt is left alone). Prints the
exit status of every attempt as a JSON list.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import grain  # noqa: F401 (imported before the forks)
import orbax.checkpoint  # noqa: F401

from jora_tasks.spec import TrainConfig
from jora_tasks.trainer.lock import sole_use
from jora_tasks.trainer.loop import Loop
from jora_tasks.trainer.train import train_lora
from tests.trainer import tiny_run


def attempt(arguments: dict, ready: int) -> None:
    run = Loop.run

    def told(loop: Loop) -> object:
        os.write(ready, b"x")
        return run(loop)

    Loop.run = told  # type: ignore[method-assign]
    train_lora(
        tiny_run.model(),
        tiny_run.dataset(),
        tiny_run.LORA,
        TrainConfig(**arguments["training"]),
        output=arguments["output"],
        work=arguments["work"],
        base_name="tiny",
        held_out=tiny_run.dataset(3, seed=1),
    )


def main() -> None:
    arguments = json.loads(sys.argv[1])
    delays, statuses = list(arguments["delays"]), []
    while not statuses or statuses[-1] != 0:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                attempt(arguments, writing)
            except BaseException as error:
                print(error, file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        os.close(writing)
        began = os.read(reading, 1)
        os.close(reading)
        if delays and began:
            time.sleep(delays.pop(0))
            os.kill(child, signal.SIGKILL)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        if statuses[-1] not in (0, -signal.SIGKILL):
            break
    with sole_use(Path(arguments["output"]), "output"):  # a lock that a kill left means nothing
        print(json.dumps(statuses))


if __name__ == "__main__":
    main()
