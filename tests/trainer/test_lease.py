from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jora_tasks.errors import DeviceBusy, InputError
from jora_tasks.trainer import lease
from jora_tasks.trainer.lease import devices, leased

GROUP = {"JORA_COORDINATOR": "localhost:1", "JORA_NUM_PROCESSES": "2"}
HOLDER = """
import pathlib, sys, time
from jora_tasks.trainer.lease import leased
with leased(pathlib.Path(sys.argv[1]), "run A", print) as names:
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def silent(text: str) -> None:
    pass


def holder(home: Path, seconds: float, **environment: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2, 3"}, ("gpu-2", "gpu-3")),
        ({"CUDA_VISIBLE_DEVICES": "GPU-ab/c"}, ("gpu-GPU-ab/c",)),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ("cpu",)),
        ({"CUDA_VISIBLE_DEVICES": ""}, ("cpu",)),
        ({"CUDA_VISIBLE_DEVICES": "0", "JAX_PLATFORMS": "cpu"}, ("cpu",)),
        ({"JAX_PLATFORMS": "cpu", **GROUP, "JORA_PROCESS_ID": "0"}, ("cpu",)),
        ({"JAX_PLATFORMS": "cpu", **GROUP, "JORA_PROCESS_ID": "1"}, ()),
    ],
)
def test_devices_are_named_by_the_environment(environment, found):
    assert devices(environment) == found


def test_without_a_name_all_gpus_of_the_machine_are_meant(tmp_path: Path, monkeypatch):
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    monkeypatch.setattr(lease, "entry_points", lambda group: ["cuda"])
    assert devices({}, tmp_path) == ("gpu-0", "gpu-1")
    monkeypatch.setattr(lease, "entry_points", lambda group: [])
    assert devices({}, tmp_path) == ("cpu",)


def test_a_device_in_use_is_refused_with_who_holds_it(tmp_path: Path):
    process = holder(tmp_path, 600, JAX_PLATFORMS="cpu")
    try:
        with (
            pytest.raises(DeviceBusy, match=rf"cpu is in use by run A \(process {process.pid}\)"),
            leased(tmp_path, "run B", silent, {"JAX_PLATFORMS": "cpu"}),
        ):
            pass
        with leased(tmp_path / "another", "run B", silent, {"JAX_PLATFORMS": "cpu"}) as names:
            assert names == ("cpu",)
    finally:
        process.kill()
        process.wait()
    with leased(tmp_path, "run B", silent, {"JAX_PLATFORMS": "cpu"}):  # SIGKILL freed it
        pass


def test_a_device_in_use_is_waited_for(tmp_path: Path):
    process = holder(tmp_path, 4, JAX_PLATFORMS="cpu")
    said: list[str] = []
    started = time.monotonic()
    with leased(tmp_path, "run B", said.append, {"JAX_PLATFORMS": "cpu", lease.WAIT: "60"}):
        assert 0.5 < time.monotonic() - started < 30
    assert said == [f"for device cpu, in use by run A (process {process.pid})"]
    process.wait()


def test_gpus_are_the_machine_s_and_not_a_home_s(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(lease.tempfile, "gettempdir", lambda: str(tmp_path))
    process = holder(tmp_path / "a", 600, CUDA_VISIBLE_DEVICES="0,1", TMPDIR=str(tmp_path), JAX_PLATFORMS="")
    try:
        with leased(tmp_path / "b", "run B", silent, {"CUDA_VISIBLE_DEVICES": "2"}):
            pass
        with leased(tmp_path / "b", "run B", silent, {"CUDA_VISIBLE_DEVICES": "2"}):
            pass  # this process has it to its end, and may use it again
        with (
            pytest.raises(DeviceBusy, match="gpu-1 is in use by run A"),
            leased(tmp_path / "c", "run C", silent, {"CUDA_VISIBLE_DEVICES": "1"}),
        ):
            pass
    finally:
        process.kill()
        process.wait()


def test_a_link_is_no_lease(tmp_path: Path, monkeypatch):
    """In a folder where others write, a link could lead to a file of this user's."""
    monkeypatch.setattr(lease.tempfile, "gettempdir", lambda: str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    with leased(tmp_path, "first", silent, {"CUDA_VISIBLE_DEVICES": "7"}):
        pass
    (file,) = (each for each in (tmp_path / "shared").rglob("*gpu-7*") if each.is_file())
    own = tmp_path / "own"
    own.write_text("mine")
    monkeypatch.setattr(lease, "_kept", {})
    file.unlink()
    file.symlink_to(own)
    with (
        pytest.raises(InputError, match="is a link"),
        leased(tmp_path, "second", silent, {"CUDA_VISIBLE_DEVICES": "7"}),
    ):
        pass
    assert own.read_text() == "mine"
