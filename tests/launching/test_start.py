"""What is told where JORA_LAUNCHER does not bring the processes to their start."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.costs import Recorder, recording
from jora_tasks.errors import InputError, Preempted
from jora_tasks.launching import launcher
from jora_tasks.launching.launcher import run_together
from jora_tasks.launching.settings import launch_of
from jora_tasks.progress import Progress

SWALLOWS = "sh -c 'cat >/dev/null # {host} {command}'"


def launched(template: str, logs: Path, report: Callable[[str], None] = lambda line: None) -> None:
    launch = launch_of({"JORA_HOSTS": "localhost", "JORA_LAUNCHER": template})
    assert launch
    run_together(launch, ["--help"], "", dict(os.environ), logs, report)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("no-such-launcher {host} {command}", "begins with no-such-launcher, which cannot be run here"),
        *(
            (f"sh -c 'echo of that >&2; exit {code}; {{host}} {{command}}'", f"exit code {code} .*: of that;")
            for code in (1, 2, 12, 75, 255)
        ),
        ("sh -c 'exit 2; {host} {command}'", "sh ended with exit code 2 before process 0 on localhost had"),
        ("true {host} {command}", "true ended with exit code 0 before process 0 on localhost had started"),
        ("false {host} {command}", "false ended with exit code 1 before process 0 on localhost had started"),
        (
            "sh -c 'exec {command} </dev/null # {host}'",
            "JORA_LAUNCHER must pass its stdin on, from the first",
        ),
        (
            "sh -c 'read told; exec {command} # {host}'",
            "JORA_LAUNCHER must pass its stdin on, from the first",
        ),
    ],
)
def test_a_launcher_that_starts_nothing_is_to_be_corrected(template: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as error:
        launched(template, tmp_path)
    assert "last checkpoint" not in str(error.value)


def test_a_launcher_that_keeps_what_is_to_be_run_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "_START_SECONDS", 3.0)
    monkeypatch.setattr(launcher, "_WAITING_SECONDS", 1.0)
    lines: list[str] = []
    with pytest.raises(InputError, match="within 3 s nothing was heard of process 0 on localhost"):
        launched(SWALLOWS, tmp_path, lines.append)
    waiting = "[0] waiting for process 0 on localhost to start; JORA_LAUNCHER must pass its stdin on"
    assert lines[1:] == [waiting] * len(lines[1:]) and len(lines) > 1


@pytest.mark.parametrize("template", [SWALLOWS, SWALLOWS.replace("{host}", "")])
def test_sigterm_ends_a_launch_in_which_nothing_has_started(template: str, tmp_path: Path) -> None:
    def stop(line: str) -> None:
        assert re.search("started by sh", line)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted, match="before its processes had started"):
        launched(template, tmp_path, stop)


def test_what_a_member_says_of_its_start_is_not_told_on(tmp_path: Path) -> None:
    lines: list[str] = []
    launch = launch_of({"JORA_HOSTS": "localhost"})
    assert launch
    with pytest.raises(InputError):
        run_together(launch, ["no-such"], "", dict(os.environ), tmp_path, lines.append)
    assert [line for line in lines if "No such command 'no-such'" in line]
    assert not [line for line in lines if "has read" in line]


def test_hosts_to_start_on_exclude_processes_started_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JORA_HOSTS", "localhost")
    monkeypatch.setenv("JORA_NUM_PROCESSES", "2")
    recorder = Recorder(ArtifactStore(tmp_path), "train", "run")
    said = "JORA_NUM_PROCESSES, of processes started by hand, and JORA_HOSTS"
    with pytest.raises(InputError, match=said), recording(recorder, Progress()):
        pass
