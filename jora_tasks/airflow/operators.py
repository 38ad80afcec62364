"""Runs one stage of a DAG run as a child process of its task.

Airflow forks its tasks, and neither JAX nor faiss outlives a fork; so a task starts the same
command that people type, ``jora <stage>``, and reads the one JSON object it prints.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, BaseOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from jora_tasks.airflow.assets import event_extra
from jora_tasks.airflow.child import Child, Outcome
from jora_tasks.airflow.params import base_spec, spec_from_params
from jora_tasks.airflow.runs import progress_file, run_folder, spec_file
from jora_tasks.artifacts import jora_home, write_text
from jora_tasks.errors import InputError
from jora_tasks.spec import dump_spec

BAD_INPUT = 2  # exit code of `jora` for what the user can mend
COMMAND = (sys.executable, "-m", "jora_tasks.cli")


class StageCancelled(AirflowException):
    """The task was told to stop while its stage was running."""


class StageOperator(BaseOperator):
    """One stage with the run's settings.

    Args:
      stage: name of the `jora` command.
      inputs: what tasks before returned, as in ``[corpus.output]``; says kind and key of an artifact.
      event_input: asset whose triggering event, if there is one, gives the key of that kind and
        the name of the line of adapters; without an event the command takes the latest.
      arguments: further options of the command; what a mapped task is mapped over.
      command: what to run; the stage and its options are added.

    Returns:
      The command's JSON object: stage, state, kind, key, digest, path, counts, seconds; of a
      registration, name, version, alias and verdict; of an embedded shard, its number and counts.

    Raises:
      AirflowFailException: bad input, with its one sentence; no retry would mend it.
      AirflowException: any other failure; retried.
    """

    template_fields: Sequence[str] = ("inputs", "arguments")
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        stage: str,
        inputs: Sequence[Any] = (),
        event_input: Asset | None = None,
        arguments: Sequence[str] = (),
        command: Sequence[str] = COMMAND,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stage = stage
        self.inputs = list(inputs)
        self.event_input = event_input
        self.arguments = arguments
        self.command = tuple(command)
        self._child: Child | None = None
        self._cancelled = False
        self._finished: tuple[dict[str, Any], dict[str, str]] | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        home, run = jora_home(), context["dag_run"]
        folder = run_folder(home, run.dag_id, run.run_id)
        keys = {result["kind"]: result["key"] for result in self.inputs}
        try:
            spec = spec_from_params(context["params"], base_spec())
            if self.event_input and (event := _newest_event(context, self.event_input)):
                keys[self.event_input.name] = event["key"]
                # The index is of one line of adapters, and so is what is trained on it.
                spec = spec.model_copy(update={"name": event["name"]})
        except InputError as error:
            raise AirflowFailException(str(error)) from None
        folder.mkdir(parents=True, exist_ok=True)
        write_text(spec_file(folder), dump_spec(spec))

        outcome = self._run(self._arguments(folder, keys), self._environment(home, folder, run), folder)
        if outcome.code == BAD_INPUT:
            raise AirflowFailException(outcome.last_line.removeprefix("jora: "))
        if outcome.code != 0:
            raise AirflowException(
                f"Stage {self.stage} ended with exit code {outcome.code}: {outcome.last_line}"
            )
        result = _last_json(outcome.stdout, self.stage)
        for asset in self.outlets:
            if isinstance(asset, Asset):
                context["outlet_events"][asset].extra = event_extra(spec.name, result)
        self._finished = result, keys
        return result

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Called by Airflow's OpenLineage provider; it replaces inlets and outlets, which have no version."""
        if self._finished is None:
            return None
        from jora_tasks.airflow.lineage_events import stage_lineage

        return stage_lineage(*self._finished)

    def on_kill(self) -> None:
        self._cancelled = True
        if self._child is not None:
            self._child.end()

    def _run(self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> Outcome:
        self.log.info("%s", " ".join(arguments))
        self._child = Child(arguments, environment, folder)
        try:
            if self._cancelled:  # told to stop while the child was being started
                self._child.end()
            outcome = self._child.wait(lambda line: self.log.info("%s", line))
        except BaseException:  # a timeout, say: the child must not outlive its task
            self._child.end()
            raise
        if self._cancelled:
            # Without this a task told to stop could end as a success.
            raise StageCancelled(f"Stage {self.stage} was stopped.")
        return outcome

    def _arguments(self, folder: Path, keys: Mapping[str, str]) -> list[str]:
        options = [part for kind, key in keys.items() for part in (f"--{kind}", key)]
        given = [*options, *self.arguments]
        return [*self.command, self.stage, "--spec", str(spec_file(folder)), "--json", *given]

    def _environment(self, home: Path, folder: Path, run: Any) -> dict[str, str]:
        """This process's without Airflow's own settings, some of which are secrets."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        return inherited | {
            "JORA_HOME": str(home),
            "JORA_PROGRESS": str(progress_file(folder)),
            "JORA_AIRFLOW_RUN": f"{run.dag_id}/{run.run_id}",
            "PYTHONUNBUFFERED": "1",
        }


def _newest_event(context: Context, asset: Asset) -> dict[str, Any] | None:
    """Extra of the newest event of this asset among those that started the run, if it has a key."""
    triggering: Any = context["triggering_asset_events"]
    events = [event for event in triggering.get(asset, []) if {"key", "name"} <= (event.extra or {}).keys()]
    return max(events, key=lambda event: event.timestamp).extra if events else None


def _last_json(stdout: str, stage: str) -> dict[str, Any]:
    lines = [line for line in stdout.splitlines() if line.strip()]
    try:
        result = json.loads(lines[-1])
    except (IndexError, ValueError):
        result = None
    if not isinstance(result, dict):
        raise AirflowException(f"Stage {stage} printed no JSON object as its last line.")
    return result
