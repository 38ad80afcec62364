"""Runs one stage of a DAG run as a child process of its task.

Airflow forks its tasks, and neither JAX nor faiss outlives a fork; so a task starts the same
command that people type, ``jora <stage>``, and reads the one JSON object it prints.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, BaseOperator, Context, Variable

from jora_tasks.airflow import notices
from jora_tasks.airflow.assets import event_extra
from jora_tasks.airflow.child import Child, Outcome
from jora_tasks.airflow.connections import use_connections
from jora_tasks.airflow.failures import RETRY_POLICY, BadInput, StageCancelled, failure, last_json
from jora_tasks.airflow.params import base_mark, base_spec, settings, spec_from_params
from jora_tasks.airflow.runs import (
    begun_with_file,
    good_spec_file,
    good_spec_variable,
    job_folder,
    progress_file,
    run_folder,
    spec_file,
)
from jora_tasks.airflow.shared_runs import share_costs, share_events, told_live
from jora_tasks.airflow.sweep import SWEEP, checked_variants
from jora_tasks.artifacts import jora_home
from jora_tasks.errors import InputError
from jora_tasks.shared_store import ARTIFACTS
from jora_tasks.spec import RunSpec, dump_spec
from jora_tasks.trainer.lease import WAIT
from jora_tasks.writing import write_text

# The pool makes runs of one Airflow take turns; of what else may hold a device, a task waits for the end.
DEVICE_WAIT_SECONDS = 24 * 3600
COMMAND = (sys.executable, "-m", "jora_tasks.cli")
TASK_DEFAULTS: dict[str, Any] = {
    "retries": 2,
    "retry_delay": timedelta(seconds=10),
    "retry_policy": RETRY_POLICY,
    "on_failure_callback": notices.failed,
}


@dataclass(frozen=True)
class Call:
    """One run of a stage's command.

    Attributes:
      folder: of the DAG run.
      spec: the run's settings, as written to the folder.
      keys: kind → key of the artifacts that the stage takes.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    spec: RunSpec
    keys: Mapping[str, str]


class StageOperator(BaseOperator):
    """One stage with the run's settings.

    Args:
      stage: name of the `jora` command.
      inputs: what tasks before returned, as in ``[corpus.output]``; says kind and key of an artifact.
      event_input: asset whose triggering event, if there is one, gives the key of that kind and
        the name of the line of adapters; without an event the command takes the latest.
      arguments: further options of the command; what a mapped task is mapped over.
      command: what to run; the stage and its options are added.
      ends_well: whether a run that came past this task is a good one, whose settings the form offers next.
      overrides: settings by name that this task has instead of the run's, as a variant of a sweep does.

    Returns:
      The command's JSON object: stage, state, kind, key, digest, path, counts, snapshot, seconds;
      of a registration, name, version, alias and verdict; of an embedded shard, its number and counts.

    Raises:
      AirflowException: see `failures`.
    """

    template_fields: Sequence[str] = ("inputs", "arguments", "overrides")
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        stage: str,
        inputs: Sequence[Any] = (),
        event_input: Asset | None = None,
        arguments: Sequence[str] = (),
        command: Sequence[str] = COMMAND,
        ends_well: bool = False,
        overrides: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stage = stage
        self.ends_well = ends_well
        self.overrides = overrides
        self.inputs = list(inputs)
        self.event_input = event_input
        self.arguments = arguments
        self.command = tuple(command)
        self._child: Child | None = None
        self._cancelled = False
        self._finished: tuple[dict[str, Any], Mapping[str, str], str] | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        use_connections()
        call = self._prepare(context)
        self.log.info("%s", " ".join(call.command))
        shared = os.environ.get(ARTIFACTS)
        outcome = self._run_and_tell(shared, call, context) if shared else self._run(call, context)
        if self._cancelled:
            # Without this a task told to stop could end as a success.
            raise StageCancelled(f"Stage {self.stage} was stopped.")
        if error := failure(self.stage, outcome):
            raise error
        result = last_json(outcome.stdout, self.stage)
        # As in `run_stage`, but from the run's first stage on: it is this corpus that the run is for.
        result |= next(({"snapshot": each["snapshot"]} for each in self.inputs if each.get("snapshot")), {})
        if self.ends_well:
            keep_form(call, context["dag_run"])
        for asset in self.outlets:
            if isinstance(asset, Asset):
                event = context["outlet_events"][asset]
                event.extra = event_extra(call.spec.name, result)
                if snapshot := result.get("snapshot"):
                    event.add_partitions(snapshot)
        self._finished = result, call.keys, call.spec.documents.path
        return result

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Called by Airflow's OpenLineage provider; it replaces inlets and outlets, which have no version."""
        if self._finished is None:
            return None
        from jora_tasks.airflow.lineage_events import stage_lineage

        return stage_lineage(*self._finished, task_instance)

    def on_kill(self) -> None:
        self._cancelled = True
        if self._child is not None:
            self._child.end()

    def _prepare(self, context: Context) -> Call:
        """Write the run's spec and say what to run."""
        home, run = jora_home(), context["dag_run"]
        folder = run_folder(home, run.dag_id, run.run_id)
        keys = {result["kind"]: result["key"] for result in self.inputs}
        try:
            spec = run_spec(context, self.overrides)
            if self.event_input and (event := _newest_event(context, self.event_input)):
                keys[self.event_input.name] = event["key"]
        except InputError as error:
            raise BadInput(str(error)) from None
        folder.mkdir(parents=True, exist_ok=True)
        if not begun_with_file(folder).exists():
            write_text(begun_with_file(folder), base_mark())
        # Variants of one run side by side: a file each.
        variant = context["ti"].map_index if self.overrides is not None else None
        file = spec_file(folder, -1 if variant is None else variant)
        write_text(file, dump_spec(spec))
        options = [part for kind, key in keys.items() for part in (f"--{kind}", key)]
        command = [*self.command, self.stage, "--spec", str(file), "--json"]
        return Call(
            (*command, *options, *self.arguments), stage_environment(home, folder, run), folder, spec, keys
        )

    def _run_and_tell(self, shared: str, call: Call, context: Context) -> Outcome:
        """Run it; machines that share artifacts are told what it says and has cost."""
        task = context["ti"]
        name = job_folder(call.folder, task.task_id, -1 if task.map_index is None else task.map_index).name
        with told_live(shared, call.folder, name, self.stage):
            outcome = self._run(call, context)
        share_events(shared, call.folder, name, self.stage)
        share_costs(shared, jora_home())
        return outcome

    def _run(self, call: Call, context: Context) -> Outcome:
        self._child = Child(call.command, call.environment, call.folder)
        try:
            if self._cancelled:  # told to stop while the child was being started
                self._child.end()
            return self._child.wait(lambda line: self.log.info("%s", line))
        except BaseException:  # a timeout, say: the child must not outlive its task
            self._child.end()
            raise


