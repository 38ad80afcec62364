from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from jora_tasks.airflow import local
from jora_tasks.airflow.client import AirflowApiError
from jora_tasks.airflow.environment import OWNER, airflow_environment, events_file
from jora_tasks.airflow.ports import choose_port, claimed
from jora_tasks.airflow.processes import birth, is_same, members
from jora_tasks.errors import InputError


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that someone listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def environment(tmp_path: Path, **inherited: str) -> dict[str, str]:
    return airflow_environment(
        tmp_path,
        spec_path=None,
        dags_folder=tmp_path / "dags",
        port=8099,
        log_ports=(1, 2),
        inherited={"PATH": "/bin", **inherited},
    )


def processes_of(home: Path) -> list[str]:
    """Command lines of all that has anything to do with this home."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = [*process.cmdline(), *process.environ().values()]
            if process.pid != os.getpid() and any(str(home) in word for word in words):
                found.append(" ".join(process.cmdline()))
    return found


def test_a_port_asked_for_by_name_and_taken_is_refused(taken, tmp_path: Path):
    with pytest.raises(InputError, match=rf"--port {taken} cannot be used \(address already in use\)"):
        local.start(tmp_path, None, port=taken)
    assert local.running(tmp_path) is None
    assert not local.state_file(tmp_path).exists()


def test_the_port_of_a_killed_airflow_is_waited_for(tmp_path: Path):
    """Its processes may be gone from the list and the kernel not done with their sockets."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        local.state_file(tmp_path).parent.mkdir(parents=True)
        dead = local.LocalAirflow(str(tmp_path), 2**22, "long ago", 0.0, port, "", "", None, "")
        local.state_file(tmp_path).write_text(json.dumps(asdict(dead)))
        closing = threading.Timer(1.0, server.close)
        closing.start()
        with pytest.raises(local.AirflowStartError, match=r"not ready in time|ended while it was starting"):
            local.start(tmp_path, None, port=port, timeout=0)
        closing.join()


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_out_of_range_is_refused(port):
    with pytest.raises(InputError, match="from 1 to 65535"):
        choose_port(port)


def test_a_taken_default_is_replaced_by_a_free_port(taken):
    port = choose_port(None, default=taken)
    assert port != taken
    assert choose_port(port) == port


