"""The pages in Chromium, against a real local Airflow with a login: by mouse, by keyboard, light and dark."""

from __future__ import annotations

import os
import time
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright import sync_api

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.registry import Registry
from tests.browsing import CHROMIUM, FAULTS, SECONDS, tab_to, wait
from tests.lines import make_line

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; as root: apt-get install -y chromium"),
]
DAG = "adapter_training"
LINE = "/plugin/adapters/jora/adapters"


@pytest.fixture(scope="module")
def papers(project: Any) -> None:
    """A second line in the registry, of three versions."""
    make_line(ArtifactStore(Path(project.home)), "papers")


def open_form(page: Any, dag_id: str) -> Any:
    """The trigger form of Airflow's page."""
    page.goto(f"/dags/{dag_id}")
    page.get_by_role("button", name="Trigger").first.click()
    return page.get_by_role("dialog")


def trigger(page: Any, dag_id: str, section: str = "", **changes: str) -> str:
    """Start a run by the form, with changes in one section; its id, from the address that Airflow goes to."""
    form = open_form(page, dag_id)
    if section:
        form.get_by_role("button", name=section, exact=True).click()
    for field, value in changes.items():
        form.locator(f"[name='element_{section.lower()}.{field}']").fill(value)
        page.keyboard.press("Tab")
    form.get_by_role("button", name="Trigger", exact=True).last.click()
    page.wait_for_url("**/runs/manual__*")
    return page.url.rpartition("/")[2]


def lineage(page: Any, dag_id: str, run_id: str) -> Any:
    """The frame of the tab; a page that a busy server left unfinished is loaded again, and told of."""
    page.goto(f"/dags/{dag_id}/runs/{run_id}/plugin/rag_lineage")
    frame = page.frame_locator("iframe")
    try:
        frame.locator("main").wait_for()
    except sync_api.TimeoutError:
        shown = [each.locator("body").inner_text() for each in page.frames]
        warnings.warn(f"{run_id}: no lineage at first, but {shown}", stacklevel=2)
        page.reload()
        frame.locator("main").wait_for()
    return frame


def boxes(frame: Any) -> dict[str, str]:
    """Name → state of the graph's boxes."""
    labels = frame.locator(".node").evaluate_all("all => all.map(each => each.getAttribute('aria-label'))")
    return dict(label.split(", ")[:2] for label in labels)


def state(client: Any, run_id: str, task_id: str) -> str:
    return {each["task_id"]: each["state"] for each in client.task_instances(DAG, run_id)}[task_id]


def answer(page: Any, keep: Any, name: str, version: int, choice: str, reason: str) -> None:
    """As a person does: from Airflow's list of required actions to a yes or no."""
    page.goto("/required_actions?response_received=false")
    page.get_by_role("link", name=f"Make tiny version {version} the champion?").click()
    page.get_by_role("cell", name="answer_loss_no_worse_than_base").wait_for()  # the verdict
    page.get_by_role("row", name="enough_questions").get_by_text("6 in 6").wait_for()
    page.locator("[name=element_reason]").fill(reason)
    keep(page, name)
    page.get_by_role("button", name=choice).click()
    page.get_by_text("Response received at").wait_for()


def promote(page: Any, keep: Any, name: str, version: int, reason: str) -> None:
    """From the line's page to the confirmation."""
    page.goto(f"{LINE}/tiny")
    frame = page.frame_locator("iframe")
    frame.get_by_role("link", name=f"Promote… version {version}").click()
    frame.get_by_label("Reason").fill(reason)
    keep(page, name)
    frame.get_by_role("button", name=f"Promote version {version}").click()
    frame.get_by_text(reason).wait_for()


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ("<p style='color: #777; background: #fff'>grey", "contrast 4.48: grey"),
        ("<p style='color: #333; background: #222'>dark", "contrast 1.2"),
        ("<svg><g class=node><rect fill=#eee /><text fill=#999>box</text></g></svg>", "contrast 2.4"),
        ("<div style='width: 3000px; color: #000'>wide", "px too wide"),
        ("<p style='color: #000; background: #fff'>well", ""),
    ],
)
def test_what_cannot_be_read_is_found(chromium, html, fault):
    page = chromium.new_page()
    page.set_content(html)
    found = page.evaluate(FAULTS)
    page.close()
    assert (fault in found[0]) if fault else found == []


