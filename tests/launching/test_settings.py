from __future__ import annotations

import shlex

import pytest

from jora_tasks.errors import InputError
from jora_tasks.launching.settings import launch_of

COMMAND = ("/opt/a b/python", "-m", "member")


def words(**environment: str) -> list[tuple[str, ...]]:
    launch = launch_of({f"JORA_{name}": value for name, value in environment.items()})
    assert launch
    return [start.words for start in launch.starts(COMMAND)]


def test_without_hosts_and_launcher_nothing_is_launched() -> None:
    assert launch_of({"JORA_HOSTS": " ", "JORA_LAUNCHER": ""}) is None


def test_each_host_gets_a_process_with_its_place() -> None:
    launch = launch_of({"JORA_HOSTS": "me@a, b", "JORA_COORDINATOR_PORT": "7777"})
    assert launch
    first, second = launch.starts(COMMAND)
    assert first.words == ("ssh", "-o", "BatchMode=yes", "me@a", *COMMAND)
    assert second.words[3] == "b"
    told = {"JORA_COORDINATOR": "a:7777", "JORA_NUM_PROCESSES": "2"}
    assert [start.group for start in (first, second)] == [
        told | {"JORA_PROCESS_ID": "0"},
        told | {"JORA_PROCESS_ID": "1"},
    ]


def test_processes_of_this_host_need_no_launcher() -> None:
    assert words(HOSTS="localhost,localhost") == [COMMAND, COMMAND]


def test_one_process_elsewhere_is_a_run_of_one() -> None:
    launch = launch_of({"JORA_HOSTS": "gpu7"})
    assert launch and launch.starts(COMMAND)[0].group == {"JORA_NUM_PROCESSES": "1"}


def test_within_quotes_the_command_is_quoted_for_a_shell() -> None:
    [(shell, _, script)] = words(
        HOSTS="a", LAUNCHER="sh -c 'on {host} {process_id}/{num_processes} $(x ${{Y}}); exec {command}'"
    )
    assert shell == "sh"
    before, _, after = script.partition("exec ")
    assert before == "on a 0/1 $(x ${Y}); "
    assert tuple(shlex.split(after)) == COMMAND


def test_a_launcher_without_host_and_number_starts_all_at_once() -> None:
    assert words(LAUNCHER="srun --label {command}") == [("srun", "--label", *COMMAND)]
    [all_] = words(HOSTS="a,b,c", LAUNCHER="srun -n {num_processes} -w {hosts} {command}")
    assert all_ == ("srun", "-n", "3", "-w", "a,b,c", *COMMAND)


def test_only_what_training_reads_goes_along() -> None:
    environment = {
        "JORA_HOSTS": "a,b",
        "JORA_PASSED_VARIABLES": "OTHER_*,ONE",
        "JORA_SIGNING_KEY": "key.pem",
        "JORA_HOME": "/home",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "XLA_FLAGS": "--x",
        "AIRFLOW__API_AUTH__JWT_SECRET": "secret",
        "PATH": "/bin",
        "OTHER_1": "1",
        "ONE": "1",
        "ONE_MORE": "1",
    }
    launch = launch_of(environment)
    assert launch
    assert set(launch.variables(environment)) == {
        "JORA_HOME",
        "AWS_SECRET_ACCESS_KEY",
        "XLA_FLAGS",
        "OTHER_1",
        "ONE",
    }


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"HOSTS": "a,-oProxyCommand=x"}, "JORA_HOSTS has '-oProxyCommand=x', which is no host"),
        ({"HOSTS": "a;b"}, "JORA_HOSTS has 'a;b'"),
        ({"HOSTS": "localhost,b"}, "name it as the other hosts reach it"),
        ({"HOSTS": " , ,"}, "JORA_HOSTS is ', ,', which names no host"),
        ({"HOSTS": "a", "NUM_PROCESSES": "2"}, "and JORA_HOSTS, which starts them, exclude each other"),
        (
            {"HOSTS": "a", "LAUNCHER": "ssh {hots} {command}"},
            "JORA_LAUNCHER has {hots}; it may have {command}",
        ),
        ({"HOSTS": "a", "LAUNCHER": "ssh {host}"}, "JORA_LAUNCHER lacks {command}"),
        ({"HOSTS": "a", "LAUNCHER": "ssh '{command}"}, "No closing quotation"),
        ({"HOSTS": "a", "LAUNCHER": "ssh {command"}, "JORA_LAUNCHER cannot be read"),
        ({"LAUNCHER": "ssh {host} {command}"}, "name them in JORA_HOSTS"),
        ({"LAUNCHER": "{command}"}, "name them in JORA_HOSTS"),
        ({"HOSTS": "a,b", "LAUNCHER": "srun {coordinator} {command}"}, "JORA_LAUNCHER has {coordinator}"),
        ({"TRAINING_JOB": "job.yaml"}, "JORA_TRAINING_JOB needs JORA_ARTIFACTS, by which its pods share"),
        ({"TRAINING_JOB": "job.yaml", "HOSTS": "a"}, "JORA_TRAINING_JOB and JORA_HOSTS exclude each other"),
        ({"TRAINING_JOB": "job.yaml", "NUM_PROCESSES": "2"}, "and JORA_NUM_PROCESSES exclude each other"),
        ({"HOSTS": "a", "COORDINATOR_PORT": "²"}, "JORA_COORDINATOR_PORT is '²'"),
        ({"HOSTS": "a", "COORDINATOR_PORT": "70000"}, "JORA_COORDINATOR_PORT is '70000'"),
    ],
)
def test_what_cannot_be_is_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(InputError) as error:
        launch_of({f"JORA_{name}": value for name, value in environment.items()})
    assert said in str(error.value)
