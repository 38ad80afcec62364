"""Nothing without a login; what each role sees; headers and sandboxes; injection."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest

from jora_tasks.airflow.pages.app import application
from tests.lines import HOSTILE_DOCUMENTS, SCRIPT

# Addresses of every page; see `fill`.
PATHS = (
    "/",
    "/adapters",
    "/adapters/tiny",
    "/adapters/tiny/versions/3",
    "/adapters/tiny/versions/3/promote",
    "/adapters/tiny/rollback",
    "/costs",
    "/lineage?dag_id=adapter_training&run_id=x",
    "/artifacts/adapter/{adapter}",
    "/artifacts/evaluation/{evaluation}/report",
    "/artifacts/evaluation/{evaluation}/report.html",
    "/artifacts/corpus/{corpus}/documents",
    "/pages.css",
    "/pages.js",
    "/theme.js",
)


@pytest.fixture
def fill(newest):
    """Puts keys into an address."""
    return lambda path: (
        "/jora" + path.format(**{kind: newest(kind).key for kind in ("adapter", "evaluation", "corpus")})
    )


def test_every_page_is_among_those_tried():
    def shape(path: str) -> str:
        return re.sub(r"\{\w+\}", "*", path)

    tried = {re.sub(r"tiny|(?<=versions/)3|(?<=s/)(adapter|evaluation)(?=/)", "*", path) for path in PATHS}
    tried = {shape(path.partition("?")[0]) for path in tried}
    routes = {shape(route.path) for route in application().routes if "GET" in route.methods}
    assert routes == tried


@pytest.mark.parametrize("path", PATHS)
def test_without_a_login_browsers_are_sent_to_it_and_others_get_nothing(stranger, fill, path):
    answer = stranger.get(fill(path))
    assert answer.status_code == 302
    assert answer.headers["location"] == f"/api/v2/auth/login?next={quote(fill(path), safe='')}"
    assert answer.content == b""
    answer = stranger.get(fill(path), headers={"Accept": "*/*"})
    assert (answer.status_code, answer.text) == (401, "Not authenticated")


@pytest.mark.parametrize("path", ["/jora/adapters/tiny/versions/3/promote", "/jora/adapters/tiny/rollback"])
def test_without_a_login_nothing_moves(stranger, path):
    answer = stranger.post(path, data={"token": "x", "champion": 0, "reason": "r"})
    assert (answer.status_code, answer.text) == (401, "Not authenticated")


def test_a_forged_login_is_none(stranger):
    stranger.cookies.set("_token", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1bWEiLCJyb2xlIjoiYWRtaW4ifQ.")
    answer = stranger.get("/jora/adapters")
    assert answer.status_code in (302, 401, 403)
    assert "tiny" not in answer.text


def test_a_viewer_reads_and_is_offered_nothing_else(vic, fill):
    for path in PATHS:
        answer = vic.get(fill(path))
        if path.endswith(("promote", "rollback")):
            assert answer.status_code == 403
            assert "editing and triggering" in answer.text
        elif not path.startswith("/lineage"):
            assert answer.status_code == 200, path
            assert "promote" not in answer.text.lower(), path


def test_who_may_edit_is_offered_promotion(uma):
    assert uma.get("/jora/adapters/tiny").text.count("/promote") == 3


@pytest.mark.parametrize("path", [*PATHS, "/nothing", "/adapters/none", "/adapters/tiny/versions/x"])
def test_every_answer_says_what_it_may_do(uma, fill, path):
    headers = uma.get(fill(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "SAMEORIGIN"
    assert headers["referrer-policy"] == "same-origin"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'self'" in policy
    assert "unsafe-inline" not in policy.replace("style-src 'unsafe-inline'", "")


def test_a_report_is_a_sandbox_without_scripts(uma, fill):
    answer = uma.get(fill("/artifacts/evaluation/{evaluation}/report.html"))
    assert SCRIPT in answer.text  # the file as it is
    directives = [each.strip() for each in answer.headers["content-security-policy"].split(";")]
    assert "sandbox" in directives and "default-src 'none'" in directives
    assert not any(each.startswith("script-src") for each in directives)
    frame = uma.get(fill("/artifacts/evaluation/{evaluation}/report")).text
    assert re.search(r"<iframe [^>]*\bsandbox src=", frame)


@pytest.mark.parametrize(
    "path",
    [
        "/adapters/tiny",
        "/adapters/tiny/versions/2",
        "/adapters/tiny/versions/2/promote",
        "/artifacts/adapter/{adapter}",
        "/artifacts/corpus/{corpus}",
        "/artifacts/corpus/{corpus}/documents",
        f"/artifacts/corpus/{{corpus}}/documents?search={quote(SCRIPT)}",
        f"/adapters/{quote(SCRIPT, safe='')}",
        f"/adapters/tiny?after={quote(SCRIPT)}",
        f"/adapters/tiny?measure={quote(SCRIPT)}",
        f"/artifacts/{quote(SCRIPT, safe='')}/x",
        f"/lineage?dag_id={quote(SCRIPT)}&run_id={quote(SCRIPT)}",
    ],
)
def test_names_are_shown_and_never_run(uma, fill, path):
    text = uma.get(fill(path)).text
    assert "<h1>" in text
    scripts = re.findall(r"<script[^>]*>", text)
    assert all(re.fullmatch(r'<script src="/jora/(theme|pages)\.js"( defer)?>', each) for each in scripts)
    assert "<img" not in text
    assert 'href="javascript:' not in text
    assert not re.search(r"<[^>]*\son\w+=", text)  # handlers
    assert "1337" not in text  # a template in a name


def test_all_documents_that_made_an_adapter_are_found(uma, fill):
    first = uma.get(fill("/artifacts/corpus/{corpus}/documents")).text
    assert "120 documents, page 1 of 3" in first
    for name in HOSTILE_DOCUMENTS:
        assert name not in first or "<" not in name
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.md" in first
    last = uma.get(fill("/artifacts/corpus/{corpus}/documents?number=3")).text
    assert "guide/00114.md" in last and "guide/00001.md" not in last
    found = uma.get(fill("/artifacts/corpus/{corpus}/documents?search=GUIDE/0011")).text
    assert "5 documents, page 1 of 1" in found
    none = uma.get(fill("/artifacts/corpus/{corpus}/documents?search=nowhere")).text
    assert "No document has that" in none


@pytest.mark.parametrize(
    "path",
    [
        "/artifacts/evaluation/..%2f..%2f..%2fmlflow/report.html",
        "/artifacts/..%2fmlflow/mlflow.db/report.html",
        "/artifacts/%2e%2e/%2e%2e/report.html",
        "/artifacts/evaluation/%2fetc%2fpasswd/report.html",
        "/artifacts/adapter/{adapter}/report.html",
        "/artifacts/corpus/..%2f{corpus}/documents",
    ],
)
def test_no_other_file_is_shown(uma, fill, path):
    assert uma.get(fill(path)).status_code == 404


def test_a_report_that_leads_elsewhere_or_was_altered_is_not_shown(uma, fill, newest, tmp_path):
    path, report = (
        fill("/artifacts/evaluation/{evaluation}/report.html"),
        newest("evaluation").file("report.html"),
    )
    content = report.read_text()
    report.write_text(content + "<p>more")
    answer = uma.get(path)
    assert answer.status_code == 409 and "was altered" in answer.text and "<p>more" not in answer.text
    report.unlink()
    (tmp_path / "secret.html").write_text(content)
    report.symlink_to(tmp_path / "secret.html")
    assert uma.get(path).status_code == 404
