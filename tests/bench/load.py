"""A fast client: many sockets, one process, no parsing beyond what is measured.

It must cost less than the server it drives, so it looks for two byte strings in what arrives and decodes nothing.
"""

import asyncio
import os
import time
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from tests.bench.guests import token_of
from tests.bench.lateness import Arrivals

TOKEN, DONE, READY = b'"token"', b'"done"', b'"ready"'
OVERLAP = max(len(TOKEN), len(DONE), len(READY)) - 1
"""Bytes kept from one read to the next: a string looked for may be cut in two."""


@dataclass
class Result:
    """What one round of load saw; times in seconds."""

    first_token: list[float] = field(default_factory=list)
    elapsed: float = 0.0
    arrivals: list[Arrivals] = field(default_factory=list)
    """Each socket's, where it was asked to keep them."""


def handshake(path: str) -> bytes:
    """The request that opens a WebSocket."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: Bearer {token_of(path.partition('?')[0])}\r\n\r\n"
    ).encode()


class Socket(asyncio.Protocol):
    """One client: it opens a WebSocket, and then asks `turns` times for a reply."""

    def __init__(self, path: str) -> None:
        self._path = path
        loop = asyncio.get_running_loop()
        self.open: asyncio.Future[None] = loop.create_future()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.finished: asyncio.Future[None] = loop.create_future()
        self.first_token: list[float] = []
        self._tail = b""
        self._asked = 0.0
        self._turns = 0
        self._message = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(handshake(self._path))

    def data_received(self, data: bytes) -> None:
        """Note the first token, and the end, of the turn that runs."""
        if not self._turns:
            if not self.open.done() and b"\r\n\r\n" in self._tail + data:
                assert (self._tail + data).startswith(b"HTTP/1.1 101"), data[:200]
                self.open.set_result(None)
            if READY in self._tail + data and not self.ready.done():
                self.ready.set_result(None)
            self._tail = data[-OVERLAP:]
            return
        data = self._tail + data
        if self._asked and TOKEN in data:
            self.first_token.append(time.monotonic() - self._asked)
            self._asked = 0.0
        if DONE in data:
            self._turns -= 1
            self._tail = b""
            if self._turns:
                self._ask()
            elif not self.finished.done():
                self.finished.set_result(None)
        else:
            self._tail = data[-OVERLAP:]

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail whoever waits."""
        for waiting in (self.open, self.finished):
            if not waiting.done():
                waiting.set_exception(ConnectionError("the server closed a socket"))

    def start(self, message: str, turns: int) -> None:
        """Ask the first time; each reply's end asks again."""
        payload = message.encode()
        assert len(payload) < 126
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self._message = bytes([0x81, 0x80 | len(payload)]) + mask + masked
        self._turns = turns
        self._tail = b""
        self._ask()

    def _ask(self) -> None:
        self._asked = time.monotonic()  # the loop's own is whole milliseconds, and as old as its step
        self.transport.write(self._message)


class Keeping(Socket):
    """A client that also keeps what it reads, and when, for whoever looks into it afterwards."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.arrivals: Arrivals = []

    def data_received(self, data: bytes) -> None:
        """Keep it."""
        self.arrivals.append((time.monotonic(), data))
        super().data_received(data)


async def connect(port: int, count: int, kind: type[Socket] = Socket) -> list[Socket]:
    """Open so many sockets, each on a session of its own."""
    loop = asyncio.get_running_loop()
    sockets: list[Socket] = []
    for start in range(0, count, 50):
        batch = [
            loop.create_connection(partial(kind, f"/ws/session/bench-{number}"), "127.0.0.1", port)
            for number in range(start, min(start + 50, count))
        ]
        sockets += [protocol for _, protocol in await asyncio.gather(*batch)]
        await asyncio.gather(*(socket.open for socket in sockets[start:]))
    return sockets


async def drive(sockets: list[Socket], words: int, turns: int, spread: float) -> Result:
    """Have every socket take its turns, their starts spread over so many seconds; return when all are done."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number, socket in enumerate(sockets):
        loop.call_later(spread * number / len(sockets), socket.start, f"Write {words} words", turns)
    await asyncio.gather(*(socket.finished for socket in sockets))
    result = Result(elapsed=loop.time() - began)
    for socket in sockets:
        result.first_token += socket.first_token
        if isinstance(socket, Keeping):
            result.arrivals.append(socket.arrivals)
        socket.transport.abort()
    return result
