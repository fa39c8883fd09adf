"""What coming back costs: one long turn again, and a thousand clients at the same moment."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import cast

from tests.bench.guests import token_of
from tests.bench.load import connect, handshake
from tests.support.client import ChatClient

WORDS = 2000
TIMES = 50
RESUMED = b'"resumed":true'


async def long_turn(port: int, cpu_seconds: Callable[[], float]) -> float:
    """Milliseconds of server CPU to resume a turn of `WORDS` tokens from its beginning, handshake and all."""
    url, token = f"ws://127.0.0.1:{port}", token_of("long")
    async with await ChatClient.connect(url, "long", token=token) as client:
        ready = await client.until("ready")
        await client.say(f"Write {WORDS} words")
        await client.until("done")
        before = cpu_seconds()
        for _ in range(TIMES):
            again = await ChatClient.connect(url, "long", token=token, epoch=str(ready["epoch"]), after="1")
            assert (await again.next())["resumed"]
            await again.until("done")
            assert len(again.text().split()) == WORDS
            again.websocket.transport.abort()
        return (cpu_seconds() - before) * 1e3 / TIMES


class Returning(asyncio.Protocol):
    """One client that comes back: it opens its socket, and is through when it is told that it may go on."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._head = b""
        self.resumed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(handshake(self._path))

    def data_received(self, data: bytes) -> None:
        """Look for the word."""
        self._head += data[: 4096 - len(self._head)]
        if RESUMED in self._head and not self.resumed.done():
            self.resumed.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail whoever waits."""
        if not self.resumed.done():
            self.resumed.set_exception(ConnectionError(f"not resumed: {self._head[-200:]!r}"))


async def everybody_at_once(port: int, count: int) -> float:
    """Seconds until 99 of 100 clients that lost their connections together have theirs back, and their stream."""
    loop = asyncio.get_running_loop()
    sockets = await connect(port, count)
    for socket in sockets:
        socket.start("Write 20 words", 1)
    await asyncio.gather(*(socket.finished for socket in sockets))
    for socket in sockets:
        socket.transport.abort()
    await asyncio.sleep(0.5)
    began = time.monotonic()
    took: list[float] = []

    async def come_back(number: int) -> None:
        path = f"/ws/session/bench-{number}?epoch=1&after=1"
        transport, protocol = await loop.create_connection(partial(Returning, path), "127.0.0.1", port)
        await protocol.resumed
        took.append(time.monotonic() - began)
        transport.abort()

    await asyncio.gather(*(come_back(number) for number in range(count)))
    took.sort()
    return took[int(len(took) * 0.99)]
