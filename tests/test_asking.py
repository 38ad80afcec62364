"""Questions asked of a project that has been run: what is searched and asked is what training had."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.asking import ask
from jora_tasks.cli import app
from jora_tasks.commands.ask import show_answer
from jora_tasks.commands.explain import show_explanation
from jora_tasks.commands.options import spec_or_demo
from jora_tasks.errors import InputError
from jora_tasks.progress import Progress
from jora_tasks.registry import CANDIDATE, DIGEST, KEY, Registry
from jora_tasks.spec import RunSpec, load_spec
from jora_tasks.stages.pipeline import run_stage
from tests.test_cli import jora

STAGES = ("corpus", "index", "contexts", "prompts", "train", "evaluate")


@pytest.fixture(scope="module")
def project(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ArtifactStore]:
    """A spec file, and a home in which all its stages ran; its adapter is the candidate."""
    settings = yaml.safe_load(tiny_project.read_text())
    settings["retrieval"] |= {"mode": "hybrid", "dense_weight": 0.25}
    for part in ("documents", "questions"):
        settings[part]["path"] = str(tiny_project.parent / settings[part]["path"])
    file = tmp_path_factory.mktemp("asked") / "spec.yaml"
    file.write_text(json.dumps(settings))
    store = ArtifactStore(file.parent / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for stage in STAGES:
            run_stage(stage, load_spec(file), store, Progress())
        adapter = store.latest("tiny", "adapter")
        registry = Registry(store.home)
        tags = {KEY: adapter.key, DIGEST: adapter.digest}
        version = registry.register(adapter.path, "tiny", metrics={}, tags=tags, params={})
        registry.set_alias("tiny", CANDIDATE, version)
    return file, store


def prompt_rows(store: ArtifactStore) -> list[dict[str, Any]]:
    rows = pq.read_table(store.latest("tiny", "prompts").file("prompts.parquet")).to_pylist()
    return [row for row in rows if row["split"] == "test"]


def predictions(store: ArtifactStore, arm: str) -> dict[str, str]:
    table = pq.read_table(store.latest("tiny", "evaluation").file("predictions.parquet")).to_pylist()
    return {row["example_id"]: row["prediction"] for row in table if row["arm"] == arm}


def changed(spec: RunSpec, section: str, **values: Any) -> RunSpec:
    return spec.model_copy(update={section: getattr(spec, section).model_copy(update=values)})


@pytest.mark.slow
def test_a_question_gets_the_sources_and_the_answer_that_evaluation_gave_it(
    project: tuple[Path, ArtifactStore],
) -> None:
    file, store = project
    chunks = store.latest("tiny", "index").file("chunks.parquet")
    ids = {
        (row["document_id"], row["start"], row["end"]): row["chunk_id"]
        for row in pq.read_table(chunks).to_pylist()
    }
    # what the spec says by now of search and prompts does not count: the adapter learned other ones
    spec = changed(load_spec(file), "retrieval", top_k=5, mode="dense", near_duplicates=0.5)
    spec = changed(spec, "prompts", instruction="Say something else.")
    for row in prompt_rows(store)[:3]:
        told = ask(row["question"], spec, store, CANDIDATE)
        sources = [ids[each["document_id"], each["start"], each["end"]] for each in told["sources"]]
        assert sources == row["context_ids"]
        assert [each["number"] for each in told["sources"]] == [1, 2]
        assert told["answer"] == predictions(store, "adapter_with_contexts")[row["example_id"]]
        assert told["adapter"]["digest"] == store.latest("tiny", "adapter").digest
        assert told["retriever"]["dense_weight"] == 0.25
        assert ask(row["question"], changed(spec, "evaluation", max_new_tokens=1), store, CANDIDATE)["cut"]
        alone = ask(row["question"], load_spec(file), store, None)
        assert alone["answer"] == predictions(store, "base_with_contexts")[row["example_id"]]
        assert alone["adapter"] is None
        assert alone["contexts"] == told["contexts"] == store.latest("tiny", "contexts").key


@pytest.mark.slow
def test_another_base_or_reranker_than_in_training_is_refused(
    project: tuple[Path, ArtifactStore], tmp_path: Path
) -> None:
    from tests.tiny import write_base, write_tiny_reranker

    file, store = project
    spec, key = load_spec(file), store.latest("tiny", "adapter").key
    other = write_base(tmp_path / "other")
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    with pytest.raises(InputError, match=r"trained over base .* not over other .* set model\.base"):
        ask("default of red_limit", changed(spec, "model", base=str(other)), store, key)
    reranker = str(write_tiny_reranker(tmp_path / "reranker"))
    with pytest.raises(InputError, match=r"were made with no reranker, but retrieval\.reranker is"):
        ask("default of red_limit", changed(spec, "retrieval", reranker=reranker), store, key)


@pytest.mark.slow
def test_ask_and_explain_as_commands(
    project: tuple[Path, ArtifactStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, store = project
    monkeypatch.setenv("JORA_HOME", str(store.home))
    question, more = "default of red_limit", ["--spec", str(file)]

    def printed(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, *more], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    told = json.loads(printed("ask", question, "--adapter", "candidate", "--json"))
    shown = printed("ask", question, "--adapter", "candidate")
    for source in told["sources"]:
        assert f"[{source['number']}] {source['heading']} ({source['document_id']}" in shown
    assert ("cut here" in shown) == told["cut"]
    with pytest.raises(
        InputError,
        match=r"'tiny' has no champion in the registry; `jora promote 1` makes one, or .* --base",
    ):
        printed("ask", question)
    explained = json.loads(printed("index", "--explain", question, "--json"))
    first = explained["chunks"][: len(told["sources"])]
    assert [chunk["text"] for chunk in first] == [source["text"] for source in told["sources"]]
    assert [chunk["fused"]["rank"] for chunk in first] == [1, 2]
    table = printed("index", "--explain", question)
    assert "lexical" in table and first[0]["document_id"] in table
    assert "mode hybrid (set by retrieval.mode)" in table


# what sets a terminal's title and colour, or turns the rest of a line around, and what rich reads as markup
HOSTILE = "what [/foo] [bold]x[/bold] \x1b]0;t\x07\x1b[31m\x9b1m \u202e"
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


def test_what_a_terminal_would_obey_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    source = {"number": 1, "document_id": f"{HOSTILE}\nfake", "start": 0, "end": 9, "heading": HOSTILE}
    show_answer({"answer": f"One\nTwo {HOSTILE}", "cut": False, "sources": [source]}, as_json=False)
    shown = capsys.readouterr().out
    assert not OBEYED.search(shown)
    answer, rest, listed = shown.splitlines()
    assert answer == "One" and rest.startswith("Two what [/foo] [bold]x[/bold] \\x1b]0;t\\x07")
    assert r"\u202e\nfake, characters 0 to 9)" in listed
    place = {"rank": 1, "score": 0.5}
    chunk = {"rank": 1, "document_id": f"d{HOSTILE}", "heading": HOSTILE, "text": HOSTILE, "dense": place}
    retriever = {"mode": "dense", "reason": "set"}
    explained = {"question": HOSTILE, "index": "k", "retriever": retriever, "chunks": [chunk]}
    show_explanation(explained, as_json=False)
    shown = capsys.readouterr().out
    assert not OBEYED.search(shown)
    assert shown.startswith("what [/foo] [bold]x[/bold] \\x1b]0;t\\x07") and "dwhat" in shown


def test_the_demo_s_spec_serves_where_none_is_given(home: Path, tmp_path: Path) -> None:
    given = tmp_path / "mine.yaml"
    assert spec_or_demo(None, home) is None
    demo = home / "demo" / "spec.yaml"
    demo.parent.mkdir(parents=True)
    demo.write_text("name: demo\n")
    assert spec_or_demo(None, home) == demo
    assert spec_or_demo(given, home) == given


def test_nothing_to_ask_yet(home: Path) -> None:
    for arguments, named in (
        (("ask", "what?"), "No index yet for 'documents'"),
        (("index", "--explain", "what?"), "No index yet for 'documents'"),
        (("ask", " "), "The question is empty"),
        (("index", "--explain", ""), "The question is empty"),
        (("index", "--explain", "what?", "--plan", "9"), "--explain and --plan exclude each other"),
        (("index", "--plan", "9", "--corpus", "x"), "--plan and --corpus exclude each other"),
        (("index", "--price-per-hour", "3"), "--price-per-hour goes with --plan"),
        (("index", "--corpus", ""), "--corpus is empty; give a key, or leave it out"),
        (("ask", "what?", "--base", "--adapter", "x"), "give one of them"),
    ):
        result = jora(*arguments)
        assert result.returncode == 2
        assert named in result.stderr
    assert not home.exists()
