"""A port of loopback that leads to another one, and can be shut: what is behind it is away then."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Self


class Proxy:
    """Passes connections on to ``127.0.0.1:target`` as long as the block lasts.

    Attributes:
      port: where it listens.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._shut = self._ended = False
        self._sign, self._seen = b"", threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._listener.close()
        self._hang_up()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Within the block every connection is cut, and each new one at once."""
        self._shut_now()
        try:
            yield
        finally:
            self.open()

    def shut_at(self, sign: bytes) -> threading.Event:
        """Shut when a client sends data with this in it, before it is passed on; set as soon as that was."""
        self._sign, self._seen = sign, threading.Event()
        return self._seen

    def open(self) -> None:
        """Let connections through again."""
        self._shut = False

    def _accept(self) -> None:
        while not self._ended:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._shut:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target), 10)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            self._open |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self._sign and self._sign in data:
                    self._sign = b""
                    self._shut_now()
                    self._seen.set()
                    break
                sink.sendall(data)
        for each in (source, sink):
            _close(each)
            self._open.discard(each)

    def _shut_now(self) -> None:
        self._shut = True
        self._hang_up()

    def _hang_up(self) -> None:
        for each in list(self._open):
            _close(each)


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
