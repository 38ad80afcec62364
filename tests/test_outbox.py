"""The outbox against a real server on loopback that is down, up, rude, or asked by several processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jora_tasks.outbox import API_KEY, URL, OutboxConfig, OutboxTransport, append, send
from tests.openlineage_spec import lineage_server


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    return tmp_path / "openlineage" / "events.jsonl"


def fill(outbox: Path, *numbers: int) -> None:
    for number in numbers:
        append(outbox, json.dumps({"n": number}))


def numbers(taken: list[dict]) -> list[int]:
    return [each["n"] for each in taken]


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_what_could_not_be_sent_is_sent_once_when_the_server_is_back(outbox: Path) -> None:
    answers: list[int] = []
    with lineage_server(answers) as (url, taken):
        fill(outbox, 1, 2)
        assert send(outbox, url) == 2
        answers += [503]
        fill(outbox, 3)
        assert send(outbox, url) == 0
        fill(outbox, 4)
        assert send(outbox, url) == 0  # too soon to try again
        assert send(outbox, url, retry_seconds=0) == 2
        assert send(outbox, url) == 0
        assert numbers(taken) == [1, 2, 3, 4]
    assert send(outbox, closed_port()) == 0
    assert len(outbox.read_text().splitlines()) == 4


@pytest.mark.parametrize("years", [-1, 1])
def test_a_clock_that_jumped_since_the_failure_holds_nothing_back(outbox: Path, years: int) -> None:
    with lineage_server([503]) as (url, taken):
        fill(outbox, 1)
        assert send(outbox, url) == send(outbox, url) == 0
        (failed,) = outbox.parent.glob("*.failed")
        moment = time.time() + years * 365 * 86400
        os.utime(failed, (moment, moment))
        assert send(outbox, url) == 1
        assert numbers(taken) == [1]


def test_a_server_that_is_not_there_costs_one_quick_try(
    outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openlineage.client.event_v2 import Job, JobEvent

    monkeypatch.setenv(URL, closed_port())
    transport = OutboxTransport(OutboxConfig.from_dict({"log_file_path": str(outbox)}))
    started = time.monotonic()
    for number in range(20):
        transport.emit(JobEvent(eventTime="2026-01-01T00:00:00Z", job=Job("jora", f"job-{number}")))
    assert time.monotonic() - started < 10
    with lineage_server() as (url, taken):
        monkeypatch.setenv(URL, url)
        monkeypatch.setenv(API_KEY, "secret")
        transport.emit(JobEvent(eventTime="2026-01-01T00:00:00Z", job=Job("jora", "job-20")))
        assert [each["job"]["name"] for each in taken] == [f"job-{number}" for number in range(21)]
        assert {each["authorization"] for each in taken} == {"Bearer secret"}
    assert not [file for file in outbox.parent.iterdir() if b"secret" in file.read_bytes()]


def test_an_event_that_is_refused_holds_nothing_up(outbox: Path) -> None:
    fill(outbox, 1, 2, 3)
    with lineage_server([201, 422]) as (url, taken):
        assert send(outbox, url) == 2
        assert numbers(taken) == [1, 3]
    assert json.loads(outbox.with_suffix(".refused.jsonl").read_text()) == {"n": 2}


def test_half_a_line_of_a_killed_writer_spoils_no_other(outbox: Path) -> None:
    fill(outbox, 1)
    with outbox.open("a") as file:
        file.write('{"n": 2')
    with lineage_server() as (url, taken):
        assert send(outbox, url) == 1  # the half line may still be written
        fill(outbox, 3)
        assert send(outbox, url) == 1
        assert numbers(taken) == [1, 3]


def test_an_outbox_that_was_taken_away_begins_anew(outbox: Path) -> None:
    fill(outbox, 1, 2)
    with lineage_server() as (url, taken):
        send(outbox, url)
        outbox.rename(outbox.with_suffix(".old"))
        fill(outbox, 3)
        send(outbox, url)
        assert numbers(taken) == [1, 2, 3]


def test_another_server_gets_everything(outbox: Path) -> None:
    fill(outbox, 1, 2)
    with lineage_server() as (url, taken):
        send(outbox, url)
        with lineage_server() as (other, again):
            send(outbox, other)
            assert numbers(taken) == numbers(again) == [1, 2]


def test_several_processes_send_each_event_once(outbox: Path) -> None:
    code = """
import json, sys
from pathlib import Path
from jora_tasks.outbox import append, send
outbox, url, who = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for number in range(25):
    append(outbox, json.dumps({"n": who + number, "long": "x" * 20000}))
    send(outbox, url)
"""
    with lineage_server() as (url, taken):
        children = [
            subprocess.Popen([sys.executable, "-c", code, str(outbox), url, str(who)], env=os.environ)
            for who in (0, 100, 200)
        ]
        assert [child.wait(timeout=120) for child in children] == [0, 0, 0]
        send(outbox, url)
        assert sorted(numbers(taken)) == [*range(25), *range(100, 125), *range(200, 225)]
        for who in (0, 100, 200):  # each process's in its order
            assert [n for n in numbers(taken) if who <= n < who + 100] == list(range(who, who + 25))
