"""A real local Airflow whose wall clock is set by hours while it trains, by `tests.clock`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jora_tasks.airflow import local
from jora_tasks.airflow.ports import choose_port
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.progress import Progress
from jora_tasks.registry import Registry
from jora_tasks.spec import load_spec
from jora_tasks.stages.pipeline import run_stage
from tests.airflow.training import DAG, Training, wait_for
from tests.clock import HOUR, Clock, make_clock


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    return make_clock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def home(clock: Clock, tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a running Airflow; contexts and prompts are made, so that runs come to training at once."""
    folder = tmp_path_factory.mktemp("jumps") / "home"
    store, spec = ArtifactStore(folder), load_spec(tiny_project)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AIRFLOW__OPENLINEAGE__TRANSPORT", raising=False)
        patch.setenv("JORA_HOME", str(folder))
        for stage in ("corpus", "index", "contexts", "prompts"):
            run_stage(stage, spec, store, Progress())
        for name, value in clock.environment.items():
            patch.setenv(name, value)
        try:
            local.start(folder, tiny_project, choose_port(None, default=8281))
            yield folder
        finally:
            local.stop(folder)


@pytest.mark.slow
def test_a_run_ends_right_though_the_clock_is_set_forward_and_back_while_it_trains(home: Path, clock: Clock):
    """Each update is made once, by the one trainer, which its task follows or a later try of it.

    Set back to before the run began, the clock has to catch up before Airflow starts any more of it.
    """
    airflow = local.running(home)
    assert airflow is not None
    client = airflow.client()
    conf = {"training.epochs": 500, "training.seed": 1}
    training = Training(home, client, client.trigger(DAG, conf)["dag_run_id"], epochs=500)
    training.in_the_middle()
    clock.set(5 * HOUR)
    training.in_the_middle(after=200)
    clock.set(-5 * HOUR)
    wait_for(lambda: training.job.exit_code() == 0, 900, "the end of training")
    assert client.dag_run(DAG, training.run_id)["state"] == "running"
    clock.set(0)
    training.trained()
    print("tries", training.task()["try_number"])
    wait_for(lambda: client.dag_run(DAG, training.run_id)["state"] != "running", 900, "the end of the run")
    assert client.dag_run(DAG, training.run_id)["state"] == "success"
    assert training.steps() == list(range(1, 2 * training.epochs + 1))
    assert len(Registry(home).versions("tiny")) == 1
