"""Bad input at the command line: one sentence that names the thing, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import write_tiny_embedder


def jora(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jora_tasks.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def refused(home: Path, tiny_project: Path) -> Callable[..., str]:
    """Runs a command that must be refused; returns its sentence."""

    def run(*arguments: str | Path, made: str | None = None) -> str:
        result = jora(*arguments)
        assert result.returncode == 2, result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
        if made:
            folders = [path for path in (home / "artifacts" / made).glob("*") if path.is_dir()]
            assert folders == []
        return result.stderr.strip().splitlines()[-1]

    return run


def run_until(stage: str, spec: Path, *options: str) -> None:
    for name in ("corpus", "index", "contexts", "prompts", "train"):
        result = jora(name, "--spec", spec, *options)
        assert result.returncode == 0, result.stderr
        if name == stage:
            return


def test_an_empty_folder_of_documents(
    refused: Callable[..., str], tiny_project: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    said = refused(
        "corpus", "--spec", tiny_project, "--set", f"documents.path={tmp_path}/empty", made="corpus"
    )
    assert "empty" in said


def test_a_malformed_line_of_questions(
    refused: Callable[..., str], tiny_project: Path, tmp_path: Path
) -> None:
    run_until("index", tiny_project)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "a", "answers": ["b"]}\n{"question": \n')
    said = refused("contexts", "--spec", tiny_project, "--set", f"questions.path={bad}", made="contexts")
    assert "bad.jsonl:2" in said


def test_an_index_built_by_another_embedder(
    refused: Callable[..., str], tiny_project: Path, tmp_path: Path
) -> None:
    run_until("index", tiny_project)
    other = write_tiny_embedder(tmp_path / "other", seed=1)
    said = refused("contexts", "--spec", tiny_project, "--set", f"index.embedder={other}", made="contexts")
    assert "embedder" in said


def test_a_question_that_does_not_fit(refused: Callable[..., str], tiny_project: Path) -> None:
    run_until("contexts", tiny_project)
    said = refused("prompts", "--spec", tiny_project, "--set", "prompts.token_budget=64", made="prompts")
    assert "token_budget" in said


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("training.mesh.tensor=64", "devices"),
        ("lora.target_modules=[query]", "query"),
        ("training.batch_size=0", "training.batch_size"),
    ],
)
def test_settings_that_cannot_train(
    refused: Callable[..., str], tiny_project: Path, setting: str, named: str
) -> None:
    run_until("prompts", tiny_project)
    assert named in refused("train", "--spec", tiny_project, "--set", setting, made="adapter")


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_weights_that_are_not_whole(
    refused: Callable[..., str], tiny_project: Path, tmp_path: Path, damage: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_project.parent / "base", base)
    setting = f"model.base={base}"
    run_until("prompts", tiny_project, "--set", setting)
    weights = base / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-100])
    assert "safetensors" in refused("train", "--spec", tiny_project, "--set", setting, made="adapter")


def test_no_test_questions(refused: Callable[..., str], tiny_project: Path, tmp_path: Path) -> None:
    lines = (tiny_project.parent / "questions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    only = tmp_path / "train.jsonl"
    only.write_text("".join(json.dumps(row) + "\n" for row in rows if row["split"] == "train"))
    setting = f"questions.path={only}"
    run_until("train", tiny_project, "--set", setting)
    assert "test question" in refused("evaluate", "--spec", tiny_project, "--set", setting, made="evaluation")


@pytest.mark.parametrize("command", ["up", "demo"])
def test_a_port_asked_for_and_taken(refused: Callable[..., str], home: Path, command: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(command, "--port", str(port))
    assert f"--port {port}" in said
    assert not (home / "demo").exists()
    assert not (home / "airflow" / "airflow.db").exists()
