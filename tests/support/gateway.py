"""A gateway with bad days, in front of a real Supabase: it passes requests on, unless a test says otherwise."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

from tests.support.supabase import Supabase

BAD_GATEWAY = (
    b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 37\r\nConnection: close\r\n\r\n"
    b"<html><h1>502 Bad Gateway</h1></html>"
)


@dataclass(frozen=True)
class Answer:
    """Answer with these bytes, and pass nothing on."""

    raw: bytes


@dataclass(frozen=True)
class Cut:
    """Pass the request on, which is done; of its answer send so much, and hang up."""

    after_bytes: int


def too_many(retry_after: str) -> Answer:
    """HTTP 429, as Supabase's gateway sends it."""
    body = b'{"message":"API rate limit exceeded"}'
    head = f"HTTP/1.1 429 Too Many Requests\r\nRetry-After: {retry_after}\r\nContent-Length: {len(body)}\r\n"
    return Answer(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + body)


@dataclass
class Gateway:
    """The next requests whose path begins with `only` meet `weather`, one entry each; `seen` keeps what came."""

    url: str = ""
    only: str = "/"
    weather: deque[Answer | Cut] = field(default_factory=deque)
    seen: list[tuple[float, str]] = field(default_factory=list)

    async def serve(self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request of one connection; each has its own."""
        with closing(writer), suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            method, path, _ = head.split(b" ", 2)
            length = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
            )
            body = await reader.readexactly(length)
            self.seen.append((asyncio.get_running_loop().time(), f"{method.decode()} {path.decode()}"))
            bad = path.decode().startswith(self.only) and self.weather
            today = self.weather.popleft() if bad else None
            writer.write(today.raw if isinstance(today, Answer) else await self._pass_on(target, head, body, today))
            await writer.drain()

    async def _pass_on(self, target: str, head: bytes, body: bytes, cut: Cut | None) -> bytes:
        to = urlsplit(target)
        reader, writer = await asyncio.open_connection(to.hostname, to.port)
        lines = [line for line in head.rstrip().split(b"\r\n") if not line.lower().startswith(b"connection:")]
        with closing(writer):
            writer.write(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + body)
            answer = await reader.read(-1)
        if cut:
            return answer[: cut.after_bytes]
        # The client must not send its next request into a connection that is about to be closed.
        return answer.replace(b"Connection: keep-alive", b"Connection: close", 1)


@pytest.fixture
async def gateway(supabase: Supabase) -> AsyncIterator[Gateway]:
    """A gateway in front of the Supabase under test."""
    if not supabase.url.startswith("http://127.0.0.1"):
        pytest.skip("the gateway speaks plain HTTP to a Supabase on this machine")
    async with a_gateway(supabase.url) as running:
        yield running


@asynccontextmanager
async def a_gateway(target: str) -> AsyncIterator[Gateway]:
    """A gateway to the Supabase at `target`, on a port of its own."""
    gateway = Gateway()
    server = await asyncio.start_server(lambda r, w: gateway.serve(target, r, w), "127.0.0.1", 0)
    gateway.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield gateway
