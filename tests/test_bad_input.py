"""Bad input at the command line: one sentence that names the thing, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.progress import Progress
from jora_tasks.spec import RunSpec, load_spec
from jora_tasks.stages.pipeline import run_stage
from tests.retrieval.collecting import put
from tests.retrieval.loaders.office import docx, paragraph, pdf
from tests.tiny import write_tiny_embedder


def jora(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jora_tasks.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def refused(home: Path, tiny_project: Path) -> Callable[..., str]:
    """Runs a command that must be refused; returns its sentence."""

    def folders() -> set[Path]:
        return {path for path in (home / "artifacts").glob("*/*") if path.is_dir()}

    def run(*arguments: str | Path) -> str:
        before = folders()
        result = jora(*arguments)
        assert result.returncode == 2, result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
        assert folders() == before
        return result.stderr.strip().splitlines()[-1]

    return run


@pytest.fixture(scope="session")
def trained(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which every stage up to training has run."""
    store = ArtifactStore(tmp_path_factory.mktemp("trained"))
    run(store, load_spec(tiny_project), "corpus", "index", "contexts", "prompts", "train")
    return store.home


def run(store: ArtifactStore, spec: RunSpec, *stages: str) -> None:
    for stage in stages:
        run_stage(stage, spec, store, Progress())


@pytest.fixture
def used_home(home: Path, trained: Path) -> Path:
    """A copy of `trained` as ``$JORA_HOME``."""
    shutil.copytree(trained, home)
    return home


def test_an_empty_folder_of_documents(
    refused: Callable[..., str], tiny_project: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    said = refused("corpus", "--spec", tiny_project, "--set", f"documents.path={tmp_path}/empty")
    assert "empty" in said


def test_hostile_documents_are_counted_with_reasons_or_refused(
    home: Path, refused: Callable[..., str], tiny_project: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "hostile"
    whole = docx(paragraph("words"))
    contents = {
        "corrupt.pdf": pdf("page")[:80],
        "cut.docx": whole[: len(whole) // 2],
        "zeros.txt": b"text\0text",
        "latin.txt": "caf\xe9".encode("latin-1"),
        "wide.txt": "caf\xe9 wide".encode("utf-16"),
        "empty.md": b"\n",
        "one.md": b"the same",
        "two.md": b"the same",
        "rows.jsonl": b'{"text": "row"}\n{"text": \n',
    }
    for name, content in contents.items():
        put(folder, name, content)
    with zipfile.ZipFile(folder / "escape.zip", "w") as archive:
        archive.writestr("../outside.md", "outside")
        archive.writestr("inside.md", "inside")
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.txt", bytes(32 << 20))
    (folder / "loop").symlink_to(folder)
    setting = f"documents.path={folder}"
    said = refused("corpus", "--spec", tiny_project, "--set", setting, "--set", "documents.unreadable=error")
    assert "bomb.zip unpacks" in said
    result = jora("corpus", "--spec", tiny_project, "--set", setting, "--json")
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)["counts"]
    named = ("files", "documents", "empty", "duplicates", "unreadable", "added")
    assert {name: counts[name] for name in named} == {
        "files": 11,
        "documents": 6,
        "empty": 1,
        "duplicates": 1,
        "unreadable": 6,
        "added": 6,
    }
    assert [reason.split()[0] for reason in counts["first_unreadable"]] == [
        "bomb.zip",
        "corrupt.pdf",
        "cut.docx",
    ]
    for name in ("corrupt.pdf", "cut.docx", "bomb.zip", "escape.zip", "rows.jsonl"):
        (folder / name).unlink()
    put(folder, "rows-again.jsonl", '{"text": "x", "id": "one.md"}')
    result = jora("corpus", "--spec", tiny_project, "--set", setting, "--json")
    assert "rows-again.jsonl:1: document id 'one.md' is that of one.md" in " ".join(
        json.loads(result.stdout)["counts"]["first_unreadable"]
    )


def test_a_malformed_line_of_questions(
    used_home: Path, refused: Callable[..., str], tiny_project: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "a", "answers": ["b"]}\n{"question": \n')
    said = refused("contexts", "--spec", tiny_project, "--set", f"questions.path={bad}")
    assert "bad.jsonl:2" in said


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("questions.path={none}", "questions.path {none} cannot be read"),
        ("model.base={none}", "model.base"),
        ("retrieval.reranker={none}", "retrieval.reranker"),
        ("index.embedder={none}", "index.embedder"),
        ("prompts={{mix_path: {none}, mix_fraction: 0.1}}", "none cannot be read"),
    ],
)
def test_what_a_later_stage_reads_is_missed_before_the_first(
    refused: Callable[..., str], tiny_project: Path, tmp_path: Path, setting: str, named: str
) -> None:
    none = tmp_path / "none"
    said = refused("run", "--spec", tiny_project, "--set", setting.format(none=none))
    assert named.format(none=none) in said


def test_an_index_built_by_another_embedder(
    used_home: Path, refused: Callable[..., str], tiny_project: Path, tmp_path: Path
) -> None:
    other = write_tiny_embedder(tmp_path / "other", seed=1)
    said = refused("contexts", "--spec", tiny_project, "--set", f"index.embedder={other}")
    assert "embedder" in said


def test_a_question_that_does_not_fit(
    used_home: Path, refused: Callable[..., str], tiny_project: Path
) -> None:
    said = refused("prompts", "--spec", tiny_project, "--set", "prompts.token_budget=64")
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
    used_home: Path, refused: Callable[..., str], tiny_project: Path, setting: str, named: str
) -> None:
    # Another seed, so that there is no adapter yet.
    options = ("--set", "training.seed=1", "--set", setting)
    assert named in refused("train", "--spec", tiny_project, *options)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_weights_that_are_not_whole(
    used_home: Path, refused: Callable[..., str], tiny_project: Path, tmp_path: Path, damage: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_project.parent / "base", base)
    setting = f"model.base={base}"
    weights = base / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-100])
    assert "safetensors" in refused("train", "--spec", tiny_project, "--set", setting)


def test_no_test_questions(
    used_home: Path, refused: Callable[..., str], tiny_project: Path, tmp_path: Path
) -> None:
    lines = (tiny_project.parent / "questions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    only = tmp_path / "train.jsonl"
    only.write_text("".join(json.dumps(row) + "\n" for row in rows if row["split"] == "train"))
    said = refused("contexts", "--spec", tiny_project, "--set", f"questions.path={only}")
    assert "train.jsonl has no test question" in said


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
