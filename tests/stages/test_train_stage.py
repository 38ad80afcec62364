"""The train stage: one artifact, made once, gone on with after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.errors import InputError
from jora_tasks.progress import Progress
from jora_tasks.spec import dump_spec, parse_spec
from jora_tasks.stages.train import train_adapter

CONFIG = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny random Hugging Face folder."""
    from jora_tasks.trainer.config import parse_config
    from jora_tasks.trainer.parameters import describe, init_base

    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    config = parse_config(CONFIG)
    tree, tensors = init_base(config, jax.random.key(0)), {}
    for path, parameter in describe(config).items():
        leaf = tree
        for name in path:
            leaf = leaf[name]
        stacked = parameter.axes[0] == "layers"
        for layer, value in enumerate(np.asarray(leaf) if stacked else [np.asarray(leaf)]):
            tensors[parameter.checkpoint_name.format(layer)] = np.ascontiguousarray(value)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def store(home):
    return ArtifactStore(home)


def _prompts(store, split="train", fifth=None):
    def write(folder):
        random = np.random.default_rng(0)
        rows = {
            "example_id": [f"q{i}" for i in range(6)],
            "split": [split] * 4 + [fifth or split, "test"],
            "input_ids": pa.array(
                [random.integers(0, 64, 20).tolist() for _ in range(6)], pa.list_(pa.int32())
            ),
            "prompt_length": pa.array([15] * 6, pa.int32()),
        }
        pq.write_table(pa.table(rows), folder / "prompts.parquet")
        return {}

    return store.build("prompts", version=1, settings={"split": [split, fifth]}, inputs={}, write=write)


def _spec(base, **training):
    return parse_spec(
        {
            "model": {"base": str(base)},
            "lora": {"r": 2, "target_modules": ["q_proj"]},
            "training": {"epochs": 2, "batch_size": 2, "checkpoint_every": 2, **training},
        }
    )


def test_an_adapter_to_go_on_from_is_an_input(base, store, tmp_path):
    prompts, spec = _prompts(store), _spec(base)

    def further(start):
        return spec.model_copy(update={"lora": spec.lora.model_copy(update={"init_from": str(start)})})

    first = train_adapter(spec, prompts, store, Progress())
    second = train_adapter(further(first.path), prompts, store, Progress())
    assert second.manifest["inputs"]["start"] == {"kind": "adapter", "key": first.key, "digest": first.digest}
    assert _metrics(second)[0]["loss"] < _metrics(first)[0]["loss"]
    shutil.copytree(first.path, tmp_path / "a")
    shutil.copytree(first.path, tmp_path / "b")
    third = train_adapter(further(tmp_path / "a"), prompts, store, Progress())
    assert train_adapter(further(tmp_path / "b"), prompts, store, Progress()).key == third.key != first.key
    assert third.manifest["inputs"]["start"]["name"] == "a"
    with pytest.raises(InputError, match=r"lora\.init_from: .*adapter_config\.json is missing"):
        train_adapter(further(tmp_path), prompts, store, Progress())
    for folder in (tmp_path / "a", first.path):
        file = folder / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"x")
        with pytest.raises(InputError, match="does not match its manifest: a file is missing or altered"):
            train_adapter(further(folder), prompts, store, Progress())


class Interrupt:
    """A progress sink that stops the run at one step, as Ctrl-C would."""

    def __init__(self, step):
        self.step = step

    def __call__(self, event):
        if event.done == self.step:
            raise KeyboardInterrupt


