"""Training that one command starts in several processes: on this host, and on two with a network each."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.launching.homes import EPOCHS, MESH, SECRET, TOGETHER, Home, wait

pytestmark = pytest.mark.slow


def test_one_command_trains_in_two_processes_what_one_process_does(
    together: Home, make_home: Callable[[], Home]
) -> None:
    alone = make_home()
    running = alone.train()
    assert running.wait(400) == 0, running.communicate()
    assert together.losses() == pytest.approx(alone.losses(), rel=2e-4)
    again = together.train(*MESH, **TOGETHER)
    printed, said = again.communicate(timeout=100)
    assert json.loads(printed)["state"] == "reused" and "started by" not in said


def test_one_that_fails_ends_all_and_the_next_run_goes_on(
    together: Home, make_home: Callable[[], Home]
) -> None:
    home = make_home()
    running = home.train(*MESH, **TOGETHER)
    home.in_the_middle(running)
    assert home.trainer(0).environ()["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert not [each for each in home.processes() if SECRET in " ".join(each.cmdline())]
    home.trainer(1).kill()
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 1
    assert "jora: Process 1 on localhost was ended by SIGKILL" in said.splitlines()[-1]
    assert not home.processes()

    running = home.train(*MESH, **TOGETHER)
    home.in_the_middle(running)
    running.kill()
    wait(lambda: not home.processes(), 30, "the end of the processes of a killed launcher")

    running = home.train(*MESH, **TOGETHER)
    said = running.communicate(timeout=400)[1]
    assert running.returncode == 0, said
    assert home.losses() == together.losses()
    weights = "adapter_model.safetensors"
    assert (home.adapter() / weights).read_bytes() == (together.adapter() / weights).read_bytes()
    found = [
        file for file in home.folder.rglob("*") if file.is_file() and SECRET in file.read_text("latin-1")
    ]
    assert not found


def test_bad_input_of_the_processes_is_told_in_their_words(make_home: Callable[[], Home]) -> None:
    home = make_home()
    running = home.train("--set", "training.batch_size=3", *MESH, **TOGETHER)
    said = running.communicate(timeout=100)[1]
    assert running.returncode == 2
    assert said.splitlines()[-1].startswith("jora: training.batch_size 3 does not split over data x fsdp = 4")
    assert not home.processes()


# What `srun` does for a step of two tasks on this host: each gets SLURM's variables, and a copy of stdin.
STEP = """
import contextlib, os, subprocess, sys
told = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
told |= os.environ
tasks = [
    subprocess.Popen(sys.argv[1:], env={**told, "SLURM_PROCID": str(number)}, stdin=subprocess.PIPE)
    for number in range(2)
]
while line := sys.stdin.buffer.readline():
    for task in tasks:
        with contextlib.suppress(BrokenPipeError):
            task.stdin.write(line)
            task.stdin.flush()
    if all(task.poll() is not None for task in tasks):
        break
for task in tasks:
    with contextlib.suppress(BrokenPipeError):
        task.stdin.close()
sys.exit(max(task.wait() for task in tasks))
"""


def test_one_launcher_may_start_all_as_in_a_slurm_step(
    together: Home, make_home: Callable[[], Home], tmp_path: Path
) -> None:
    home = make_home()
    step = tmp_path / "step.py"
    step.write_text(STEP)
    launcher = {"JORA_LAUNCHER": f"{sys.executable} {step} {{command}}", "JORA_HOSTS": ""}
    running = home.train(*MESH, "--set", "training.epochs=2", **{**TOGETHER, **launcher})
    said = running.communicate(timeout=400)[1]
    assert running.returncode == 0, said
    [logs] = (home.folder / "logs" / "train").iterdir()
    assert {"process-0.log", "process-1.log"} < {file.name for file in logs.iterdir()}
    assert home.losses()[:3] == pytest.approx(together.losses()[:3], rel=0.2)  # of a shorter schedule


# A host: its network, its name and what that means there, its disk.
HOST = """
network=$1 host=$2 home=$3; shift 3
exec ip netns exec "$network" unshare --mount --uts sh -c '
  host=$1 home=$2; shift 2
  hostname "$host" && mount --bind "$host/hosts" /etc/hosts && mount --bind "$host/home" "$home" && exec "$@"
' sh "$host" "$home" "$@"
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def network() -> Iterator[str]:
    """Two network namespaces that a cable joins, 10.77.0.1 and 10.77.0.2; their names but for the number."""
    name = f"jora{os.getpid()}n"
    if not (shutil.which("ip") and shutil.which("unshare")):
        pytest.skip("ip or unshare is not installed")
    try:
        try:
            for number in (0, 1):
                ip("netns", "add", f"{name}{number}")
            ends = [f"netns {name}{number}".split() for number in (0, 1)]
            ip("link", "add", "cable", *ends[0], "type", "veth", "peer", "name", "cable", *ends[1])
            for number in (0, 1):
                ip("-n", f"{name}{number}", "address", "add", f"10.77.0.{number + 1}/24", "dev", "cable")
                for device in ("lo", "cable"):
                    ip("-n", f"{name}{number}", "link", "set", device, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        yield name
    finally:
        for number in (0, 1):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "delete", f"{name}{number}")


def test_two_hosts_with_a_network_and_a_disk_each_train_together(
    network: str,
    together: Home,
    make_home: Callable[[], Home],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Artifacts and checkpoints pass by JORA_ARTIFACTS; where one host is lost, another goes on."""
    monkeypatch.setenv("JORA_ARTIFACTS", (tmp_path / "shared").as_uri())
    monkeypatch.chdir(tmp_path)
    home = make_home()
    hosts = ["10.77.0.1", "10.77.0.2"]
    for host in hosts:
        Path(host, "home").mkdir(parents=True)
        Path(host, "hosts").write_text(f"127.0.0.1 localhost\n{host} {host}\n")
    Path("host.sh").write_text(HOST)
    environment = TOGETHER | {
        "JORA_HOSTS": ",".join(hosts),
        "JORA_LAUNCHER": f"sh host.sh {network}{{process_id}} {{host}} {home.folder} {{command}}",
    }
    running = home.train(*MESH, **environment)
    home.in_the_middle(running)
    assert home.trainer(1).environ()["JORA_COORDINATOR"].startswith("10.77.0.1:")
    running.terminate()
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 75, said
    assert said.splitlines()[-1].startswith("jora: stopped by SIGTERM: saved at update ")
    assert not home.processes()

    shutil.rmtree(Path(hosts[0], "home"))  # the disk of the host that kept the checkpoints
    Path(hosts[0], "home").mkdir()
    before = home.updates()
    running = home.train(*MESH, **environment)
    said = running.communicate(timeout=400)[1]
    assert running.returncode == 0, said
    assert home.updates() - before < 3 * EPOCHS  # did not begin anew
    assert home.losses() == together.losses()
    assert not list((tmp_path / "shared").glob("work/adapter/*/*"))
