"""Airflow on SQLite, which takes one writer at a time: patience for others, and turns in the API server.

The API server writes its audit log in its event loop, and there waits for the database's lock. A request that
has the lock cannot finish meanwhile: both stand still until the wait is over, and then one is refused. So
requests that write come one after the other. What other processes write ends by itself.
"""

from __future__ import annotations

import asyncio
from typing import Any

CONNECT = {"timeout": 60.0}
"""Arguments of a connection: seconds that it waits for another's transaction.

After 5, the default, a scheduler that many triggers hold up would give up and end.
"""

# With `CONNECT`'s it is less than a client waits, so that it hears what became of its request.
_PATIENCE_SECONDS = 20.0
_READING = ("GET", "HEAD", "OPTIONS")
_BUSY = (
    b'{"detail": "Airflow has been busy with other requests all the while, and did nothing of this one; '
    b'send it again, or fewer at a time."}'
)


class WritersInTurn:
    """ASGI middleware: of the requests that may write to the database, one at a time, in their order.

    One whose turn does not come is answered with status 503, and nothing of it is done.
    """

    def __init__(self, app: Any, own: str, patience: float = _PATIENCE_SECONDS) -> None:
        """Put requests of an app in turn.

        Args:
          own: prefix of paths that do not write to Airflow's database.
          patience: seconds that a request waits.
        """
        self._app, self._own, self._patience = app, own, patience
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        writes = scope["type"] == "http" and scope["method"] not in _READING
        if not writes or scope["path"].startswith(f"{self._own}/"):
            await self._app(scope, receive, send)
            return
        receive = await _received(receive)  # a client that is slow with it keeps no one waiting
        try:
            async with asyncio.timeout(self._patience):
                await self._turn.acquire()
        except TimeoutError:
            headers = [(b"content-type", b"application/json"), (b"retry-after", b"5")]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": _BUSY})
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._turn.release()


async def _received(receive: Any) -> Any:
    """What gives again the messages of a request's body, all of which have come."""
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())

    async def again() -> Any:
        return messages.pop(0) if messages else await receive()

    return again
