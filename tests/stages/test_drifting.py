"""Drift since the champion, read from the artifacts that made it."""

from __future__ import annotations

import shutil

from jora_tasks.artifacts import Artifact
from jora_tasks.registry import KEY, RegisteredAdapter
from jora_tasks.stages.drifting import drift_report


def champion(rag, prompts: Artifact) -> RegisteredAdapter:
    """A registered adapter made from these prompts; its files do not matter here."""
    adapter = rag.store.build(
        "adapter", version=1, settings={}, inputs={"prompts": prompts}, write=lambda _: {}
    )
    return RegisteredAdapter("documents", 3, {KEY: adapter.key}, "")


def test_what_changed_since_the_champion_was_trained(rag) -> None:
    before = champion(rag, rag.prompts())
    same = drift_report(before, rag.contexts(), rag.store)
    assert same["documents"] == {"added": 0, "updated": 0, "removed": 0, "unchanged": 1}
    assert {each["level"] for each in same["figures"]} == {"stable"}

    (rag.folder / "documents" / "news.md").write_text("# News\n\nNothing of use.\n")
    rag.questions = [
        row | {"question": f"{row['question']}, which I ask at length " * 9} for row in rag.questions
    ]
    found = drift_report(before, rag.contexts(), rag.store)
    assert found["against"] == 3
    assert found["documents"] == {"added": 1, "updated": 0, "removed": 0, "unchanged": 1}
    figures = {each["name"]: each for each in found["figures"]}
    assert figures["characters of a question"]["level"] == "large drift"
    assert figures["characters of a question"]["now"] > 9 * figures["characters of a question"]["then"]


def test_what_cannot_be_compared_says_why(rag) -> None:
    before, contexts = champion(rag, rag.prompts()), rag.contexts()
    assert "no champion" in drift_report(None, contexts, rag.store)["reason"]
    assert "contexts" in drift_report(before, None, rag.store)["reason"]
    shutil.rmtree(rag.store.home / "artifacts" / "prompts")
    assert (
        "version 3 was made of is no longer in this home"
        in drift_report(before, contexts, rag.store)["reason"]
    )