def test_from_a_trigger_to_a_champion_that_a_person_approves_and_back(project, log_in, keep, notices):
    page, registry = log_in("uma"), Registry(Path(project.home))

    def champion() -> int:
        found = registry.get_champion("tiny")
        return found.version if found else 0

    page.get_by_role("link", name="Adapters").click()
    page.frame_locator("iframe").get_by_text("No adapter yet").wait_for()
    keep(page, "01-no-adapter")
    with project.client() as client:
        index_run = trigger(page, "document_index")
        frame = lineage(page, "document_index", index_run)
        keep(page, "02-index-at-work")
        frame.locator(".node.built", has_text="Index").wait_for(timeout=SECONDS * 1000)  # by itself
        keep(page, "03-index")

        [run] = wait(lambda: client.dag_runs(DAG))
        first = run["dag_run_id"]
        frame = lineage(page, DAG, first)
        frame.locator(".node.running").first.wait_for(timeout=SECONDS * 1000)
        keep(page, "04-training-at-work")
        wait(lambda: state(client, first, "approval") == "awaiting_input")
        wait(lambda: any(each["run_id"] == first for each in notices[1]), 30)  # the notice that it is late
        assert champion() == 0
        answer(page, keep, "05-approve", 1, "Approve", "reads well")
        wait(lambda: client.dag_run(DAG, first)["state"] == "success")
        assert champion() == 1

        second = trigger(page, DAG, "Training", seed="7")
        frame = lineage(page, DAG, first)
        found = boxes(frame)
        assert {found[name] for name in ("Contexts", "Prompts", "Adapter", "Evaluation", "Verdict")} == {
            "built"
        }
        assert (found["Corpus"], found["Documents"], found["Champion"]) == ("earlier", "source", "made")
        keep(page, "06-lineage")
        frame.locator("a.node", has_text="Adapter").click()
        frame.get_by_role("heading", name="Counts").wait_for()
        keep(page, "07-artifact")
        look_around(page, keep)

        wait(lambda: state(client, second, "approval") == "awaiting_input")
        assert client.dag_run(DAG, second)["conf"]["training.seed"] == 7
        answer(page, keep, "11-reject", 2, "Reject", "no better")
        wait(lambda: client.dag_run(DAG, second)["state"] == "success")
        assert (state(client, second, "promote"), champion()) == ("skipped", 1)
        third = client.trigger(DAG, {"training.seed": 7, "registry.approval_hours": 0.0001})["dag_run_id"]
        wait(lambda: client.dag_run(DAG, third)["state"] == "success")
        assert (state(client, third, "promote"), champion()) == ("skipped", 1)
        told = client._call("GET", f"dags/{DAG}/dagRuns/{third}/taskInstances/approval/-1/hitlDetails")
        assert (told["chosen_options"], told["responded_by_user"]) == (["Reject"], None)

    promote(page, keep, "12-promote", 2, "another seed")
    keep(page, "13-champion")
    frame = page.frame_locator("iframe")
    frame.get_by_role("link", name="Roll back…").click()
    frame.get_by_label("Reason").fill("answers are shorter than before")
    keep(page, "14-roll-back")
    frame.get_by_role("button", name="Roll back to version 1").click()
    frame.get_by_text("rolled back").wait_for()
    keep(page, "15-rolled-back")
    assert [(each.action, each.version, each.by, each.reason) for each in registry.transitions("tiny")] == [
        ("promote", 1, "uma", "reads well"),
        ("promote", 2, "uma", "another seed"),
        ("rollback", 1, "uma", "answers are shorter than before"),
    ]
    assert [each["event"] for each in notices[1] if each["run_id"] == first] == ["late"]


def look_around(page: Any, keep: Any) -> None:
    """The pages of costs and of a version."""
    page.get_by_role("link", name="Adapters").click()
    frame = page.frame_locator("iframe")
    frame.get_by_role("link", name="Costs by month").click()
    frame.get_by_role("cell", name="train", exact=True).wait_for()
    keep(page, "16-costs")
    frame.get_by_role("link", name="Adapters").click()
    frame.get_by_role("link", name="tiny").click()
    frame.get_by_role("link", name="version 1", exact=True).last.click()
    frame.get_by_role("heading", name="What made it").wait_for()
    keep(page, "08-version")
    frame.get_by_role("link", name="All its documents").click()
    frame.get_by_text("guide.md").wait_for()
    keep(page, "09-documents")
    page.go_back()
    frame.get_by_role("link", name="Evaluation report").click()
    frame.frame_locator("iframe.report").locator("h1").wait_for()
    keep(page, "10-report")


