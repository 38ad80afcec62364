from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from airflow.sdk import ExceptionRetryPolicy, RetryAction
from airflow.sdk.definitions.asset import AssetUniqueKey
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from airflow.sdk.execution_time.context import OutletEventAccessor

from jora_tasks.airflow.assets import INDEX, event_extra
from jora_tasks.airflow.child import Child
from jora_tasks.airflow.detached import DetachedStageOperator
from jora_tasks.airflow.failures import RETRY_POLICY, StageCancelled, StageOutOfMemory, StagePreempted
from jora_tasks.airflow.operators import StageOperator
from jora_tasks.airflow.runs import run_folder, spec_file
from jora_tasks.spec import load_spec

Script = Callable[[str], tuple[str, ...]]

# Leaves a grandchild that ignores SIGTERM, tells both ids, and waits.
STUBBORN = """
import os, pathlib, subprocess, sys, time
code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
child.stdout.readline()
pathlib.Path("new").write_text(f"{os.getpid()} {child.pid}")
os.rename("new", "pids")
print("running", file=sys.stderr, flush=True)
time.sleep(60)
"""


def context(conf: dict[str, Any] | None = None, events: dict[Any, Any] | None = None) -> Any:
    return {
        "dag_run": SimpleNamespace(dag_id="adapter_training", run_id="manual__1", conf=conf or {}),
        "triggering_asset_events": events or {},
        "outlet_events": {INDEX: OutletEventAccessor(AssetUniqueKey.from_asset(INDEX))},
    }


def operator(command: tuple[str, ...], **arguments: Any) -> StageOperator:
    return StageOperator(task_id="stage", command=command, **({"stage": "index"} | arguments))


