"""The page of costs, and what a run's tab tells of them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from datetime import UTC, datetime
from urllib.parse import quote

import fsspec
import pytest

from jora_tasks.airflow.pages import costs as pages
from jora_tasks.airflow.pages import home
from jora_tasks.airflow.pages.costs import PRICE, cost_rows
from jora_tasks.airflow.pages.rendering import duration, file_size
from jora_tasks.airflow.pages.spending import Spending
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.costs import Cost, month_file, of_run, share
from jora_tasks.shared_store import ARTIFACTS, SharedStore
from tests.lines import SCRIPT

TRAINED = Cost(
    id="1",
    stage="train",
    line="tiny",
    run="adapter_training/manual__1",
    state="built",
    ended="2026-02-03T00:00:00Z",
    seconds=4000.0,
    device_seconds=7200.0,
    read=1_500_000,
    written=2_000,
    sent=3_000_000_000,
    fetched=12,
    hits=0,
    misses=1,
)
TRAINED_AT = datetime(2026, 2, 3, tzinfo=UTC)


def write(store, *found: Cost) -> None:
    for cost in found:
        file = month_file(store.home, cost.ended[:7])
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as records:
            records.write(json.dumps(asdict(cost)) + "\n")


def cells(page: str) -> list[list[str]]:
    """The texts of the tables' rows."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    cell = re.compile(r"<t[dh][^>]*>(.*?)</t[dh]>", re.DOTALL)
    return [[" ".join(re.sub(r"<[^>]+>", "", each).split()) for each in cell.findall(row)] for row in rows]


def test_before_the_first_record_the_page_says_what_leaves_one(uma, store):
    assert "No records yet" in uma.get("/jora/costs").text
    assert uma.get("/jora/costs?month=2026-01").status_code == 404
    assert 'href="/jora/costs"' in uma.get("/jora/adapters").text


def test_a_month_by_line_and_stage(uma, store):
    again = replace(
        TRAINED, id="2", run="b", state="reused", seconds=0.5, device_seconds=0.0, hits=1, misses=0
    )
    failed = replace(TRAINED, id="3", stage="evaluate", state="failed", line="other", seconds=61.0)
    earlier = replace(TRAINED, id="4", line="archive", ended="2026-01-31T23:59:59Z")
    write(store, TRAINED, again, failed, earlier)
    page = uma.get("/jora/costs").text
    assert "<h1>Costs of 2026-02</h1>" in page and "archive" not in page
    assert re.findall(r'href="/jora/adapters/(\w+)">', page) == ["other", "tiny"]
    assert "2 runs" in page
    rows = cells(page)
    amounts = ["1:07 h", "2:00 h", "3.0 MB", "4.0 kB", "6.0 GB", "24 B"]
    assert rows[-1] == ["train", "2 (1 up to date)", "1 of 2", *amounts] and rows[-2][0] == "all stages"
    assert rows[2][:2] == ["evaluate", "1 (1 failed)"] and rows[2][3] == "1:01 min"
    assert re.findall(r'month=(\d{4}-\d\d)"( aria-current="true")?', page) == [
        ("2026-02", ' aria-current="true"'),
        ("2026-01", ""),
    ]
    assert "archive" in uma.get("/jora/costs?month=2026-01").text


def test_with_a_price_of_a_device_hour_it_is_told(uma, store, monkeypatch):
    write(store, TRAINED)
    assert "Price" not in uma.get("/jora/costs").text
    monkeypatch.setenv(PRICE, "2.25")
    assert cells(uma.get("/jora/costs").text)[-1][5] == "4.50"
    monkeypatch.setenv(PRICE, "dear")
    answer = uma.get("/jora/costs")
    assert answer.status_code == 409 and "JORA_DEVICE_HOUR_PRICE" in answer.text


def test_names_are_shown_and_never_run(uma, store):
    write(store, replace(TRAINED, line=SCRIPT, stage=f'"{SCRIPT}'))
    page = uma.get("/jora/costs").text
    assert SCRIPT not in page and "&lt;script&gt;" in page
    answer = uma.get(f"/jora/costs?month={quote(SCRIPT)}")
    assert answer.status_code == 404 and SCRIPT not in answer.text
    assert uma.get("/jora/costs?month=../../x").status_code == 404


def test_many_lines_go_on_further_pages(uma, store):
    write(store, *(replace(TRAINED, id=str(number), line=f"line{number:02}") for number in range(30)))
    first, second = (uma.get(f"/jora/costs?number={number}").text for number in (1, 2))
    assert first.count("<h2>") == 25 and second.count("<h2>") == 5 and "page 1 of 2" in first
    assert "line29" in second and "line29" not in first


