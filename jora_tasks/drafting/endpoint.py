"""Replies from any endpoint that speaks OpenAI's chat completions.

The key is read from an environment variable, sent in the request's header and told nowhere else: no
message here repeats what a server says, since some servers repeat the key.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from jora_tasks.drafting.writers import Failed
from jora_tasks.errors import InputError, RunStopped

if TYPE_CHECKING:
    from jora_tasks.trainer.tokenizer import Message

NO_TEXT = "no text in the endpoint's reply"
REFUSED = "refused by the endpoint"

_TRIES = 6
_LONGEST_WAIT = 60.0  # seconds between two tries; a server that asks for more ends the run
_LONGEST_REPLY = 1 << 20  # bytes
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
_OF_THE_REQUEST = (400, 413, 422)


class EndpointWriter:
    """Asks an endpoint, several requests at a time, each again if the server is busy.

    Args:
      url: of the API, up to ``/v1``.
      model: its name there.
      key_env: environment variable that holds the key; None sends none.
      max_new_tokens: longest reply.
      concurrency: requests at a time.
      timeout: seconds without a byte after which a request is tried again.
      sleep: waits for so many seconds, in a way that `close` ends.

    Raises:
      InputError: if the address is none, or the variable is not set.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_env: str | None = None,
        max_new_tokens: int = 128,
        concurrency: int = 4,
        timeout: float = 120.0,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self._host = _checked_host(url)
        self._address = f"{url.rstrip('/')}/chat/completions"
        headers = {"Authorization": f"Bearer {_key(key_env)}"} if key_env else {}
        self.identity = {"endpoint": url.rstrip("/"), "model": model}
        self.at_once = concurrency * 4
        self._key_env = key_env
        self._request = {"model": model, "temperature": 0, "max_tokens": max_new_tokens}
        self._closed = threading.Event()
        self._sleep = sleep or self._closed.wait
        self._pool = ThreadPoolExecutor(concurrency)
        # no redirects: the key goes to the named host alone
        self._http = httpx.Client(
            headers=headers, timeout=timeout, follow_redirects=False, trust_env=not _is_local(self._host)
        )

    def reply(self, conversations: Sequence[list[Message]]) -> list[str | Failed]:
        """As `Writer.reply`.

        Raises:
          RunStopped: if the endpoint does not answer, or stays busy after several tries.
          InputError: if it refuses the key, the address, or every request, or answers with anything but chat
            completions.
        """
        waiting = [self._pool.submit(self._ask, messages) for messages in conversations]
        try:
            replies = [each.result() for each in waiting]
        finally:
            for each in waiting:
                each.cancel()
        if replies and all(each == Failed(REFUSED) for each in replies):
            raise InputError(
                f"The endpoint {self._host} refuses every request for model {self._request['model']!r}; "
                "check --endpoint and --model."
            )
        return replies

    def close(self) -> None:
        """End requests that are waiting, and the connections."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._http.close()

    def _ask(self, messages: list[Message]) -> str | Failed:
        reason = "was not waited for"
        for attempt in range(_TRIES):
            if self._closed.is_set():
                break
            wait = min(0.5 * 2**attempt, _LONGEST_WAIT) * random.uniform(0.75, 1.25)  # noqa: S311
            try:
                status, headers, body = self._send(messages)
            except httpx.HTTPError as error:
                reason = f"does not answer ({type(error).__name__})"
            else:
                if status == 200:
                    return self._content(body)
                self._check(status)
                if status in _OF_THE_REQUEST:
                    return Failed(REFUSED)
                reason = f"answers with status {status}"
                asked = _retry_after(headers)
                if asked is not None and asked > _LONGEST_WAIT:
                    reason += f" and asks to wait for {asked:.0f} s"
                    break
                wait = wait if asked is None else max(asked, 0.0)
            if attempt + 1 < _TRIES:
                self._sleep(wait)
        raise RunStopped(
            f"The endpoint {self._host} {reason}; what was drafted so far is kept, and the same command goes "
            "on from there."
        )

    def _send(self, messages: list[Message]) -> tuple[int, httpx.Headers, bytes]:
        with self._http.stream("POST", self._address, json={**self._request, "messages": messages}) as got:
            body = b""
            try:
                for part in got.iter_bytes():
                    body += part
                    if len(body) > _LONGEST_REPLY:
                        return got.status_code, got.headers, b""
            except httpx.DecodingError:  # not of the encoding that its header names
                return got.status_code, got.headers, b""
            return got.status_code, got.headers, body

    def _content(self, body: bytes) -> str | Failed:
        """The model's text; what is no chat completion at all says nothing of the chunk, and ends the run."""
        try:
            value: Any = json.loads(body)
            content = value["choices"][0]["message"].get("content")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise InputError(
                f"The endpoint {self._host} answers with what is no chat completion; check --endpoint. What "
                "was drafted so far is kept, and the same command goes on from there."
            ) from None
        return content if isinstance(content, str) else Failed(NO_TEXT)

    def _check(self, status: int) -> None:
        """Refuse what no further try mends."""
        if status in (401, 403):
            remedy = (
                f"check the key in {self._key_env}" if self._key_env else "name its variable with --key-env"
            )
            raise InputError(f"The endpoint {self._host} asks for a key that it knows ({status}); {remedy}.")
        if status in (404, 405) or 300 <= status < 400 or (status < 400):
            raise InputError(
                f"The endpoint {self._host} has no chat completions at that address, or no model "
                f"{self._request['model']!r} ({status}); check --endpoint and --model."
            )
        if status not in (*_AGAIN, *_OF_THE_REQUEST):
            raise InputError(
                f"The endpoint {self._host} answers with status {status}; check --endpoint and --model."
            )


def _checked_host(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InputError(
            f"--endpoint {url!r} is no address; give one as in http://localhost:8000/v1."
        ) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"--endpoint {url!r} is no address; give one as in http://localhost:8000/v1.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            "--endpoint must be an address without user, password or query; name the variable of a key with "
            "--key-env."
        )
    return parts.hostname if port is None else f"{parts.hostname}:{port}"


def _is_local(host: str) -> bool:
    """Whether a proxy of the environment is none of its business."""
    return re.fullmatch(r"(localhost|127\.0\.0\.1|::1)(:\d+)?", host) is not None


def _key(name: str) -> str:
    key = os.environ.get(name, "").strip()
    if not key:
        raise InputError(f"--key-env {name}: that environment variable is not set; export the key in it.")
    if not key.isascii() or not key.isprintable():
        raise InputError(f"--key-env {name}: its value is no key (a sign that no header can hold).")
    return key


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds that ``Retry-After`` asks for, as a number or a date (RFC 9110, 10.2.3)."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value[:9])
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError):
        return None
