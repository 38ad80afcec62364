"""Airflow's own web server in this process, with users, over a home with a line of adapters.

And a real local Airflow of a tiny project with a second web server that asks for a login, and Chromium.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jora_tasks.airflow import local
from jora_tasks.airflow.environment import airflow_environment
from jora_tasks.artifacts import Artifact, ArtifactStore
from tests.browsing import CHROMIUM, FLAGS, answers, picture, wait
from tests.lines import USERS, make_line
from tests.tiny import write_project
from tests.webhook import webhook

APPROVED = {
    "gate": {"must_rise": [], "must_not_fall": {"answer_loss": 1000.0}},
    "registry": {"promotion": "approval"},
}
"""Settings with which a random model passes the gate, and a person is asked."""


@pytest.fixture(scope="session")
def line_home(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Path:
    """A home with three versions of the line ``tiny``, of which none is champion; to be copied."""
    home = tmp_path_factory.mktemp("line") / "home"
    (home / "mlflow").mkdir(parents=True)
    shutil.copy(empty_registry, home / "mlflow")
    make_line(ArtifactStore(home))
    return home


@pytest.fixture
def store(line_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """A copy of `line_home`, which the pages show."""
    shutil.copytree(line_home, tmp_path / "home")
    monkeypatch.setenv("JORA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return ArtifactStore(tmp_path / "home")


@pytest.fixture(scope="session")
def server(airflow_db: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Airflow's app with `USERS`, whose passwords are their names doubled."""
    from airflow.api_fastapi.app import create_app, purge_cached_app

    passwords = tmp_path_factory.mktemp("users") / "passwords.json"
    passwords.write_text(json.dumps({name: name * 2 for name in USERS}))
    with pytest.MonkeyPatch.context() as patch:
        prefix = "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER"
        patch.setenv(f"{prefix}_USERS", ",".join(f"{name}:{role}" for name, role in USERS.items()))
        patch.setenv(f"{prefix}_PASSWORDS_FILE", str(passwords))
        purge_cached_app()
        yield create_app(apps="core")
        purge_cached_app()


@pytest.fixture
def stranger(server: Any, store: ArtifactStore) -> TestClient:
    """A browser without a login."""
    return TestClient(server, headers={"Accept": "text/html"}, follow_redirects=False)


@pytest.fixture
def browser(server: Any, store: ArtifactStore) -> Callable[[str], TestClient]:
    """Makes a browser that this user is logged in with, by password, as the login page does."""

    def log_in(user: str) -> TestClient:
        client = TestClient(server, headers={"Accept": "text/html"}, follow_redirects=False)
        answer = client.post("/auth/token", json={"username": user, "password": user * 2})
        assert answer.status_code == 201, answer.text
        client.cookies.set("_token", answer.json()["access_token"])
        return client

    return log_in


@pytest.fixture
def uma(browser: Callable[[str], TestClient]) -> TestClient:
    """May trigger and edit DAGs."""
    return browser("uma")


@pytest.fixture
def vic(browser: Callable[[str], TestClient]) -> TestClient:
    """May only read."""
    return browser("vic")


@pytest.fixture
def newest(store: ArtifactStore) -> Callable[[str], Artifact]:
    """The artifact of a kind that version 3 was made with."""
    return lambda kind: store.latest("tiny", kind)


@pytest.fixture(scope="module")
def notices() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a webhook and what came to it."""
    with webhook() as hook:
        yield hook


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, notices: Any) -> Iterator[local.LocalAirflow]:
    """A running Airflow of the tiny project, where a person approves, and runs are soon late."""
    folder = tmp_path_factory.mktemp("browser")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AIRFLOW__OPENLINEAGE__TRANSPORT")  # these tests' own, which would be kept
        patch.setenv("JORA_NOTIFY", notices[0])
        patch.setenv("JORA_DEADLINE_HOURS", "0.005")
        (folder / "project").mkdir()
        spec = write_project(folder / "project")
        settings = json.loads(spec.read_text()) | APPROVED
        settings["evaluation"]["cluster_by"] = "group"
        spec.write_text(json.dumps(settings))
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


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def keep(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any, str], None]:
    """Keeps pictures of a page, in light and in dark, and sees that it can be read.

    They lie in ``$JORA_SCREENSHOTS``, or in ``screenshots`` in pytest's temporary folder.
    """
    named = os.environ.get("JORA_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.getbasetemp() / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)

    def look(page: Any, name: str) -> None:
        assert picture(page, folder, name) == []

    return look


@pytest.fixture
def log_in(chromium: Any, url: str) -> Iterator[Callable[..., Any]]:
    """Opens a browser and logs in, by the form, as this user."""
    contexts = []

    def open_page(user: str) -> Any:
        context = chromium.new_context(viewport={"width": 1440, "height": 1080}, base_url=url)
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