def test_a_bad_spec_is_refused_before_anything_starts(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        local.start(tmp_path / "home", tmp_path / "no.yaml")
    assert not (tmp_path / "home").exists()


def test_two_starts_at_once_choose_two_ports(taken):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        default = probe.getsockname()[1]
    with claimed(None, default) as first, claimed(None, default) as second, claimed(default) as asked_for:
        assert first == asked_for == default
        assert second != default
    with claimed(None, default) as again:
        assert again == default
    with pytest.raises(RuntimeError), claimed(None, default):
        raise RuntimeError("the start failed")
    with claimed(None, default) as again, claimed(None, taken) as other:
        assert again == default
        assert other != taken


def test_every_address_is_loopback_and_on_the_port(tmp_path: Path):
    made = environment(tmp_path)
    assert made["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert made["AIRFLOW__API__PORT"] == "8099"
    assert made["AIRFLOW__API__BASE_URL"] == "http://127.0.0.1:8099"
    assert made["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:8099/execution/"
    assert json.loads(made["AIRFLOW__OPENLINEAGE__TRANSPORT"])["log_file_path"] == str(events_file(tmp_path))
    assert made["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_huge_pages_are_asked_for_unless_the_user_has_tuned_glibc(tmp_path: Path):
    assert environment(tmp_path)["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    own = "glibc.malloc.arena_max=1"
    assert environment(tmp_path, GLIBC_TUNABLES=own)["GLIBC_TUNABLES"] == own


def test_another_airflow_s_settings_are_left_behind(tmp_path: Path):
    made = environment(
        tmp_path,
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN="postgresql://someone",
        AIRFLOW_CONN_PROD="secret",
        AIRFLOW__OPENLINEAGE__NAMESPACE="mine",
        JORA_SPEC="old.yaml",
        NO_PROXY="corp",
    )
    assert "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN" not in made
    assert "AIRFLOW_CONN_PROD" not in made
    assert "JORA_SPEC" not in made
    assert made["AIRFLOW__OPENLINEAGE__NAMESPACE"] == "mine"
    assert made["NO_PROXY"] == "corp,127.0.0.1,localhost"


def test_a_reused_process_id_is_not_taken_for_airflow(tmp_path: Path):
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        record = {
            "home": str(tmp_path),
            "pid": stranger.pid,
            "born": birth(os.getppid()),
            "started": time.time() - 3600,
            "port": 8080,
            "url": "http://127.0.0.1:8080",
            "version": "3",
            "spec": None,
            "dags_folder": "dags",
        }
        local.airflow_home(tmp_path).mkdir()
        local.state_file(tmp_path).write_text(json.dumps(record))
        assert local.running(tmp_path) is None
        assert local.stop(tmp_path) is False
        assert stranger.poll() is None
        assert not local.state_file(tmp_path).exists()
    finally:
        stranger.kill()
        stranger.wait()


def test_members_are_found_by_session_and_by_mark():
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    parent = "import subprocess, sys, time; " + (
        "subprocess.Popen(sys.argv[1:], process_group=0, env={}); "
        "subprocess.Popen(sys.argv[1:], start_new_session=True); print(1, flush=True); time.sleep(60)"
    )
    leader = subprocess.Popen(
        [sys.executable, "-c", parent, *sleep],
        start_new_session=True,
        stdout=subprocess.PIPE,
        env={**os.environ, OWNER: "this-test"},
    )
    assert leader.stdout and leader.stdout.readline()
    born = birth(leader.pid)
    try:
        assert is_same(leader.pid, born) and not is_same(leader.pid, birth(os.getpid()))
        assert len(members(leader.pid, born, (OWNER, "this-test"))) == 3
        leader.kill()
        leader.wait()
        assert not is_same(leader.pid, born)
        assert len(members(leader.pid, born, (OWNER, "this-test"))) == 2
    finally:
        for process in members(leader.pid, born, (OWNER, "this-test")):
            process.kill()


def test_a_clock_that_is_set_makes_no_process_another(monkeypatch):
    boot_time = psutil._pslinux.boot_time
    me, born = os.getpid(), birth(os.getpid())
    for hours in (1, -1):  # as the kernel tells it then, and with it psutil the start of every process
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda hours=hours: boot_time() + hours * 3600)
        assert is_same(me, born)
    assert birth(2**22 + 1) == ""


def test_nothing_to_stop(tmp_path: Path):
    assert local.stop(tmp_path) is False


@pytest.mark.slow
def test_a_real_airflow_starts_runs_and_leaves_nothing_behind(tmp_path: Path, taken, monkeypatch):
    monkeypatch.delenv("AIRFLOW__OPENLINEAGE__TRANSPORT")  # these tests' own, which would be kept
    home, spec = tmp_path / "home", tmp_path / "run.yaml"
    spec.write_text("documents: {path: none}\n")
    said: list[str] = []
    try:
        # Too little time: half of it has started.
        with pytest.raises(local.AirflowStartError, match="not ready in time"):
            local.start(home, spec, timeout=2)
        assert local.running(home) is None
        assert processes_of(home) == []

        started = time.monotonic()
        airflow = local.start(home, spec, report=said.append)
        print(f"ready after {time.monotonic() - started:.1f} s")
        assert said[1:] == ["API server ready", "scheduler ready", "DAG processor ready", "DAGs ready"]
        assert local.running(home) == airflow
        assert local.start(home, spec) == airflow
        with pytest.raises(InputError, match="jora down"):
            local.start(home, spec, port=taken)

        mark = (OWNER, str(local.airflow_home(home)))
        for process in members(airflow.pid, airflow.born, mark):
            with contextlib.suppress(psutil.Error):
                for connection in process.net_connections("inet"):
                    assert connection.status != psutil.CONN_LISTEN or connection.laddr.ip == "127.0.0.1"

        with airflow.client() as client:
            assert client.import_errors() == []
            client.ensure_pool("gpu", 5, "")  # exists: its slots stay
            assert client._call("GET", "pools/gpu")["slots"] == 1
            assert client.dag_runs("document_index") == []
            with pytest.raises(AirflowApiError, match=r"index\.chunk_tokens") as refused:
                client.trigger("document_index", {"index.chunk_tokens": 1})
            assert refused.value.status == 400
            run_id = client.trigger("document_index")["dag_run_id"]
            deadline = time.monotonic() + 90
            while client.dag_run("document_index", run_id)["state"] in ("queued", "running"):
                assert time.monotonic() < deadline
                time.sleep(0.5)
            states = {
                task["task_id"]: task["state"] for task in client.task_instances("document_index", run_id)
            }
            assert states.pop("corpus") == "failed"
            assert set(states.values()) == {"upstream_failed"} and "index" in states
            log = "\n".join(client.task_log("document_index", run_id, "corpus", lines=100))
            assert str(tmp_path / "none") in log
            assert client.triggered_runs("document_index", run_id) == []
            assert client.xcom("document_index", run_id, "corpus") is None
            assert client.cancel_unfinished("document_index") == []
        assert events_file(home).stat().st_size > 0

        started = time.monotonic()
        assert local.stop(home) is True
        print(f"stopped after {time.monotonic() - started:.1f} s")
        assert local.running(home) is None
        assert processes_of(home) == []

        broken = tmp_path / "dags"
        broken.mkdir()
        (broken / "broken.py").write_text("from airflow.sdk import dag\nraise ValueError('out of order')\n")
        with pytest.raises(local.AirflowStartError, match="out of order"):
            local.start(home, spec, dags_folder=broken)
        assert processes_of(home) == []
    finally:
        local.stop(home)


@pytest.mark.slow
def test_what_a_killed_airflow_left_is_ended(tmp_path: Path):
    """SIGKILL of the parent leaves its children; the next `down` finds them."""
    try:
        with pytest.raises(local.AirflowStartError, match="ended while it was starting"):
            local.start(tmp_path, None, report=lambda _: None, timeout=60, dags_folder=_killer(tmp_path))
    finally:
        local.stop(tmp_path)
    assert processes_of(tmp_path / "airflow") == []


def _killer(home: Path) -> Path:
    """A DAG file that kills the parent of all when it is read."""
    folder = home / "dags"
    folder.mkdir()
    (folder / "killer.py").write_text(
        "import json, os, signal  # airflow dag\n"
        f"pid = json.load(open({str(local.state_file(home))!r}))['pid']\n"
        "os.kill(pid, signal.SIGKILL)\n"
    )
    return folder