def test_the_artifact_holds_the_adapter_and_its_counts(base, store):
    events = []
    artifact = train_adapter(_spec(base), _prompts(store), store, Progress(events.append))
    assert not artifact.reused
    assert set(artifact.manifest["files"]) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "metrics.jsonl",
        "summary.json",
    }
    counts = artifact.counts
    assert (counts["steps"], counts["epochs"], counts["examples"]) == (6, 2, 5)
    assert (counts["tokens"], counts["scored_tokens"]) == (200, 50)
    assert counts["final_loss"] > 0
    assert [(event.done, event.total, event.unit) for event in events] == [
        (i, 6, "steps") for i in range(1, 7)
    ]
    assert set(events[0].fields) == {"loss", "learning_rate", "tokens_per_second", "eta_seconds"}
    assert json.loads(artifact.file("adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    for file in artifact.path.iterdir():
        assert str(base).encode() not in file.read_bytes()
    assert not any((store.home / "work" / "adapter").iterdir())


def test_two_processes_make_one_artifact_by_the_same_command(base, store, tmp_path):
    spec = _spec(base)
    prompts = _prompts(store)
    store.set_latest(spec.name, prompts)
    file = tmp_path / "spec.yaml"
    file.write_text(dump_spec(spec))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    command = [sys.executable, "-m", "jora_tasks.cli", "train", "--spec", str(file)]
    command += ["--set", "training.mesh.data=2", "--json"]
    group = {"JORA_HOME": str(store.home), "JORA_COORDINATOR": address, "JORA_NUM_PROCESSES": "2"}
    children = [
        subprocess.Popen(
            command, env={**os.environ, **group, "JORA_PROCESS_ID": str(number)}, stdout=subprocess.PIPE
        )
        for number in range(2)
    ]
    outputs = [child.communicate(timeout=300)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    assert found[0]["key"] == found[1]["key"]
    assert len(list((store.home / "artifacts" / "adapter").iterdir())) == 1
    artifact = train_adapter(spec, prompts, store, Progress())  # the mesh belongs to no key
    assert artifact.reused
    alone = train_adapter(spec, prompts, ArtifactStore(tmp_path / "alone"), Progress())
    for ours, theirs in zip(_metrics(artifact), _metrics(alone), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_the_key_is_of_what_changes_the_adapter(base, store):
    prompts = _prompts(store)
    first = train_adapter(_spec(base), prompts, store, Progress())
    same = train_adapter(_spec(base, checkpoint_every=5), prompts, store, Progress())
    assert same.reused
    assert same.key == first.key
    spec = _spec(base)
    renamed = spec.model_copy(update={"name": "other", "retrieval": spec.retrieval.model_copy()})
    assert train_adapter(renamed, prompts, store, Progress()).reused
    other = train_adapter(_spec(base, learning_rate=0.01), prompts, store, Progress())
    assert other.key != first.key


def test_an_interrupted_stage_goes_on_from_its_checkpoint(base, store):
    prompts, spec = _prompts(store), _spec(base)
    with pytest.raises(KeyboardInterrupt):
        train_adapter(spec, prompts, store, Progress(Interrupt(5)))
    assert not list((store.home / "artifacts").glob("adapter/[!.]*"))
    steps = []
    artifact = train_adapter(spec, prompts, store, Progress(lambda event: steps.append(event.done)))
    assert steps == [5, 6]
    assert artifact.counts["steps"] == 6


def test_a_damaged_checkpoint_changes_nothing_but_where_the_stage_goes_on(base, store, tmp_path):
    prompts, spec = _prompts(store), _spec(base)
    whole = train_adapter(spec, prompts, ArtifactStore(tmp_path / "whole"), Progress())
    with pytest.raises(KeyboardInterrupt):
        train_adapter(spec, prompts, store, Progress(Interrupt(5)))
    for file in (store.home / "work" / "adapter" / whole.key / "checkpoints" / "4").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    steps = []
    artifact = train_adapter(spec, prompts, store, Progress(lambda event: steps.append(event.done)))
    assert steps == [3, 4, 5, 6]
    weights = "adapter_model.safetensors"
    assert artifact.manifest["files"][weights] == whole.manifest["files"][weights]
    assert [_figures(line) for line in _metrics(artifact)] == [_figures(line) for line in _metrics(whole)]


def _metrics(artifact):
    return [json.loads(line) for line in artifact.file("metrics.jsonl").read_text().splitlines()]


def _figures(line):
    return [line[name] for name in ("step", "epoch", "loss", "learning_rate", "grad_norm")]


def test_prompts_without_training_examples_are_refused(base, store):
    with pytest.raises(InputError, match=r"no question to train on; .* questions\.path .* `split`: train"):
        train_adapter(_spec(base), _prompts(store, split="dev"), store, Progress())
    assert not list((store.home / "artifacts").glob("adapter/[!.]*"))


def test_evaluations_are_told_counted_and_drawn(base, store):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    spec, events = _spec(base, eval_every=2, keep="best", tracker="tensorboard"), []
    artifact = train_adapter(spec, _prompts(store, fifth="dev"), store, Progress(events.append))
    lines = _metrics(artifact)
    losses = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    assert list(losses) == [2, 4]
    assert [event.fields.get("eval_loss") for event in events] == [None, losses[2], None, losses[4]]
    best = min(losses, key=lambda step: losses[step])
    assert (artifact.counts["kept_step"], artifact.counts["eval_loss"]) == (best, losses[best])
    drawn = EventAccumulator(str(store.home / "tensorboard" / "documents" / artifact.key)).Reload()
    assert [(each.step, each.value) for each in drawn.Scalars("eval/loss")] == [
        (step, np.float32(loss)) for step, loss in losses.items()
    ]
    assert [each.value for each in drawn.Scalars("train/loss")] == [
        np.float32(line["loss"]) for line in lines
    ]


def test_evaluations_need_dev_questions(base, store):
    with pytest.raises(InputError, match=r"training\.eval_every asks .* raise questions\.dev_fraction"):
        train_adapter(_spec(base, eval_every=2), _prompts(store), store, Progress())
    assert not list((store.home / "artifacts").glob("adapter/*"))


def test_curves_in_mlflow_go_on_where_an_interrupted_run_left_them(base, registry_store):
    from mlflow import MlflowClient

    store, spec = registry_store, _spec(base, tracker="mlflow")
    prompts = _prompts(store)
    with pytest.raises(KeyboardInterrupt):
        train_adapter(spec, prompts, store, Progress(Interrupt(5)))
    artifact = train_adapter(spec, prompts, store, Progress())
    client = MlflowClient(f"sqlite:///{store.home}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name(spec.name)
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.tags["jora.training"]) == ("FINISHED", artifact.key)
    drawn = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(each.step, each.value) for each in drawn] == [
        (line["step"], line["loss"]) for line in _metrics(artifact)
    ]


def test_sigterm_ends_the_command_with_a_code_of_its_own_and_loses_no_update(base, store, tmp_path):
    spec = _spec(base, epochs=100, checkpoint_every=10_000)
    prompts = _prompts(store)
    (tmp_path / "spec.yaml").write_text(dump_spec(spec))
    told = tmp_path / "progress.jsonl"
    options = ["--spec", str(tmp_path / "spec.yaml"), "--prompts", prompts.key, "--json"]
    command = subprocess.Popen(
        [sys.executable, "-m", "jora_tasks.cli", "train", *options],
        env={**os.environ, "JORA_HOME": str(store.home), "JORA_PROGRESS": str(told)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while command.poll() is None and not (told.exists() and '"done": 1,' in told.read_text()):
        time.sleep(0.01)
    command.send_signal(signal.SIGTERM)
    _, said = command.communicate()
    assert command.returncode == 75, said
    last = said.splitlines()[-1]
    assert last.startswith("jora: stopped by SIGTERM: saved at update ")
    steps = []
    artifact = train_adapter(spec, prompts, store, Progress(lambda event: steps.append(event.done)))
    assert steps[0] == int(last.split("update ")[1].split()[0]) + 1
    assert artifact.counts["steps"] == steps[-1] == 300
