"""The second start compiles nothing; a cache that cannot be used stops nobody."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

CHILD = """
import json, sys
from pathlib import Path

import jax

found = []
jax.monitoring.register_event_listener(
    lambda name, **about: found.append(name) if name.startswith("/jax/compilation_cache/") else None
)

import numpy as np

from jora_tasks.spec import LoraConfig, TrainConfig
from jora_tasks.trainer.compile_cache import use_compile_cache
from jora_tasks.trainer.data import Dataset, Example
from jora_tasks.trainer.train import train_lora

model, home, output = map(Path, sys.argv[1:])
use_compile_cache(home)
tokens = np.random.default_rng(0).integers(0, 96, (4, 24))
dataset = Dataset(tuple(Example.make(str(i), row, prompt_length=12) for i, row in enumerate(tokens)))
losses = []
train_lora(model, dataset, LoraConfig(r=2), TrainConfig(), output=output, base_name="tiny",
           quantization="nf4", on_step=lambda metrics: losses.append(metrics["loss"]))
print(json.dumps({"losses": losses, "hits": found.count("/jax/compilation_cache/cache_hits"),
                  "asked": found.count("/jax/compilation_cache/compile_requests_use_cache"),
                  "written": found.count("/jax/compilation_cache/cache_misses")}))
"""


def train(model: Path, home: Path, output: Path, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(model), str(home), str(output)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def result(process: subprocess.Popen) -> dict:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
def test_the_second_start_compiles_nothing(tiny_model, tmp_path):
    model, home = tiny_model(), tmp_path / "home"
    first = [train(model, home, tmp_path / f"first{i}") for i in range(2)]  # both fill the cache
    first = [result(process) for process in first]
    assert first[0]["losses"] == first[1]["losses"]
    assert sum(one["written"] for one in first) > 0

    second = result(train(model, home, tmp_path / "second"))
    assert second["asked"] == second["hits"] > 0
    assert second["losses"] == first[0]["losses"]

    torn = max(home.rglob("*-cache"), key=lambda file: file.stat().st_size)
    torn.write_bytes(torn.read_bytes()[:1000])  # as a kill in the middle of a write leaves it
    third = result(train(model, home, tmp_path / "third"))
    assert third["hits"] == third["asked"] - 1
    assert third["losses"] == first[0]["losses"]


@pytest.mark.slow
def test_a_cache_that_cannot_be_made_is_done_without(tiny_model, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "cache").touch()
    found = result(train(tiny_model(), tmp_path / "home", tmp_path / "adapter"))
    assert found["losses"] and found["hits"] == found["written"] == 0


READ_ONLY = """
import os, sys, warnings
from pathlib import Path

import jax
from jora_tasks.trainer.compile_cache import use_compile_cache

home, program = Path(sys.argv[1]), sys.argv[2]
if program == "other":
    os.chmod(next((home / "cache" / "jax").iterdir()), 0o555)
    if os.geteuid() == 0:
        os.setuid(65534)  # no permission stops root
    warnings.simplefilter("error")
found = []
jax.monitoring.register_event_listener(lambda name, **about: found.append(name.rpartition("/")[2]))
use_compile_cache(home)
assert jax.jit(lambda x: x + 1)(1) == 2
print("cache_hits" in found)
assert jax.jit(lambda x: x * 5 if program == "other" else x)(1) in (1, 5)
"""


def test_a_cache_that_cannot_be_written_is_read():
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o755)
        hits = [
            subprocess.check_output([sys.executable, "-c", READ_ONLY, home, program], text=True)
            for program in ("first", "other")
        ]
        next(Path(home, "cache", "jax").iterdir()).chmod(0o755)
    assert hits == ["False\n", "True\n"]