def run_spec(context: Context, overrides: Mapping[str, Any] | None = None) -> RunSpec:
    """The settings of a DAG run: those of the spec file with what the run's conf and the overrides say.

    The form sends all it shows. A run on schedule or by an event has no conf, so what the form begins with
    does not reach it. One that an artifact's event started is of that artifact's line of adapters.

    Raises:
      InputError: for values that do not go together.
    """
    conf = {name: value for name, value in (context["dag_run"].conf or {}).items() if name != SWEEP}
    spec = spec_from_params({**conf, **(overrides or {})}, base_spec())
    events = [_newest_event(context, asset) for asset in context["triggering_asset_events"]]
    names = [event["name"] for event in events if event]
    return spec.model_copy(update={"name": names[0]}) if names else spec


def run_variants(context: Context) -> list[dict[str, Any]]:
    """The variants of a sweep, with intervals as wide as a choice among so many asks for.

    The best is chosen by the questions that it is then judged on, so each has to show more (Bonferroni).

    Raises:
      InputError: if one of them cannot be, with its number.
    """
    variants = checked_variants(context["params"][SWEEP], [setting.name for setting in settings()])
    for number, variant in enumerate(variants):
        try:
            run_spec(context, variant)
        except InputError as error:
            raise InputError(f"{SWEEP}, variant {number}: {error}") from None
    asked, many = run_spec(context).evaluation, len(variants)
    stricter = {
        "evaluation.confidence": 1 - (1 - asked.confidence) / many,
        "evaluation.bootstrap_samples": min(100_000, asked.bootstrap_samples * many),
    }
    return [variant | stricter for variant in variants] if many > 1 else variants


def keep_form(call: Call, run: Any) -> None:
    """Keep the settings of a run that someone started with a form, for the next form to begin with."""
    if not run.conf:
        return
    begun_with = begun_with_file(call.folder).read_text(encoding="utf-8")
    if os.environ.get(ARTIFACTS):  # forms are made on another machine
        kept = {"begun_with": begun_with, "spec": call.spec.model_dump(mode="json")}
        Variable.set(good_spec_variable(run.dag_id), json.dumps(kept))
    else:
        write_text(good_spec_file(jora_home(), run.dag_id), f"{begun_with}\n{dump_spec(call.spec)}")


def stage_environment(home: Path, folder: Path, run: Any) -> dict[str, str]:
    """This process's without Airflow's own settings and the webhook's address, some of which are secrets."""
    others = ("AIRFLOW", notices.NOTIFY)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return inherited | {
        "JORA_HOME": str(home),
        "JORA_PROGRESS": str(progress_file(folder)),
        "JORA_AIRFLOW_RUN": f"{run.dag_id}/{run.run_id}",
        "PYTHONUNBUFFERED": "1",
        WAIT: str(DEVICE_WAIT_SECONDS),
    }


def _newest_event(context: Context, asset: Asset) -> dict[str, Any] | None:
    """Extra of the newest event of this asset among those that started the run, if it has a key."""
    triggering: Any = context["triggering_asset_events"]
    events = [event for event in triggering.get(asset, []) if {"key", "name"} <= (event.extra or {}).keys()]
    return max(events, key=lambda event: event.timestamp).extra if events else None
