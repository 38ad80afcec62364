"""Stops the job of a task that was ended from outside, as a listener of Airflow's.

A task that runs stops its job itself. Between two tries there is none: who marks it then, or its run, as
failed or done would leave the job to the keeper's patience. The API server hears of such a mark, and the
scheduler of the end of a run; where they see the home, as the pages do, nothing is left running.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.listeners import hookimpl

from jora_tasks.airflow.job import Job
from jora_tasks.airflow.runs import job_folder, run_folder
from jora_tasks.artifacts import jora_home


@hookimpl
def on_task_instance_failed(previous_state: Any, task_instance: Any) -> None:
    _marked(previous_state, task_instance)


@hookimpl
def on_task_instance_success(previous_state: Any, task_instance: Any) -> None:
    _marked(previous_state, task_instance)


@hookimpl
def on_task_instance_skipped(previous_state: Any, task_instance: Any) -> None:
    _marked(previous_state, task_instance)


@hookimpl
def on_dag_run_failed(dag_run: Any) -> None:
    _run_ended(dag_run)


@hookimpl
def on_dag_run_success(dag_run: Any) -> None:
    _run_ended(dag_run)


def _marked(previous_state: Any, task: Any) -> None:
    """Only a mark by hand comes without the state before; a task that ends by itself has seen to its job."""
    if previous_state is None:
        folder = run_folder(jora_home(), task.dag_id, task.run_id)
        _stop(job_folder(folder, task.task_id, task.map_index))


def _run_ended(run: Any) -> None:
    for folder in (run_folder(jora_home(), run.dag_id, run.run_id) / "jobs").glob("*"):
        _stop(folder)


def _stop(folder: Path) -> None:
    job = Job(folder)
    if job.alive():
        job.ask_to_stop()
