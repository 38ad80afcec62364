"""Runs that are killed, stopped, out of disk or doubled end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jora_tasks.errors import DiskFull, InputError
from jora_tasks.trainer.lock import sole_use
from jora_tasks.trainer.train import train_lora
from tests.trainer import tiny_run

ROOT = Path(__file__).parents[2]
FIGURES = ("step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "scored_tokens", "eval_loss")
TRAINING = {
    "epochs": 6,
    "batch_size": 2,
    "gradient_accumulation": 2,
    "learning_rate": 0.05,
    "eval_every": 2,
    "keep": "best",
    "early_stopping_patience": 9,
}


def _environment(cache: Path) -> dict[str, str]:
    """A cache of compiled programs, so that the attempts after the first begin at once."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def _attempts(output: Path, work: Path, delays: list[float], **training: object) -> list[int]:
    arguments = {
        "output": str(output),
        "work": str(work),
        "training": {**TRAINING, **training},
        "delays": delays,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.attempts", json.dumps(arguments)],
        cwd=ROOT,
        env=_environment(output.parent / "cache"),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout)


def _figures(folder: Path) -> list[list]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [[line.get(name) for name in FIGURES] for line in lines]


def _assert_same(found: Path, expected: Path) -> None:
    assert _figures(found) == _figures(expected)
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert (found / name).read_bytes() == (expected / name).read_bytes()


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_like_one_that_was_not(tmp_path):
    whole = tmp_path / "whole"
    assert _attempts(whole, tmp_path / "work-whole", []) == [0]
    assert len(_figures(whole)) > 12
    moments = random.Random(0)
    killed = 0
    for every in (1, 3):
        output, work = tmp_path / f"killed-{every}", tmp_path / f"work-{every}"
        delays = [moments.uniform(0, 0.8) for _ in range(8)]
        killed += _attempts(output, work, delays, checkpoint_every=every).count(-signal.SIGKILL)
        _assert_same(output, whole)
    assert killed > 6


RUN = """
import json, pathlib, resource, sys
from jora_tasks.errors import RunStopped
from jora_tasks.spec import TrainConfig
from jora_tasks.trainer.train import train_lora
from tests.trainer import tiny_run

output, work, disaster = sys.argv[1:4]
training = TrainConfig(**json.loads(sys.argv[4]))

def on_step(metrics):
    print(metrics["step"], flush=True)
    if disaster == "limit" and metrics["step"] == 4:  # no file may grow beyond so many bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    if disaster == "fill" and metrics["step"] == 4:
        try:
            pathlib.Path(work, "..", "filler").write_bytes(bytes(1 << 26))
        except OSError:
            pass

try:
    train_lora(tiny_run.model(), tiny_run.dataset(), tiny_run.LORA, training, output=output, work=work,
               base_name="tiny", on_step=on_step, held_out=tiny_run.dataset(3, seed=1))
except RunStopped as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def _start(tmp_path: Path, output: str, disaster: str = "", **training: object) -> subprocess.Popen[str]:
    arguments = [
        tmp_path / output,
        tmp_path / f"work-{output}",
        disaster,
        json.dumps({**TRAINING, **training}),
    ]
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, arguments)],
        cwd=ROOT,
        env=_environment(tmp_path / "cache"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a run that nothing happened to, and its cache of programs."""
    folder = tmp_path_factory.mktemp("whole")
    run = _start(folder, "whole")
    assert run.wait() == 0, run.stderr and run.stderr.read()
    return folder


@pytest.mark.slow
def test_sigterm_saves_the_update_under_way_and_has_a_code_of_its_own(whole):
    run = _start(whole, "terminated", checkpoint_every=1000)
    assert run.stdout and run.stderr
    while int(run.stdout.readline()) < 5:
        pass
    run.send_signal(signal.SIGTERM)
    rest, said = run.communicate()
    assert run.returncode == 75, said
    step = int(rest.split()[-1]) if rest.split() else 5
    assert f"stopped by SIGTERM: saved at update {step} of 24" in said.splitlines()[-1]
    again = _start(whole, "terminated", checkpoint_every=1000)
    assert again.stdout and int(again.stdout.readline()) == step + 1  # not one update is computed again
    again.communicate()
    assert again.returncode == 0
    _assert_same(whole / "terminated", whole / "whole")


SMALL_DISK = ("unshare", "--user", "--map-root-user", "--mount")


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*SMALL_DISK, "true"], check=False).returncode != 0,
    reason="no mount namespaces here",
)
def test_a_full_disk_costs_nothing_but_time(whole):
    settings = json.dumps({**TRAINING, "checkpoint_every": 2})
    script = 'mkdir disk && mount -t tmpfs -o size=8m tmpfs disk || exit 9; "$@" fill "$S"; echo code $?; '
    script += 'rm disk/filler; "$@" "" "$S"; echo code $?'
    run = [sys.executable, "-c", RUN, str(whole / "full"), str(whole / "disk" / "work")]
    done = subprocess.run(
        [*SMALL_DISK, "sh", "-c", script, "sh", *run],
        cwd=whole,
        env={**_environment(whole / "cache"), "PYTHONPATH": str(ROOT), "S": settings},
        capture_output=True,
        check=True,
        text=True,
    )
    told = re.search(
        r"kept in .*/disk/work: no space left on device; the last checkpoint of update (\d+) is", done.stderr
    )
    assert told, done.stderr
    again = done.stdout.partition(f"code {DiskFull.exit_code}\n")[2].splitlines()
    assert again == [*map(str, range(int(told[1]) + 1, 25)), "code 0"], done.stdout
    _assert_same(whole / "full", whole / "whole")


@pytest.mark.slow
def test_a_write_that_fails_in_the_middle_costs_nothing_but_time(whole):
    failed = _start(whole, "limited", "limit", checkpoint_every=2)
    _, said = failed.communicate()
    assert failed.returncode == 1
    told = re.search(r"could not be kept in .*: file too large; the last checkpoint of update (\d+) is", said)
    assert told and int(told[1]) >= 2, said
    again = _start(whole, "limited", checkpoint_every=2)
    assert again.stdout and int(again.stdout.readline()) == int(told[1]) + 1
    again.communicate()
    assert again.returncode == 0
    _assert_same(whole / "limited", whole / "whole")


@pytest.mark.parametrize("held", ["output", "work"])
def test_a_second_trainer_on_a_folder_is_refused(held, tmp_path):
    folders = {"output": tmp_path / "out", "work": tmp_path / "work"}
    with (
        sole_use(folders[held], held),
        pytest.raises(InputError, match=f"{held} {folders[held]} is in use by another trainer"),
    ):
        train_lora(tiny_run.model(), tiny_run.dataset(), tiny_run.LORA, **folders)
    assert not any(tmp_path.iterdir())


HOLD = """
import pathlib, sys, time
from jora_tasks.trainer.lock import sole_use
with sole_use(pathlib.Path(sys.argv[1]), "output"):
    print(1, flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_its_holder(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    holder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline()
    with pytest.raises(InputError), sole_use(tmp_path / "out", "output"):
        pass
    holder.kill()
    holder.wait()
    deadline = time.monotonic() + 10
    while True:
        try:
            with sole_use(tmp_path / "out", "output"):
                break
        except InputError:
            assert time.monotonic() < deadline
