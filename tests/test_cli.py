"""The commands as a user calls them: exit codes, one sentence on bad input, JSON alone on stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jora_tasks.cli import _show
from jora_tasks.stages.contexts import MISSING
from jora_tasks.stages.corpus import UNREADABLE
from jora_tasks.stages.pipeline import STAGES

SMALL_PLAN = ("--model", "smollm2-135m", "--target", "cpu:2")


def jora(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jora_tasks.cli", *arguments], capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["corpus", "--spec", "absent.yaml"], "absent.yaml: no such file"),
        (["corpus", "--set", "lora.r=0"], "lora.r (got 0)"),
        (["index"], "run `jora corpus` first"),
        (["embed", "--shard", "1"], "run `jora corpus` first"),
        (["retrieve", "--shard", "1"], "run `jora index` first"),
        (["answer", "--shard", "1"], "run `jora train` first"),
        (["train", "--prompts", "feed"], "prompts 'feed' does not exist"),
        (["plan", "--mesh", "tensor=4", "--mesh", "tensor=2", *SMALL_PLAN], "'tensor=2' is not an axis with"),
        (["plan", "--mesh", "data=2", "--mesh", "sequence=2", *SMALL_PLAN], "needs 4 devices, but 2"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(home: Path, arguments: list[str], named: str) -> None:
    result = jora(*arguments)
    assert result.returncode == 2, result.stderr
    assert named in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not home.exists()


def test_a_stage_prints_one_json_object_and_then_is_up_to_date(home: Path, tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "a.md").write_text("# Colours\n\nThe sky is blue.\n")
    arguments = ("corpus", "--json", "--set", f"documents.path={documents}")
    first, second = (json.loads(jora(*arguments).stdout) for _ in range(2))
    assert (first["state"], second["state"]) == ("built", "reused")
    assert first["key"] == second["key"]
    assert Path(first["path"]).is_dir()
    assert "up to date" in jora(*arguments[:1], *arguments[2:]).stdout


def test_what_is_counted_and_listed_is_told_with_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    shared = {"kind": "contexts", "key": "k", "state": "built", "seconds": 1.0, "path": "p"}
    counts = {"evidence_missing": 3, "unreadable": 2, "questions": 9}
    _show(shared | {"counts": counts}, as_json=False)
    shown = capsys.readouterr().out
    assert f"evidence missing: 3, listed in {MISSING}\n" in shown
    assert f"unreadable: 2, listed in {UNREADABLE}\n" in shown and "questions: 9\n" in shown
    _show(shared | {"counts": dict.fromkeys(counts, 0)}, as_json=False)
    assert "listed" not in capsys.readouterr().out


def test_a_path_with_brackets_is_printed_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JORA_HOME", str(tmp_path / "a[/x]b[red]c"))
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "a.txt").write_text("The sky is blue.")
    result = jora("corpus", "--set", f"documents.path={documents}")
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path}/a[/x]b[red]c/artifacts/corpus/" in result.stdout


@pytest.mark.slow
def test_all_stages_run_without_airflow(home: Path, tiny_project: Path) -> None:
    first = json.loads(jora("run", "--spec", str(tiny_project), "--json").stdout)["stages"]
    assert [stage["stage"] for stage in first] == list(STAGES)
    assert {stage["state"] for stage in first} == {"built"}
    again = jora("run", "--spec", str(tiny_project))
    assert "6 held-out questions" in again.stdout
    assert "adapter + retrieved contexts" in again.stdout
    assert "tiny version 1" in again.stdout
    assert again.stderr.count("up to date") == len(STAGES)
    key = next(stage["key"] for stage in first if stage["stage"] == "train")
    tree = json.loads(jora("lineage", key, "--json").stdout)
    assert tree["settings"]["lora"]["r"] == 2
    assert "guide.md" in jora("lineage", key).stdout
