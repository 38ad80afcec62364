"""Requests to Airflow's API server that write, one at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from jora_tasks.airflow.sqlite import WritersInTurn


class Server:
    """An app that takes its time, and knows how many requests were in it at once."""

    def __init__(self) -> None:
        self.most = self.inside = 0
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        await asyncio.sleep(0.05)
        self.inside -= 1
        if scope["path"] == "/fails":
            raise RuntimeError("as asked")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def parts(count: int = 3, pause: float = 0) -> Any:
    for number in range(count):
        await asyncio.sleep(pause)
        yield f"{number}".encode()


def all_at_once(server: Server, *requests: tuple[str, str], patience: float = 60) -> list[httpx.Response]:
    async def ask() -> list[Any]:
        transport = httpx.ASGITransport(WritersInTurn(server, "/jora", patience), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            calls = [client.request(method, path, content=parts()) for method, path in requests]
            return await asyncio.gather(*calls)

    return asyncio.run(ask())


def test_requests_that_write_come_one_after_the_other_with_their_bodies():
    server = Server()
    answers = all_at_once(server, *[("POST", "/api"), ("PATCH", "/execution"), ("DELETE", "/api")] * 3)
    assert [answer.status_code for answer in answers] == [200] * 9
    assert (server.most, server.bodies) == (1, [b"012"] * 9)


def test_reading_and_our_own_pages_wait_for_no_one():
    server = Server()
    all_at_once(server, ("GET", "/api"), ("POST", "/api"), ("POST", "/jora/promote"), ("HEAD", "/"))
    assert server.most == 4


def test_the_turn_passes_on_from_a_request_that_fails():
    answers = all_at_once(Server(), ("POST", "/fails"), ("POST", "/api"))
    assert [answer.status_code for answer in answers] == [500, 200]


def test_one_whose_turn_does_not_come_is_told_and_not_done():
    server = Server()
    answers = all_at_once(server, ("POST", "/api"), ("POST", "/api"), patience=0.01)
    assert [answer.status_code for answer in answers] == [200, 503]
    assert "did nothing of this one; send it again" in answers[1].json()["detail"]
    assert answers[1].headers["retry-after"] == "5"
    assert len(server.bodies) == 1


def test_a_client_that_is_slow_with_its_request_keeps_no_one_waiting():
    async def ask() -> None:
        transport = httpx.ASGITransport(WritersInTurn(Server(), "/jora"))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            slow = asyncio.create_task(client.post("/api", content=parts(2, pause=3600)))
            await asyncio.sleep(0.01)
            assert (await client.post("/api")).status_code == 200
            slow.cancel()

    asyncio.run(asyncio.wait_for(ask(), 60))
