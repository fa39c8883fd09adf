"""Strangers, in a process of their own: each does one thing that hurts, again and again, until it is stopped.

Run it with the server's port and how many seconds to go on.
"""

import asyncio
import contextlib
import json
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode

FRAMES = 2_000
"""How much of one kind is sent before a breath."""
BREATH_SECONDS = 0.05
ROUND_SECONDS = 3.0
"""How long one of them goes on before it begins anew: whom the server does not listen to would hang for ever."""
HEADERS = b"X-Small: 1\r\n" * 20_000
LONG = ("\U0001f600" * 32_000, " " * 31_999 + "x", "1" * 32_000, "why " * 8_000)

Attack = Callable[[int], Awaitable[None]]


def _session(port: int) -> connect:
    return connect(f"ws://127.0.0.1:{port}/ws/session/bad-{random.randrange(20)}", proxy=None, max_size=None)


async def pings(port: int) -> None:
    """Pings, as fast as they go."""
    async with _session(port) as socket:
        for number in range(FRAMES):
            await socket.ping(str(number))


async def pongs(port: int) -> None:
    """Pongs that nobody asked for."""
    async with _session(port) as socket:
        for _ in range(FRAMES):
            await socket.pong()


async def empty_parts(port: int) -> None:
    """A message in parts that are all empty."""

    async def parts() -> AsyncIterator[str]:
        for _ in range(FRAMES):
            yield ""

    async with _session(port) as socket:
        await socket.send(parts())


async def long_messages(port: int) -> None:
    """The longest messages there may be, made of what patterns stumble over."""
    async with _session(port) as socket:
        for content in LONG:
            await socket.send(json.dumps({"type": "message", "content": content}))
            await socket.send('{"type": "cancel"}')
        await _hear(socket)


async def said_and_cancelled(port: int) -> None:
    """Messages that are taken back at once, pipelined."""
    async with _session(port) as socket:
        for number in range(FRAMES // 10):
            await socket.send(json.dumps({"type": "message", "content": f"never mind {number}"}))
            await socket.send('{"type": "cancel"}')
        await _hear(socket)


async def deaf(port: int) -> None:
    """Asks for long replies and reads none."""
    async with connect(f"ws://127.0.0.1:{port}/ws/session/deaf", proxy=None, max_queue=1) as socket:
        for _ in range(8):
            await socket.send("Write 5000 words")
        await asyncio.sleep(1)


async def not_text(port: int) -> None:
    """What is not UTF-8, with a close behind it."""
    async with _session(port) as socket:
        for frame in (Frame(Opcode.TEXT, b"\xff"), Frame(Opcode.CLOSE, b"\x03\xe8")):
            socket.transport.write(frame.serialize(mask=True))
        await socket.wait_closed()


async def small_frames(port: int) -> None:
    """Pings of the protocol's own, and nonsense, at full speed."""
    async with _session(port) as socket:
        for _ in range(FRAMES):
            await socket.send(random.choice(('{"type": "ping"}', "{", '{"type": "?"}')))


async def come_and_go(port: int) -> None:
    """Opens a session and leaves."""
    async with _session(port):
        pass


async def half_handshakes(port: int) -> None:
    """Connections that never ask."""
    writers = [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(20)]
    for writer in writers:
        writer.write(b"GET /ws/session/x HTTP/1.1\r\nHost: localhost\r\n")
    await asyncio.sleep(1)
    for writer in writers:
        writer.close()


async def large_heads(port: int) -> None:
    """Headers without end."""
    await _raw(port, b"GET /live HTTP/1.1\r\n" + HEADERS)


async def unread_pages(port: int) -> None:
    """The largest pages there are, of the longest session, and reads none of them."""
    request = b"GET /sessions/bad-1/events?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    writers = [(await asyncio.open_connection("127.0.0.1", port, limit=1024))[1] for _ in range(10)]
    for writer in writers:
        writer.write(request * 3)
    await asyncio.sleep(2)
    for writer in writers:
        writer.transport.abort()


ATTACKS: tuple[Attack, ...] = (
    pings,
    pongs,
    empty_parts,
    long_messages,
    said_and_cancelled,
    deaf,
    not_text,
    small_frames,
    come_and_go,
    half_handshakes,
    large_heads,
    unread_pages,
)


async def _hear(socket: ClientConnection) -> None:
    """Read for a moment what has come."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            while True:
                await socket.recv()


async def _raw(port: int, data: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    with contextlib.suppress(OSError):
        await writer.drain()
        await reader.read(1000)
    writer.close()


async def _again_and_again(attack: Attack, port: int, struck: Counter[str]) -> None:
    while True:
        with contextlib.suppress(OSError, WebSocketException, TimeoutError):
            async with asyncio.timeout(ROUND_SECONDS):
                await attack(port)
        struck[attack.__name__] += 1  # to be cut off in the middle of it is what it deserves
        await asyncio.sleep(BREATH_SECONDS)


async def main(port: int, seconds: float) -> None:
    """One of each, side by side; prints how often each struck."""
    struck: Counter[str] = Counter({attack.__name__: 0 for attack in ATTACKS})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as strangers:
            for attack in ATTACKS:
                strangers.create_task(_again_and_again(attack, port, struck))
    print(json.dumps(struck))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