def test_each_record_is_read_once_whenever_it_comes(store, tmp_path):
    spending, file = Spending(), month_file(store.home, "2026-02")
    write(store, TRAINED)
    assert spending.of_month("2026-02", [file])["tiny"].stages["train"].count == 1
    half = json.dumps(asdict(replace(TRAINED, id="2")))
    with file.open("a") as records:
        records.write(half[:50])
    assert spending.of_month("2026-02", [file])["tiny"].stages["train"].count == 1
    with file.open("a") as records:
        records.write(half[50:] + "\n")
    write(store, replace(TRAINED, id="3", state="killed"), replace(TRAINED, id="3", state="killed"))
    found = spending.of_month("2026-02", [file])["tiny"]
    total = found.rows()[0][1]
    assert (total.count, total.broken, len(found.runs)) == (3, 1, 1)
    file.write_text("")
    assert spending.of_month("2026-02", [file]) == {}


def test_of_two_records_of_a_stage_that_was_killed_at_its_end_all_pages_have_the_first(store):
    write(store, TRAINED, replace(TRAINED, state="killed", seconds=TRAINED.seconds / 2))
    file = month_file(store.home, "2026-02")
    assert of_run([file], TRAINED.run) == [TRAINED]
    total = Spending().of_month("2026-02", [file])["tiny"].stages["train"]
    assert (total.seconds, total.broken) == (TRAINED.seconds, 0)


def test_a_run_s_tab_tells_what_its_stages_took(uma, store, server):
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    write(store, TRAINED, replace(TRAINED, id="2", state="killed"), replace(TRAINED, id="3", run="other/run"))
    with create_session() as session:
        facts = {"run_type": "manual", "state": "success", "run_after": datetime(2026, 1, 31, tzinfo=UTC)}
        session.add(DagRun(dag_id="adapter_training", run_id="manual__1", **facts))
    try:
        page = uma.get("/jora/lineage?dag_id=adapter_training&run_id=manual__1").text
    finally:
        with create_session() as session:
            session.execute(delete(DagRun).where(DagRun.run_id == "manual__1"))
    assert cells(page)[-1][:5] == ["train", "2 (1 failed)", "0 of 2", "2:13 h", "4:00 h"]


def test_costs_are_those_of_all_machines_that_share(uma, store, s3, tmp_path, monkeypatch):
    monkeypatch.setenv(ARTIFACTS, s3)
    monkeypatch.setattr(pages, "_LOOK_SECONDS", 1e-9)
    write(store, TRAINED)
    share(store.home, SharedStore(s3))  # a record that is here and there counts once
    workers = [ArtifactStore(tmp_path / name) for name in ("one", "two")]
    for number, worker in enumerate(workers):
        write(worker, replace(TRAINED, id=f"of {number}", stage="evaluate"))
        share(worker.home, worker.shared)
        assert cells(uma.get("/jora/costs").text)[-1][:2] == ["evaluate", f"{number + 1}"]
    write(workers[0], replace(TRAINED, id="5", ended="2026-03-01T00:00:00Z", line="later"))
    share(workers[0].home, workers[0].shared)
    assert "<h1>Costs of 2026-03</h1>" in uma.get("/jora/costs").text
    page = uma.get("/jora/costs?month=2026-02").text
    assert [row[:2] for row in cells(page)[1:]] == [["all stages", "3"], ["train", "1"], ["evaluate", "2"]]
    assert "all machines that share" in page and "role=" not in page
    for ended, trained in ((TRAINED_AT, 1), (None, 2)):
        rows = cost_rows(ArtifactStore(store.home), TRAINED.run, TRAINED_AT, ended)
        assert {stage: each.count for stage, each in rows} == {"train": trained, "evaluate": 2}

    write(workers[1], replace(TRAINED, id="6"))
    share(workers[1].home, workers[1].shared)
    with monkeypatch.context() as hurried:
        hurried.setattr(pages, "_FETCH_SECONDS", -1)
        few = uma.get("/jora/costs?month=2026-02").text
    assert cells(few) == cells(page) and "1 files of records are still to be fetched" in few
    page = uma.get("/jora/costs?month=2026-02").text
    assert cells(page)[1][:2] == ["all stages", "4"]

    monkeypatch.setattr(home, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fsspec.filesystem("s3").clear_instance_cache()
    away = uma.get("/jora/costs?month=2026-02").text
    assert cells(away) == cells(page) and "did not answer" in away


def test_a_shared_month_is_not_asked_for_at_each_look(uma, store, tmp_path, monkeypatch):
    monkeypatch.setenv(ARTIFACTS, (tmp_path / "share").as_uri())
    write(store, TRAINED)
    share(store.home, SharedStore((tmp_path / "share").as_uri()))
    asked = []
    monkeypatch.setattr(pages.costs, "fetch", lambda *given: asked.append(given) or 0)
    for _ in range(5):
        assert uma.get("/jora/costs").status_code == 200
    assert len(asked) <= 2  # the time of a look may end between two


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (3599, "59:59 min"), (3661, "1:01 h")]
)
def test_durations(seconds, told):
    assert duration(seconds) == told


def test_sizes():
    assert [file_size(each) for each in (0, 999, 1000, 2.5e12)] == ["0 B", "999 B", "1.0 kB", "2.5 TB"]
