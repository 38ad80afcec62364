"""The pages in Chromium, against a real local Airflow with a login; screenshots stay in the test's folder.

Where they are: ``$JORA_SCREENSHOTS``, or ``screenshots`` in pytest's temporary folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from jora_tasks.airflow import local
from jora_tasks.airflow.environment import airflow_environment
from jora_tasks.registry import Registry
from tests.lines import USERS
from tests.tiny import write_project

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SECONDS = 300  # for a run on a busy machine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; as root: apt-get install -y chromium"),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[local.LocalAirflow]:
    """A running Airflow of the tiny project."""
    folder = tmp_path_factory.mktemp("browser")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AIRFLOW__OPENLINEAGE__TRANSPORT")  # these tests' own, which would be kept
        (folder / "project").mkdir()
        spec = write_project(folder / "project")
        try:
            yield local.start(folder / "home", spec)
        finally:
            local.stop(folder / "home")


@pytest.fixture(scope="module")
def url(project: local.LocalAirflow, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A second web server of the same Airflow, which asks for a login."""
    folder = tmp_path_factory.mktemp("login")
    (folder / "passwords.json").write_text(json.dumps({name: name * 2 for name in USERS}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    prefix = "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER"
    environment = airflow_environment(
        Path(project.home),
        spec_path=Path(str(project.spec)),
        dags_folder=Path(project.dags_folder),
        port=port,
        log_ports=(1, 2),
    ) | {
        f"{prefix}_ALL_ADMINS": "False",
        f"{prefix}_USERS": ",".join(f"{name}:{role}" for name, role in USERS.items()),
        f"{prefix}_PASSWORDS_FILE": str(folder / "passwords.json"),
    }
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "airflow", "api-server"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait(lambda: answers(f"{address}/api/v2/monitor/health"), 120)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(address: str) -> bool:
    try:
        return httpx.get(address, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def wait(done: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """What ``done`` returns, as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (result := done()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.5)
    return result


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def keep(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any, str], None]:
    """Keeps a picture of the page."""
    named = os.environ.get("JORA_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.getbasetemp() / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)

    def picture(page: Any, name: str) -> None:
        page.wait_for_timeout(700)  # Airflow's own pages fade in
        page.screenshot(path=folder / f"{name}.png")

    return picture


@pytest.fixture
def log_in(chromium: Any, url: str) -> Iterator[Callable[..., Any]]:
    """Opens a browser and logs in, by the form, as this user."""
    contexts = []

    def open_page(user: str, theme: str = "light") -> Any:
        context = chromium.new_context(
            viewport={"width": 1440, "height": 1080}, color_scheme=theme, base_url=url
        )
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.goto("/")
        page.fill("input[name=username]", user)
        page.fill("input[name=password]", user * 2)
        page.keyboard.press("Enter")
        page.get_by_role("link", name="Adapters").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()


def trigger(page: Any, dag_id: str) -> None:
    """By the form of Airflow's page."""
    page.goto(f"/dags/{dag_id}")
    page.get_by_role("button", name="Trigger").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Trigger").last.click()


def lineage(page: Any, dag_id: str, run_id: str) -> Any:
    """The frame of the tab."""
    page.goto(f"/dags/{dag_id}/runs/{run_id}/plugin/rag_lineage")
    frame = page.frame_locator("iframe")
    frame.locator("main").wait_for()
    return frame


def boxes(frame: Any) -> dict[str, str]:
    """Name → state of the graph's boxes."""
    labels = frame.locator(".node").evaluate_all("all => all.map(each => each.getAttribute('aria-label'))")
    return dict(label.split(", ")[:2] for label in labels)


def test_from_a_trigger_to_a_champion_and_back(project, log_in, keep):
    page = log_in("uma")
    page.get_by_role("link", name="Adapters").click()
    page.frame_locator("iframe").get_by_text("No adapter yet").wait_for()
    keep(page, "01-no-adapter")

    with project.client() as client:
        trigger(page, "document_index")
        [index_run] = wait(lambda: client.dag_runs("document_index"))
        frame = lineage(page, "document_index", index_run["dag_run_id"])
        keep(page, "02-index-at-work")
        frame.locator(".node.built", has_text="Index").wait_for(timeout=SECONDS * 1000)  # by itself
        keep(page, "03-index")

        [run] = wait(lambda: client.dag_runs("adapter_training"))
        run_id = run["dag_run_id"]
        frame = lineage(page, "adapter_training", run_id)
        frame.locator(".node.running").first.wait_for(timeout=SECONDS * 1000)
        keep(page, "04-training-at-work")
        wait(lambda: client.dag_run("adapter_training", run_id)["state"] == "success")
        second = client.trigger("adapter_training", {"training.seed": 7})["dag_run_id"]

        frame = lineage(page, "adapter_training", run_id)
        found = boxes(frame)
        assert {found[name] for name in ("Contexts", "Prompts", "Adapter", "Evaluation", "Verdict")} == {
            "built"
        }
        assert (found["Corpus"], found["Documents"], found["Champion"]) == ("earlier", "source", "none")
        keep(page, "05-lineage")
        frame.locator("a.node", has_text="Adapter").click()
        frame.get_by_role("heading", name="Counts").wait_for()
        keep(page, "06-artifact")

        page.get_by_role("link", name="Adapters").click()
        frame = page.frame_locator("iframe")
        frame.get_by_role("link", name="tiny").click()
        frame.get_by_role("link", name="version 1", exact=True).last.click()
        frame.get_by_role("heading", name="What made it").wait_for()
        keep(page, "07-version")
        frame.get_by_role("link", name="All its documents").click()
        frame.get_by_text("guide.md").wait_for()
        keep(page, "08-documents")
        page.go_back()
        frame.get_by_role("link", name="Evaluation report").click()
        frame.frame_locator("iframe.report").locator("h1").wait_for()
        keep(page, "09-report")
        promote(page, 1, "the first one", keep, "10-promote")
        keep(page, "11-champion")

        wait(lambda: client.dag_run("adapter_training", second)["state"] == "success")
        promote(page, 2, "another seed", keep, "12-promote-second")
        frame = page.frame_locator("iframe")
        frame.get_by_role("link", name="Roll back…").click()
        frame.get_by_label("Reason").fill("answers are shorter than before")
        keep(page, "13-roll-back")
        frame.get_by_role("button", name="Roll back to version 1").click()
        frame.get_by_text("rolled back").wait_for()
        keep(page, "14-rolled-back")

    moves = Registry(Path(project.home)).transitions("tiny")
    assert [(each.action, each.version, each.by, each.reason) for each in moves] == [
        ("promote", 1, "uma", "the first one"),
        ("promote", 2, "uma", "another seed"),
        ("rollback", 1, "uma", "answers are shorter than before"),
    ]
    assert boxes(lineage(page, "adapter_training", run_id))["Champion"] == "made"


def promote(page: Any, version: int, reason: str, keep: Callable[[Any, str], None], name: str) -> None:
    """As a person does, from the line's page to the confirmation, by keyboard at the end."""
    page.goto("/plugin/adapters/jora/adapters/tiny")
    frame = page.frame_locator("iframe")
    frame.get_by_role("link", name=f"Promote… version {version}").click()
    frame.get_by_label("Reason").fill(reason)
    keep(page, name)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    frame.get_by_role("heading", name="History of the champion").wait_for()
    frame.get_by_text(reason).wait_for()
