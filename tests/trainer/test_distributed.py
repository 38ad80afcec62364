"""Two processes on loopback train what one does, and go on together after one of them is gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jora_tasks.errors import InputError
from jora_tasks.trainer.group import Group, group_of

CHILD = """
import json, os, signal, sys
from pathlib import Path

import numpy as np

from jora_tasks.errors import RunStopped
from jora_tasks.spec import LoraConfig, MeshConfig, TrainConfig
from jora_tasks.trainer.data import Dataset, Example
from jora_tasks.trainer.distributed import initialize
from jora_tasks.trainer.train import train_lora

folder, output, mesh, stop = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
initialize(heartbeat_seconds=5)
random = np.random.default_rng(0)
dataset = Dataset(tuple(
    Example.make(str(i), random.integers(0, 96, n), prompt_length=5)
    for i, n in enumerate(random.integers(8, 120, 22))
))


def on_step(metrics):
    name, _, step = stop.partition(":")
    if name and metrics["step"] == int(step):
        os.kill(os.getpid(), getattr(signal, name))


training = TrainConfig(epochs=3, batch_size=4, checkpoint_every=2, learning_rate=0.01, packing=True,
                       row_length=128, mesh=MeshConfig(**mesh))
lora = LoraConfig(r=4, lora_dropout=0.1)
try:
    train_lora(folder, dataset, lora, training, output=output, base_name="tiny", on_step=on_step)
except RunStopped as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
FIGURES = ("step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "scored_tokens")
SPLIT = {"data": 2, "fsdp": 2}


@pytest.fixture(scope="module", autouse=True)
def _programs_compiled_once(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("programs")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


def _environment(devices, **more):
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    return {**os.environ, **flags, **{name: str(value) for name, value in more.items()}}


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _start(folder, output, mesh, environment, stop=""):
    command = [sys.executable, "-c", CHILD, str(folder), str(output), json.dumps(mesh), stop]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def _two(folder, output, stop=""):
    """Two processes of two devices each; ``stop`` is for the second. Their exit codes and words."""
    group = {"JORA_COORDINATOR": f"127.0.0.1:{_free_port()}", "JORA_NUM_PROCESSES": 2}
    children = [
        _start(folder, output, SPLIT, _environment(2, **group, JORA_PROCESS_ID=number), stop * number)
        for number in range(2)
    ]
    try:
        words = [child.communicate(timeout=300)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    return [child.returncode for child in children], words


def _one(folder, output, mesh):
    child = _start(folder, output, mesh, _environment(4))
    words = child.communicate(timeout=300)[1]
    assert child.returncode == 0, words


def _metrics(folder: Path):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [[line[name] for name in FIGURES] for line in lines]


@pytest.fixture(scope="module")
def folder(tiny_model):
    return tiny_model(vocab_size=96, num_hidden_layers=2)


@pytest.fixture(scope="module")
def together(folder, tmp_path_factory):
    """What two processes make: their output folder."""
    output = tmp_path_factory.mktemp("together") / "adapter"
    codes, words = _two(folder, output)
    assert codes == [0, 0], words
    return output


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(folder, together, tmp_path):
    assert [file.name for file in together.parent.iterdir()] == ["adapter"]  # written once, no work left
    found = _metrics(together)
    for name, mesh in (("four devices", SPLIT), ("one device", {})):
        _one(folder, tmp_path / name, mesh)
        expected = _metrics(tmp_path / name)
        assert len(found) == len(expected) == 12
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, rel=2e-4), name


@pytest.mark.slow
def test_when_one_is_gone_the_other_ends_and_both_go_on_from_the_checkpoint(folder, together, tmp_path):
    output = tmp_path / "adapter"
    started = time.monotonic()
    codes, words = _two(folder, output, stop="SIGKILL:3")
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, 2)
    assert "unhealthy" in words[0] or "another task died" in words[0], words[0]
    assert time.monotonic() - started < 120
    assert not output.exists()

    codes, words = _two(folder, output, stop="SIGTERM:5")  # one is told; both save and stop
    assert codes == [75, 75], words
    assert all("stopped by SIGTERM: saved at update" in each for each in words)

    codes, words = _two(folder, output)
    assert codes == [0, 0], words
    assert _metrics(output) == _metrics(together)
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert (output / name).read_bytes() == (together / name).read_bytes()


def test_a_mesh_must_take_the_devices_of_every_process(folder, tmp_path):
    group = {"JORA_COORDINATOR": f"127.0.0.1:{_free_port()}", "JORA_NUM_PROCESSES": 2}
    children = [
        _start(folder, tmp_path / "out", {"data": 2}, _environment(2, **group, JORA_PROCESS_ID=number))
        for number in range(2)
    ]
    for child in children:
        words = child.communicate(timeout=300)[1]
        assert child.returncode == 1
        assert "training.mesh takes 2 devices, but all 4 of the 2 processes must take part" in words


BY_HAND = {"JORA_COORDINATOR": "host:1234", "JORA_NUM_PROCESSES": "4"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({**BY_HAND, "JORA_PROCESS_ID": "3"}, Group("host:1234", 4, 3)),
        ({**BY_HAND, "JOB_COMPLETION_INDEX": "2"}, Group("host:1234", 4, 2)),
        ({**BY_HAND, "SLURM_PROCID": "0"}, Group("host:1234", 4, 0)),
        ({"JOB_COMPLETION_INDEX": "2"}, None),  # an Indexed Job of independent tasks
        (
            {
                "SLURM_STEP_NODELIST": "n[1-2]",
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_NTASKS": "2",
                "SLURM_PROCID": "1",
            },
            Group(None, 2, 1),
        ),
        (
            {
                "SLURM_STEP_NODELIST": "n1",
                "SLURM_STEP_NUM_TASKS": "1",
                "SLURM_NTASKS": "1",
                "SLURM_PROCID": "0",
            },
            None,
        ),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_STEP_NUM_TASKS": "2", "JORA_NUM_PROCESSES": "1"}, None),
    ],
)
def test_the_environment_says_which_process_this_is(environment, expected):
    assert group_of(environment) == expected


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"JORA_NUM_PROCESSES": "two"}, "JORA_NUM_PROCESSES is 'two'; set it to a whole number"),
        ({"JORA_NUM_PROCESSES": "²"}, "JORA_NUM_PROCESSES is '²'; set it to a whole number"),
        ({**BY_HAND, "JORA_PROCESS_ID": "²"}, "JORA_PROCESS_ID is '²'; set it to a whole number"),
        ({"JORA_NUM_PROCESSES": "2", "JORA_PROCESS_ID": "0"}, "give JORA_COORDINATOR as host:port"),
        (BY_HAND, "JORA_PROCESS_ID is ''; set it to a whole number"),
        ({**BY_HAND, "JORA_PROCESS_ID": "4"}, "JORA_PROCESS_ID is 4, but JORA_NUM_PROCESSES is 4"),
        ({"JORA_PROCESS_ID": "1"}, "JORA_PROCESS_ID is set without JORA_NUM_PROCESSES"),
    ],
)
def test_an_environment_that_says_half_is_refused(environment, words):
    with pytest.raises(InputError, match=words):
        group_of(environment)
