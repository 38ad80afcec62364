"""Two hundred triggers at once on a real local Airflow, all of them to their end.

    python -m tests.benchmarks.triggers [--times 200] [--taken]

Half are of document_index and half of adapter_training, of a tiny project with the same settings each time.
Prints one JSON object: seconds until all were taken and the machine's load then; unless `--taken` leaves it
at that, seconds until all had ended, how they ended, and how many adapters and versions were made.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from jora_tasks.airflow import local
from jora_tasks.registry import Registry
from tests.airflow.triggers import states, trigger_many
from tests.tiny import write_project


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--taken", action="store_true", help="Do not wait for their ends.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JORA_HOME"] = f"{folder}/home"
        (Path(folder) / "project").mkdir()
        print(json.dumps(measure(Path(folder), asked.times, asked.taken), indent=2))


def measure(folder: Path, times: int, only_taken: bool) -> dict[str, Any]:
    home = folder / "home"
    try:
        airflow = local.start(home, write_project(folder / "project"))
        started = time.monotonic()
        taken, refused = trigger_many(airflow.client, times, {dag_id: {} for dag_id in local.DAG_IDS})
        seconds = {"taken": round(time.monotonic() - started, 1)}
        told = {
            "triggers": dict(taken),
            "refused": refused,
            "seconds": seconds,
            "load": [round(each, 1) for each in os.getloadavg()],
        }
        if only_taken:
            return told
        with airflow.client() as client:
            while True:
                now = {dag_id: states(client, dag_id) for dag_id in local.DAG_IDS}
                if not any(each["queued"] + each["running"] for each in now.values()):
                    break
                time.sleep(2)
        return told | {
            "seconds": seconds | {"ended": round(time.monotonic() - started, 1)},
            "ended": {dag_id: dict(each) for dag_id, each in now.items()},
            "adapters": len(list((home / "artifacts" / "adapter").iterdir())),
            "versions": len(Registry(home).versions("tiny")),
        }
    finally:
        local.stop(home)


if __name__ == "__main__":
    main()
