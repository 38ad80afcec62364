"""A run killed by SIGKILL, twice, once in the middle of a save, ends as if it had never been killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import os, signal, sys, threading, time
from pathlib import Path

import jax
import numpy as np

from jora_tasks.spec import LoraConfig, TrainConfig
from jora_tasks.trainer.config import parse_config
from jora_tasks.trainer.data import Dataset, Example
from jora_tasks.trainer.lora import init_lora
from jora_tasks.trainer.model import LanguageModel
from jora_tasks.trainer.parameters import init_base
from jora_tasks.trainer.train import train_lora

output, work, kill = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
config = parse_config({"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24,
                       "num_hidden_layers": 1, "num_attention_heads": 2, "tie_word_embeddings": True})
lora = LoraConfig(r=2, lora_dropout=0.1, target_modules=("q_proj", "down_proj"))
base, adapter = init_base(config, jax.random.key(0)), init_lora(config, lora, jax.random.key(1))
model = LanguageModel(config, base, adapter, lora)
random = np.random.default_rng(0)
dataset = Dataset(tuple(
    Example.make(str(i), random.integers(0, 64, n), prompt_length=5)
    for i, n in enumerate(random.integers(8, 120, 14))
))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_a_save():
    while True:
        if any("tmp" in folder.name for folder in (work / "checkpoints").glob("*")):
            die()
        time.sleep(0)


def on_step(metrics):
    if kill.isdigit() and metrics["step"] == int(kill):
        die()
    if kill == "save" and metrics["step"] == 5:
        threading.Thread(target=die_in_a_save, daemon=True).start()


training = TrainConfig(
    epochs=3, batch_size=2, gradient_accumulation=2, checkpoint_every=3, learning_rate=0.01
)
train_lora(model, dataset, lora, training, output=output, work=work, base_name="tiny", on_step=on_step)
"""

FIGURES = ("step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "scored_tokens")


def _run(output: Path, work: Path, kill: str = "never") -> int:
    return subprocess.run([sys.executable, "-c", CHILD, str(output), str(work), kill], check=False).returncode


def _metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_killed_run_ends_like_one_that_was_not(tmp_path):
    assert _run(tmp_path / "whole", tmp_path / "work-whole") == 0
    work = tmp_path / "work"

    assert _run(tmp_path / "killed", work, kill="5") == -signal.SIGKILL
    assert len(_metrics(work)) == 5  # two updates more than the checkpoint has
    with (work / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # a kill in the middle of a line

    assert _run(tmp_path / "killed", work, kill="save") == -signal.SIGKILL
    assert [line["step"] for line in _metrics(work)] == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "killed").exists()

    assert _run(tmp_path / "killed", work) == 0
    ours, expected = _metrics(tmp_path / "killed"), _metrics(tmp_path / "whole")
    assert [[line[name] for name in FIGURES] for line in ours] == [
        [line[name] for name in FIGURES] for line in expected
    ]
    assert [line["step"] for line in ours] == list(range(1, 13))
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
