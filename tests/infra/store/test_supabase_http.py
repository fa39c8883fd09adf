"""The HTTP client on connections that died while nobody used them: a real server that closes them, or never answers."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from infra.store.supabase_http import ReconnectingClient

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HEAD_END = b"\r\n\r\n"


class Server:
    """Answers the first `answers` requests of each connection, and hangs up on the next; `connections` counts them."""

    def __init__(self) -> None:
        self.answers = 1
        self.connections = 0
        self.requests: list[bytes] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        try:
            for number in range(self.answers + 1):
                head = await reader.readuntil(HEAD_END)
                length = next(
                    (line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), b":0"
                )
                self.requests.append(await reader.readexactly(int(length.split(b":")[1])))
                if number < self.answers:
                    writer.write(OK)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A running one."""
    it = Server()
    listening = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    it.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
    async with listening:
        yield it


async def test_a_request_on_a_dead_connection_is_repeated_on_a_new_one(server: Server) -> None:
    """Once, at once, with its body; and nobody notices."""
    async with ReconnectingClient() as client:
        assert (await client.post(server.url, content=b"one")).text == "ok"
        assert (await client.post(server.url, content=b"two")).text == "ok"
    assert server.requests == [b"one", b"two", b"two"]
    assert server.connections == 2


async def test_what_fails_on_a_new_connection_is_not_repeated(server: Server) -> None:
    """A failure on a new connection is the server's: the caller's own retries are better informed."""
    server.answers = 0
    async with ReconnectingClient() as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(server.url, content=b"one")
    assert server.requests == [b"one"]


async def test_it_is_repeated_once_alone(server: Server) -> None:
    """Where the new connection dies as well, the failure is told."""
    async with ReconnectingClient() as client:
        await client.post(server.url, content=b"one")
        server.answers = 0
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(server.url, content=b"two")
    assert server.requests == [b"one", b"two", b"two"]
