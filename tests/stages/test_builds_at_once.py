"""Several processes build in one home at the same time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jora_tasks.artifacts import ArtifactStore
from tests.commands import Commands


def other_project(spec: Path, folder: Path) -> Path:
    """The same project with one more document, under another name."""
    settings = json.loads(spec.read_text())
    shutil.copytree(spec.parent / "documents", folder / "documents")
    (folder / "documents" / "more.md").write_text("# More\n\nDefault: 99\n")
    for part, key in (("documents", "path"), ("questions", "path")):
        settings[part][key] = str((folder if part == "documents" else spec.parent) / settings[part][key])
    (folder / "other.yaml").write_text(json.dumps(settings | {"name": "other"}))
    return folder / "other.yaml"


@pytest.mark.slow
def test_index_builds_of_one_corpus_and_of_another_at_once(
    commands: Commands, finished_home: Path, tiny_project: Path, tmp_path: Path
) -> None:
    """One artifact of the corpus that two build, another of the other; each as if it were alone."""
    home, other = tmp_path / "home", other_project(tiny_project, tmp_path)
    for spec in (tiny_project, other):
        commands.run("corpus", "--spec", spec, "--json", JORA_HOME=home)
    asked = [("index", "--spec", spec, "--json") for spec in (tiny_project, other, tiny_project, other)]
    ended = [each.result for each in commands.run_together(asked, JORA_HOME=home)]
    assert sorted(each["state"] for each in ended) == ["built", "built", "reused", "reused"]
    assert ended[0]["digest"] == ended[2]["digest"] != ended[1]["digest"] == ended[3]["digest"]

    store, alone = ArtifactStore(home), ArtifactStore(tmp_path / "alone")
    assert store.latest("tiny", "index").digest == ArtifactStore(finished_home).latest("tiny", "index").digest
    for stage in ("corpus", "index"):
        commands.run(stage, "--spec", other, "--json", JORA_HOME=alone.home)
    assert store.latest("other", "index").digest == alone.latest("other", "index").digest
    made = sorted(path.name for path in (home / "artifacts" / "index").iterdir())
    assert made == sorted({each["key"] for each in ended})  # and nothing half-made
