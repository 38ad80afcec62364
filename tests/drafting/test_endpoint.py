"""Against a real HTTP server on loopback."""

import email.utils
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jora_tasks.drafting.drafts import DUPLICATE, IN_QUESTION, NOT_IN_CHUNK
from jora_tasks.drafting.endpoint import NO_TEXT, REFUSED, EndpointWriter
from jora_tasks.drafting.writers import Failed
from jora_tasks.errors import InputError, RunStopped
from retrieval.questions import read_questions

KEY = "sk-very-secret"
MESSAGES = [{"role": "user", "content": "Hello"}]


def said(text):
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


class Server:
    """Gives the answers of a function of (request number, body), and keeps what was asked."""

    def __init__(self):
        self.answer = lambda number, body: said("Hi")
        self.asked, self.headers = [], []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.asked)
                    outer.asked.append((self.path, body))
                    outer.headers.append(dict(self.headers))
                status, headers, text = outer.answer(number, body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                content = text if isinstance(text, bytes) else text.encode()
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def server():
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def writer(server, monkeypatch):
    monkeypatch.setenv("THE_KEY", KEY)
    made, waits = [], []

    def make(**settings):
        made.append(EndpointWriter(server.url, "m", key_env="THE_KEY", sleep=waits.append, **settings))
        made[-1].waits = waits
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_the_request_and_the_reply(server, writer):
    assert writer(max_new_tokens=7).reply([MESSAGES] * 3) == ["Hi"] * 3
    path, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["messages"], body["max_tokens"], body["temperature"]) == ("m", MESSAGES, 7, 0)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_replies_keep_the_order_of_requests(server, writer):
    def slow_at_first(number, body):
        time.sleep(0.1 if body["messages"][0]["content"] == "0" else 0)
        return said(body["messages"][0]["content"])

    server.answer = slow_at_first
    texts = [str(i) for i in range(12)]
    assert writer().reply([[{"role": "user", "content": text}] for text in texts]) == texts


def test_a_busy_server_is_asked_again_when_it_says(server, writer):
    later = email.utils.formatdate(time.time() + 30, usegmt=True)
    busy = [(429, {"Retry-After": "7"}, ""), (503, {"Retry-After": later}, ""), (500, {}, "")]
    server.answer = lambda number, body: busy[number] if number < 3 else said("Hi")
    asking = writer()
    assert asking.reply([MESSAGES]) == ["Hi"]
    assert asking.waits[0] == 7 and 25 < asking.waits[1] < 31 and 1 < asking.waits[2] < 3


def test_tries_are_bounded_and_so_are_waits(server, writer):
    server.answer = lambda number, body: (429, {}, "")
    with pytest.raises(RunStopped, match="answers with status 429; what was drafted so far is kept"):
        writer().reply([MESSAGES])
    assert len(server.asked) == 6
    server.asked.clear()
    server.answer = lambda number, body: (429, {"Retry-After": "3600"}, "")
    with pytest.raises(RunStopped, match="asks to wait for 3600 s"):
        writer().reply([MESSAGES])
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, body)
        for body in (
            "",
            "<html>",
            b"\xff\xfe",
            "[]",
            "{}",
            '{"choices": []}',
            '{"choices": [{"message": "Hi"}]}',
            "[" * 9999,
            said("x" * (1 << 20))[2],
        )
    ]
    + [({"Content-Encoding": "gzip"}, said("Hi")[2])],
    ids=range(10),
)
def test_what_is_no_chat_completion_ends_the_run(server, writer, headers, body):
    good = [{"role": "user", "content": "good"}]
    server.answer = lambda number, asked: (
        (200, headers, body) if asked["messages"] == MESSAGES else said("Hi")
    )
    with pytest.raises(InputError, match=r"answers with what is no chat completion; check --endpoint\."):
        writer().reply([good, MESSAGES])


def test_a_reply_without_text_is_told_from_others(server, writer):
    empty = (200, {}, '{"choices": [{"message": {"content": null}}]}')
    server.answer = lambda number, asked: empty if asked["messages"] != MESSAGES else said("Hi")
    other = [{"role": "user", "content": "other"}]
    assert writer().reply([MESSAGES, other]) == ["Hi", Failed(NO_TEXT)]