def gone(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def stubborn(script: Script) -> tuple[str, ...]:
    return script(STUBBORN)


def test_the_command_s_last_line_is_returned_and_told_to_the_asset(home, echo):
    given = context({"retrieval.top_k": 9})
    result = operator(echo, outlets=[INDEX]).execute(given)
    assert (result["kind"], result["key"]) == ("index", "indexkey")
    told = given["outlet_events"][INDEX]
    assert told.partition_keys == {"sha256:corpus"}
    assert told.extra == {
        "name": "documents",
        "key": "indexkey",
        "digest": "sha256:index",
        "state": "built",
        "counts": {"n": 1},
        "snapshot": "sha256:corpus",
    }
    assert load_spec(spec_file(run_folder(home, "adapter_training", "manual__1"))).retrieval.top_k == 9


def test_the_newest_event_gives_the_key_and_the_line(home, echo):
    now = datetime.now(UTC)
    events = [
        SimpleNamespace(timestamp=now, extra=event_extra("papers", {"key": "new", "digest": "d"})),
        SimpleNamespace(
            timestamp=now - timedelta(1), extra=event_extra("old", {"key": "old", "digest": "d"})
        ),
        SimpleNamespace(timestamp=now + timedelta(1), extra={"by": "hand, in the pages"}),
    ]
    result = operator(echo, stage="contexts", event_input=INDEX).execute(context(events={INDEX: events}))
    assert result["options"][-2:] == ["--index", "new"]
    assert load_spec(spec_file(run_folder(home, "adapter_training", "manual__1"))).name == "papers"


def test_without_an_event_the_command_takes_the_latest(home, echo):
    result = operator(echo, stage="contexts", event_input=INDEX).execute(context())
    assert "--index" not in result["options"]


@pytest.mark.parametrize("kind", [StageOperator, DetachedStageOperator])
def test_bad_input_is_not_retried_and_keeps_its_sentence(home, script: Script, kind):
    command = script("import sys; print('jora: Give a port.', file=sys.stderr); sys.exit(2)")
    task = kind(task_id="stage", command=command, stage="index")
    given = context() | {
        "ti": SimpleNamespace(try_number=1, id="one", task_id="stage", stats_tags={}, map_index=-1)
    }
    with pytest.raises(AirflowFailException) as failure:
        task.execute(given)
    assert str(failure.value) == "Give a port."


def test_settings_that_do_not_go_together_start_nothing(home, echo):
    with pytest.raises(AirflowFailException, match="chunk_overlap"):
        operator(echo).execute(context({"index.chunk_overlap": 8000, "index.chunk_tokens": 20}))
    assert not home.exists()


def test_any_other_failure_is_retried(home, script: Script):
    command = script("import sys; print('disk on fire', file=sys.stderr); sys.exit(3)")
    with pytest.raises(AirflowException, match="exit code 3: disk on fire") as failure:
        operator(command).execute(context())
    assert not isinstance(failure.value, AirflowFailException)


@pytest.mark.parametrize(
    ("code", "said", "kind"),
    [
        (12, "jora: out of memory (x); lower training.batch_size.", StageOutOfMemory),
        (1, "XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.", StageOutOfMemory),
        (1, "MemoryError", StageOutOfMemory),
        (75, "jora: stopped by SIGTERM after update 3.", StagePreempted),
        (143, "Terminated", StagePreempted),
    ],
)
def test_lack_of_memory_fails_at_once_and_preemption_does_not(home, script: Script, code, said, kind):
    command = script(f"import sys; print({said!r}, file=sys.stderr); sys.exit({code})")
    with pytest.raises(kind, match=re.escape(said.removeprefix("jora: "))) as failure:
        operator(command).execute(context())
    assert isinstance(failure.value, AirflowFailException) == (kind is StageOutOfMemory)
    decision = RETRY_POLICY.evaluate(failure.value, 1, 5)
    assert decision.action == (RetryAction.FAIL if kind is StageOutOfMemory else RetryAction.RETRY)
    assert (
        ExceptionRetryPolicy.deserialize(RETRY_POLICY.serialize()).evaluate(failure.value, 1, 5) == decision
    )


@pytest.mark.parametrize("printed", ["", "not JSON", "[1]"])
def test_a_command_without_a_result_has_failed(home, script: Script, printed):
    with pytest.raises(AirflowException, match="no JSON object"):
        operator(script(f"print({printed!r})")).execute(context())


def test_lines_come_while_the_command_runs(tmp_path: Path, script: Script):
    command = script(
        "import pathlib, sys, time\n"
        "print('first', file=sys.stderr, flush=True)\n"
        f"while not pathlib.Path({str(tmp_path / 'seen')!r}).exists(): time.sleep(0.05)\n"
        "print('x' * 1_000_000)\n"  # more than a pipe holds
        "print('last', file=sys.stderr)\n"
    )
    lines = []

    def report(line: str) -> None:
        lines.append(line)
        (tmp_path / "seen").touch()

    outcome = Child(command, os.environ, tmp_path).wait(report)
    assert lines == ["first", "last"]
    assert (outcome.code, outcome.last_line, len(outcome.stdout)) == (0, "last", 1_000_001)


def test_stopping_the_task_ends_the_whole_group_and_raises(home, stubborn):
    task = operator(stubborn)
    pids = run_folder(home, "adapter_training", "manual__1") / "pids"

    def stop_when_running() -> None:
        deadline = time.monotonic() + 30
        while not pids.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        task.on_kill()

    stopper = threading.Thread(target=stop_when_running)
    stopper.start()
    with pytest.raises(StageCancelled):
        task.execute(context())
    stopper.join()
    left = [int(pid) for pid in pids.read_text().split()]
    assert len(left) == 2
    assert all(gone(pid) for pid in left)


def test_ending_takes_less_than_airflow_s_patience(tmp_path: Path, stubborn):
    child = Child(stubborn, os.environ, tmp_path)
    started: list[float] = []

    def end(line: str) -> None:
        started.append(time.monotonic())
        child.end()

    child.wait(end)
    assert time.monotonic() - started[0] < 5


def test_a_killed_task_takes_its_command_along(tmp_path: Path, script: Script):
    command = script("import os, sys, time; print(os.getpid(), file=sys.stderr, flush=True); time.sleep(600)")
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import json, os, pathlib, sys\n"
            "from jora_tasks.airflow.child import Child\n"
            "child = Child(json.loads(sys.argv[1]), os.environ, pathlib.Path('.'))\n"
            "child.wait(lambda line: print(line, flush=True))\n",
            json.dumps(command),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert gone(pid)


def test_run_ids_become_folders_of_their_own(tmp_path: Path):
    ids = [
        "manual__2026-01-01T00:00:00+00:00",
        "manual__2026-01-01T00_00_00_00_00",
        "..",
        "../../x",
        "plain-1",
    ]
    folders = [run_folder(tmp_path, "dag", run_id) for run_id in ids]
    assert len(set(folders)) == len(ids)
    assert all(folder.resolve().parent == tmp_path / "runs" / "dag" for folder in folders)
    assert folders[-1].name == "plain-1"
