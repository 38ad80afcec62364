"""A home with an index of the tiny project, and the command on it."""

import pytest
from typer.testing import CliRunner

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.progress import Progress
from jora_tasks.spec import load_spec
from jora_tasks.stages.pipeline import run_stage


@pytest.fixture
def questions_command(tiny_project, home):
    """Runs ``jora questions`` on the tiny project's index with further options."""
    from jora_tasks.cli import app

    spec = load_spec(tiny_project)
    for stage in ("corpus", "index"):
        run_stage(stage, spec, ArtifactStore(), Progress())

    def run(*options):
        arguments = ["questions", "--spec", tiny_project, "--min-tokens", 1, *options]
        return CliRunner().invoke(app, [str(each) for each in arguments])

    return run
