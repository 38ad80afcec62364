from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.spec import dump_spec, parse_spec
from tests.launching.cluster import KUBERNETES, Cluster
from tests.launching.homes import EPOCHS, MESH, SECRET, TOGETHER, Home
from tests.tiny import write_base


@pytest.fixture(scope="session")
def make_home(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Home]:
    folder = tmp_path_factory.mktemp("launched")
    training = {"epochs": EPOCHS, "batch_size": 4, "checkpoint_every": 20}
    lora = {"r": 2, "target_modules": ["q_proj"]}
    settings = {"model": {"base": str(write_base(folder / "base"))}, "lora": lora, "training": training}
    spec = folder / "spec.yaml"
    spec.write_text(dump_spec(parse_spec(settings)))

    def write(prompts: Path) -> dict[str, Any]:
        random = np.random.default_rng(0)
        rows = {
            "example_id": [f"q{i}" for i in range(12)],
            "split": ["train"] * 12,
            "input_ids": pa.array(
                [random.integers(0, 256, 20).tolist() for _ in range(12)], pa.list_(pa.int32())
            ),
            "prompt_length": pa.array([15] * 12, pa.int32()),
        }
        pq.write_table(pa.table(rows), prompts / "prompts.parquet")
        return {}

    def make() -> Home:
        home = tmp_path_factory.mktemp("home")
        prompts = ArtifactStore(home).build("prompts", version=1, settings={}, inputs={}, write=write)
        return Home(home, spec, prompts.key)

    return make


@pytest.fixture(scope="session")
def together(make_home: Callable[[], Home]) -> Home:
    """What two processes made undisturbed."""
    home = make_home()
    running = home.train(*MESH, **TOGETHER)
    printed, said = running.communicate(timeout=400)
    assert running.returncode == 0, said
    result = json.loads(printed)
    assert (result["state"], result["counts"]["steps"]) == ("built", 3 * EPOCHS)
    assert "\n[0] train 1/450 steps" in said and "\n[1] train\n" in said
    logs = home.folder / "logs" / "train" / result["key"]
    assert [file.name for file in sorted(logs.iterdir())] == ["process-0.log", "process-1.log"]
    assert "train 1/450 steps" in (logs / "process-0.log").read_text()
    return home


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """One with the settings that docker/kubernetes asks for; commands of the test know the way to it."""
    shared = (tmp_path / "shared").as_uri()
    devices = {name: TOGETHER[name] for name in ("XLA_FLAGS", "JAX_PLATFORMS")}
    settings = {
        "jora-settings": {"JORA_ARTIFACTS": shared, **devices},
        "jora-objects": {"AWS_ACCESS_KEY_ID": "jora"},
        "jora-run": {},
    }
    with Cluster(tmp_path / "cluster", settings) as made:
        monkeypatch.setenv("JORA_ARTIFACTS", shared)
        monkeypatch.setenv("JORA_TRAINING_JOB", str(KUBERNETES / "training-job.yaml"))
        monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig))
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        yield made