def test_what_cannot_be_is_refused_before_its_stage_and_told(project, log_in, keep, notices):
    page, sentence = log_in("uma"), "row_length is the length of packed rows; set packing to true as well"
    run_id = trigger(page, DAG, "Training", row_length="512")
    with project.client() as client:
        wait(lambda: client.dag_run(DAG, run_id)["state"] == "failed")
        states = {each["task_id"]: each["state"] for each in client.task_instances(DAG, run_id)}
        assert states.pop("retrieval_shards") == "failed"
        assert set(states.values()) == {"upstream_failed"}
        queued, ended = (
            datetime.fromisoformat(client.dag_run(DAG, run_id)[when]) for when in ("queued_at", "end_date")
        )
    frame = lineage(page, DAG, run_id)
    keep(page, "21-refused")
    frame.get_by_role("link", name="Its log").click()
    page.get_by_text(sentence).first.wait_for()
    keep(page, "22-refused-log")
    deadline = queued + timedelta(hours=float(os.environ["JORA_DEADLINE_HOURS"]))
    time.sleep(max(0.0, (deadline - datetime.now(UTC)).total_seconds() + 5))
    told = [each for each in notices[1] if each["run_id"] == run_id]
    [failed] = [each for each in told if each["event"] == "failed"]
    assert failed["task_id"] == "retrieval_shards" and sentence in failed["reason"]
    assert ended > deadline or len(told) == 1  # what has failed in time is not told late as well


def test_a_viewer_sees_all_and_moves_nothing(papers, log_in, keep):
    page = log_in("vic")
    page.get_by_role("link", name="Adapters").click()
    frame = page.frame_locator("iframe")
    frame.get_by_role("link", name="papers").click()
    frame.get_by_role("heading", name="Versions", exact=True).wait_for()
    keep(page, "31-viewer-line")
    frame.get_by_role("link", name="version 3", exact=True).last.click()
    frame.get_by_role("heading", name="What made it").wait_for()
    assert boxes(frame)["Adapter"] == "made"
    keep(page, "32-viewer-version")
    for path in ("papers", "papers/versions/3"):
        page.goto(f"{LINE}/{path}")
        frame.locator("main").wait_for()
        assert frame.get_by_text("promote", exact=False).count() == 0
        assert frame.get_by_text("roll back", exact=False).count() == 0
    page.goto(f"{LINE}/papers/versions/3/promote")
    frame.get_by_role("heading", name="Not allowed").wait_for()
    keep(page, "33-viewer-refused")
    assert frame.get_by_role("button").count() == 0


def test_airflow_s_own_switch_darkens_the_pages(papers, log_in):
    page = log_in("uma")
    page.goto(f"{LINE}/papers")
    frame = page.frame_locator("iframe")
    frame.locator("main").wait_for()
    for mode, background in (("Dark Mode", "rgb(23, 28, 41)"), ("Light Mode", "rgb(246, 247, 249)")):
        page.get_by_role("button", name="User").click()
        page.get_by_role("menuitem", name="Appearance").hover()
        page.get_by_text(mode).click()
        page.wait_for_timeout(300)
        assert frame.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == background


def test_the_whole_way_by_keyboard(project, papers, log_in, keep):
    page = log_in("uma")
    frame = page.frame_locator("iframe")
    unseen = tab_to(page, "Adapters")
    page.keyboard.press("Enter")
    for name, arrived in (
        ("papers", "History of the champion"),
        ("version 3", "What made it"),
        ("All its documents", "Documents of corpus"),
    ):
        frame.locator("main").wait_for()
        unseen += tab_to(page, name)
        page.keyboard.press("Enter")
        frame.get_by_role("heading", name=arrived).wait_for()
    page.go_back()  # Alt and ←, which a browser without a window does not hear
    frame.get_by_role("heading", name="What made it").wait_for()
    unseen += tab_to(page, "Promote…")
    keep(page, "41-focus")
    page.keyboard.press("Enter")
    frame.get_by_label("Reason").wait_for()
    unseen += tab_to(page, "Reason (stays in the record)")
    page.keyboard.type("by keyboard alone")
    unseen += tab_to(page, "Promote version 3")
    keep(page, "42-focus-confirm")
    page.keyboard.press("Enter")
    frame.get_by_text("by keyboard alone").wait_for()
    assert unseen == []
    champion = Registry(Path(project.home)).get_champion("papers")
    assert champion is not None and champion.version == 3