def test_one_refused_request_is_told_and_all_of_them_are_an_error(server, writer):
    server.answer = lambda number, asked: (400, {}, "") if asked["messages"] != MESSAGES else said("Hi")
    other = [{"role": "user", "content": "other"}]
    assert writer().reply([MESSAGES, other]) == ["Hi", Failed(REFUSED)]
    with pytest.raises(InputError, match="refuses every request for model 'm'"):
        writer().reply([other, other])


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "check the key in THE_KEY"), (404, "check --endpoint and --model"), (302, "no chat completions")],
)
def test_what_no_try_mends_is_an_input_error_without_the_key(server, writer, status, message):
    server.answer = lambda number, body: (status, {"Location": server.url}, f"bad key {KEY}")
    with pytest.raises(InputError, match=message) as caught:
        writer().reply([MESSAGES])
    assert KEY not in str(caught.value)
    assert len(server.asked) == 1


def test_nobody_there():
    waits = []
    asking = EndpointWriter("http://127.0.0.1:9/v1", "m", sleep=waits.append)
    with pytest.raises(RunStopped, match=r"127\.0\.0\.1:9 does not answer \(ConnectError\)"):
        asking.reply([MESSAGES])
    asking.close()
    assert len(waits) == 5 and sum(waits) < 25


def test_closing_ends_the_waits(server):
    server.answer = lambda number, body: (503, {"Retry-After": "50"}, "")
    asking = EndpointWriter(server.url, "m")
    threading.Timer(0.3, asking.close).start()
    started = time.monotonic()
    with pytest.raises(RunStopped):
        asking.reply([MESSAGES])
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    "url", ["x", "ftp://h/v1", "http://", "http://u:p@h/v1", "http://h/v1?key=1", "http://h:x/"]
)
def test_addresses_that_are_none_or_hold_secrets_are_refused(url):
    with pytest.raises(InputError, match="--endpoint") as caught:
        EndpointWriter(url, "m")
    assert "u:p" not in str(caught.value)


def test_a_key_that_is_not_there_or_none(monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(InputError, match="--key-env NO_KEY: that environment variable is not set"):
        EndpointWriter("http://h/v1", "m", key_env="NO_KEY")
    monkeypatch.setenv("NO_KEY", "a\nHost: b")
    with pytest.raises(InputError, match="is no key") as caught:
        EndpointWriter("http://h/v1", "m", key_env="NO_KEY")
    assert "Host" not in str(caught.value)


def test_the_command_drafts_with_an_endpoint_and_writes_its_key_nowhere(
    server, questions_command, home, tmp_path, monkeypatch
):
    def answer(number, body):
        shown = body["messages"][-1]["content"]
        if body["messages"][0]["content"].startswith("Answer"):
            return said("No idea.")
        name = shown.split("## ")[-1].split("\n")[0]
        value = shown.split("Default: ")[-1].strip()
        return said(f"Question: What is the default of {name}?\nAnswer: {value}")

    monkeypatch.setenv("THE_KEY", KEY)
    output = tmp_path / "drafted" / "questions.jsonl"
    options = ("--output", output, "--endpoint", server.url, "--model", "m", "--key-env", "THE_KEY", "--json")
    refused = questions_command(*options)
    assert isinstance(refused.exception, InputError) and "its folder does not exist" in str(refused.exception)
    output.parent.mkdir()
    server.answer = lambda number, body: (200, {}, "<html>")
    assert "is no chat completion" in str(questions_command(*options).exception)
    server.answer = answer
    ran = questions_command(*options)  # nothing was taken for attempted
    done = json.loads(ran.stdout)
    assert done["kept"] >= 10 and set(done["refused"]) <= {DUPLICATE, IN_QUESTION, NOT_IN_CHUNK}
    questions = read_questions(output)
    assert len(questions) == done["kept"]
    for question in questions:
        assert question.answers[0] in question.evidence[0].text and question.group == "guide.md"
    for path in (*tmp_path.rglob("*"), *home.rglob("*")):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
    assert KEY not in ran.output
