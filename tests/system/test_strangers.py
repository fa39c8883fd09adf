"""Whatever a stranger sends costs a stranger's share: each attack meets its bound, and a polite visitor is answered."""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

import chat.web.http
from chat.tools.registry import Registry, ToolError, tool
from chat.web.connection import MOST_IDLE_FRAMES
from chat.web.http import MOST_REQUEST_BYTES, HttpConnection
from chat.web.open_files import RESERVED
from chat.web.pages import PAGE_BYTES
from infra.llm import ToolCall
from infra.records import Event, utc_now
from infra.store import StoreUnavailable
from infra.store.sqlite import SqliteStore
from tests.conftest import Serve, Served
from tests.support.client import ChatClient
from tests.support.flaky import FlakyStore
from tests.support.scrape import Scrape
from tests.support.scripted import ScriptedModel

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 10.0
"""Seconds a test waits for what should happen at once before it fails."""


async def raw(server: Served, data: bytes) -> bytes:
    """Send these bytes, and read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.http.rsplit(":", 1)[1]))
    received = b""
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        async with asyncio.timeout(PATIENCE):
            await writer.drain()
            while more := await reader.read(65536):
                received += more
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return received


async def is_answered(server: Served) -> None:
    """A polite visitor gets a reply."""
    async with await ChatClient.connect(server.url, f"polite-{uuid4().hex}") as polite:
        await polite.say("hello")
        async with asyncio.timeout(PATIENCE):
            await polite.until("done", reason="complete")


def watched(monkeypatch: pytest.MonkeyPatch) -> tuple[list[HttpConnection], asyncio.Event]:
    """The HTTP connections that are made from now on, and an event that is set when one is lost."""
    made: list[HttpConnection] = []
    gone = asyncio.Event()

    class Watched(HttpConnection):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            made.append(self)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            gone.set()

    monkeypatch.setattr("chat.server.HttpConnection", Watched)
    return made, gone


async def eventually(http: httpx.AsyncClient, path: str, status: int, text: str = "") -> httpx.Response:
    """Ask until the answer has this status, and this text in it; the answer."""
    async with asyncio.timeout(PATIENCE):
        while True:
            answer = await http.get(path)
            if answer.status_code == status and text in answer.text:
                return answer
            await asyncio.sleep(0.01)


async def test_the_memory_of_all_sessions_is_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much each of them was told: those that rest are read again when they are used, and have lost nothing."""
    monkeypatch.setattr("chat.sessions.watch.WATCH_SECONDS", 0.02)
    long, sessions, bound = "\N{PARTY POPPER}" * 20_000, 6, 1024 * 1024
    async with (
        serve(max_sessions_bytes=bound, demo_tokens_per_second=0) as server,
        contextlib.AsyncExitStack() as stack,
        httpx.AsyncClient(base_url=server.http) as http,
    ):
        clients = [
            await stack.enter_async_context(await ChatClient.connect(server.url, f"big-{number}"))
            for number in range(sessions)
        ]
        for round_number in (1, 2, 3):
            for client in clients:
                await client.say(f"{round_number} {long[3:]}")
                async with asyncio.timeout(PATIENCE):
                    await client.until("done", reason="complete")
        await is_answered(server)
        numbers = Scrape((await http.get("/metrics")).text)
        while numbers("realtime_sessions_bytes") > bound:  # the next look is on its way
            numbers = Scrape((await http.get("/metrics")).text)
        assert numbers("realtime_sessions_unloaded_total") >= sessions
        for number, client in enumerate(clients):
            await client.say("And now?")
            async with asyncio.timeout(PATIENCE):
                done = await client.until("done", reason="complete")
            said = client.text(done["turn_id"])
            assert "this is turn 4" in said, f"session {number} has forgotten what was said"


class BusyStore(FlakyStore):
    """One that takes what it is given, but only a little at a time."""

    async def append(self, events: Sequence[Event]) -> None:
        """See `Store.append`."""
        await asyncio.sleep(0.001 * len(events))
        await super().append(events)


async def test_who_speaks_faster_than_is_stored_is_slowed_and_not_refused(serve: Serve, tmp_path: Path) -> None:
    """While the store keeps taking events nobody is told to come back, however full the journal gets."""
    talkers, messages, bound = 20, 20, 100
    store = BusyStore(await SqliteStore.open(tmp_path / "busy.db"))

    async def talk(server: Served, number: int) -> list[str]:
        async with await ChatClient.connect(server.url, f"talker-{number}") as client:
            for _ in range(messages):
                await client.say("hi")
                async with asyncio.timeout(PATIENCE):
                    while (await client.next())["type"] not in ("done", "error"):
                        pass
            return [frame["code"] for frame in client.frames if frame["type"] == "error"]

    async with serve(store=store, journal_max_events=bound, demo_tokens_per_second=0) as server:
        refused = await asyncio.gather(*(talk(server, number) for number in range(talkers)))
    assert refused == [[]] * talkers
    assert sum(map(len, store.appended)) == 2 * talkers * messages


async def test_who_speaks_to_an_unloaded_session_is_heard_once_it_can_be_read(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the store down the message is refused, and may be sent again; the conversation then goes on as it was."""
    monkeypatch.setattr("chat.sessions.watch.WATCH_SECONDS", 0.01)
    store = FlakyStore(await SqliteStore.open(tmp_path / "flaky.db"))
    async with (
        serve(store=store, max_sessions_bytes=1024 * 1024, demo_tokens_per_second=0) as server,
        await ChatClient.connect(server.url) as client,
        httpx.AsyncClient(base_url=server.http) as http,
    ):
        for _ in range(14):
            await client.say("\N{PARTY POPPER}" * 20_000)
            await client.until("done")
        await eventually(http, "/metrics", 200, "realtime_sessions_bytes 0.0")
        store.weather.append(StoreUnavailable("down"))
        await client.say("And now?", message_id="m")
        refused = await client.until("error")
        assert (refused["code"], refused["message_id"], refused["retry_after"]) == ("store_unavailable", "m", 2)
        await client.say("And now?", message_id="m")
        done = await client.until("done", reason="complete")
        assert "Earlier you said" in client.text(done["turn_id"])


@pytest.mark.parametrize(
    "begun",
    [b"", b"GET /ws/session/s1 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"],
    ids=["nothing", "half a handshake"],
)
async def test_who_does_not_ask_is_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    """A connection that sends no whole request is closed after `HEAD_SECONDS`: it would hold a descriptor for ever."""
    monkeypatch.setattr(chat.web.http, "HEAD_SECONDS", 0.1)
    async with serve() as server:
        assert await raw(server, begun) == b""
        await is_answered(server)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /live HTTP/1.1\r\n" + b"X-Small: 1\r\n" * 20_000,
        b"GET /live HTTP/1.1\r\nX-Large: " + b"x" * 200_000,
        b"GET /" + b"x" * 200_000,
    ],
    ids=["many small headers", "a large header", "a long path"],
)
async def test_a_head_is_bounded(serve: Serve, head: bytes) -> None:
    """What does not end within 64 KiB is refused by name, and its connection closed."""
    async with serve() as server:
        answer = await raw(server, head)
        assert answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))
        await is_answered(server)


async def test_trailers_are_bounded(serve: Serve) -> None:
    """What comes behind the headers counts as well: the connection is closed long before it is all taken."""
    head = b"GET /live HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    async with serve() as server:
        answer = await raw(server, head + b"X-Trailer: 1\r\n" * (4 * MOST_REQUEST_BYTES // 14))
        assert answer.count(b"HTTP/1.1 200") <= 1
        await is_answered(server)


async def fill(store: SqliteStore, session_id: str, *, count: int, content: str) -> list[Event]:
    """Store so many events of a session."""
    await store.open_session(session_id, "u", at=utc_now(), container_id="box")
    events = [
        Event(
            event_id=str(uuid4()),
            session_id=session_id,
            turn_id="t",
            role="user",
            content=content,
            timestamp=utc_now(),
            metadata={"message_id": str(number)},
        )
        for number in range(count)
    ]
    await store.append(events)
    return events


@pytest.fixture
async def stored(tmp_path: Path) -> SqliteStore:
    """The store that the server uses, opened before it."""
    return await SqliteStore.open(tmp_path / "shared.db")  # the server closes it


async def test_a_page_is_bounded_in_bytes_and_nothing_is_left_out(serve: Serve, stored: SqliteStore) -> None:
    """Read forwards or backwards, page by page, every event comes once, and no page is larger than its bound."""
    events = await fill(stored, "big", count=90, content="\U0001f600" * 20_000)
    async with serve(store=FlakyStore(stored)) as server, httpx.AsyncClient(base_url=server.http) as client:

        async def page(query: str) -> list[dict[str, object]]:
            answer = await client.get(f"/sessions/big/events?limit=1000&{query}")
            assert len(answer.content) <= PAGE_BYTES
            found: list[dict[str, object]] = answer.json()
            return found

        forwards = await page("after=0")
        while more := await page(f"after={forwards[-1]['id']}"):
            forwards += more
        backwards = await page(f"before={events[-1].event_id}")
        while more := await page(f"before={backwards[0]['event_id']}"):
            backwards = more + backwards
    ids = [event.event_id for event in events]
    assert [event["event_id"] for event in forwards] == ids
    assert [event["event_id"] for event in backwards] == ids[:-1]


async def test_an_answer_that_nobody_reads_is_given_up(
    serve: Serve, stored: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that does not read is cut off, and what waited for it is let go."""
    monkeypatch.setattr(chat.web.http, "STILL_SECONDS", 0.1)
    _, gone = watched(monkeypatch)
    await fill(stored, "big", count=9, content="x" * 100_000)
    async with serve(store=FlakyStore(stored)) as server:
        port = int(server.http.rsplit(":", 1)[1])
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(deaf, ("127.0.0.1", port))
            request = b"GET /sessions/big/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
            for _ in range(8):  # the kernel's own buffers take the first few
                await loop.sock_sendall(deaf, request)
            await asyncio.wait_for(gone.wait(), PATIENCE)  # the client has read nothing yet
            received = 0
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(PATIENCE):
                    while more := await loop.sock_recv(deaf, 65536):
                        received += len(more)
        assert received < 8 * 900_000
        await is_answered(server)


async def pings(attacker: ClientConnection) -> None:
    """Pings, as fast as they go."""
    for number in range(4 * MOST_IDLE_FRAMES):
        await attacker.ping(str(number))


async def pongs(attacker: ClientConnection) -> None:
    """Pongs that nobody asked for."""
    for _ in range(4 * MOST_IDLE_FRAMES):
        await attacker.pong()


async def empty_parts(attacker: ClientConnection) -> None:
    """One message in parts that are all empty."""

    async def parts() -> AsyncIterator[str]:
        for _ in range(4 * MOST_IDLE_FRAMES):
            yield ""

    await attacker.send(parts())


@pytest.mark.parametrize("flood", [pings, pongs, empty_parts])
async def test_a_flood_of_frames_without_content_is_closed(serve: Serve, flood: object) -> None:
    """With 4429, whatever kind they are; somebody else is answered meanwhile."""
    async with serve() as server, httpx.AsyncClient(base_url=server.http) as http:
        async with connect(f"{server.url}/ws/session/s1", proxy=None) as attacker:
            with contextlib.suppress(ConnectionClosed):
                await flood(attacker)  # type: ignore[operator]
            await is_answered(server)
            async with asyncio.timeout(PATIENCE):
                await attacker.wait_closed()
        # The attacker may not have read the code: it was still sending when the connection was closed.
        await eventually(http, "/metrics", 200, 'code="4429"} 1.0')


async def test_what_is_not_utf8_is_closed_without_a_traceback(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """Also if the client's own close comes in the same packet."""
    not_text = Frame(Opcode.TEXT, b"\xff\xfe").serialize(mask=True)
    goodbye = Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True)
    with caplog.at_level(logging.WARNING):
        async with serve() as server:
            for data in (not_text + goodbye, not_text):
                async with connect(f"{server.url}/ws/session/s1", proxy=None) as attacker:
                    attacker.transport.write(data)
                    async with asyncio.timeout(PATIENCE):
                        await attacker.wait_closed()
                    assert attacker.close_code in (1000, 1007)
            await is_answered(server)
    assert [record for record in caplog.records if record.exc_info] == []


async def test_what_a_tool_and_a_model_write_is_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of 5 MB, an invented name, a reply without end: clients and store get as much as helps."""
    monkeypatch.setattr("chat.sessions.turn.MOST_REPLY_CHARS", 1000)

    @tool
    async def fail() -> None:
        """Fail at length."""
        raise ToolError("x" * 5_000_000)

    model = ScriptedModel([ToolCall("1", "fail", "{}"), ToolCall("2", "n" * 5_000_000, "{}")], ["word "] * 5_000)
    async with (
        serve(model=model, tools=Registry([fail])) as server,
        await ChatClient.connect(server.url) as client,
        httpx.AsyncClient(base_url=server.http) as http,
    ):
        await client.say("go")
        await client.until("done", reason="length")
        await client.until("saved")
        events = (await http.get("/sessions/s1/events?limit=100")).json()
    assert all(len(str(event)) < 6_000 for event in events)
    assert 1_000 <= len(client.text()) < 2_000


async def test_an_id_used_long_ago_swallows_no_message(serve: Serve) -> None:
    """Past the history that is read back nobody knows the id; the new words are stored all the same."""
    async with serve(history_events=2) as server:
        for words in ("first", "second", "third"):
            async with await ChatClient.connect(server.url) as client:
                await client.say(words, message_id="one" if words != "second" else "two")
                await client.until("done")
                await client.until("saved")
        async with httpx.AsyncClient(base_url=server.http) as http:
            events = (await http.get("/sessions/s1/events")).json()
    assert [event["content"] for event in events if event["role"] == "user"] == ["first", "second", "third"]


async def test_health_knows_a_store_that_takes_no_writes(
    serve: Serve, stored: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk can be read: reading alone would call healthy what stores nothing."""
    monkeypatch.setattr("chat.web.api.MOST_LAG_SECONDS", 0.05)
    store = FlakyStore(stored)
    async with (
        serve(store=store) as server,
        await ChatClient.connect(server.url) as client,
        httpx.AsyncClient(base_url=server.http) as http,
    ):
        await client.next()
        gate = asyncio.Event()
        store.reached.clear()
        store.weather.append(gate)
        await client.say("hello")
        await client.until("accepted")
        await asyncio.wait_for(store.reached.wait(), PATIENCE)
        answer = await eventually(http, "/health", 503)
        assert answer.json()["failing"] == ["journal"]
        gate.set()
        await eventually(http, "/health", 200)


async def test_every_request_of_a_lost_connection_is_told(
    serve: Serve, stored: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several that were sent at once the first may be the one that is answered: it must not write any more."""
    made, gone = watched(monkeypatch)
    store = FlakyStore(stored)
    async with serve(store=store) as server:
        store.reached.clear()
        store.weather.append(gate := asyncio.Event())
        _, writer = await asyncio.open_connection("127.0.0.1", int(server.http.rsplit(":", 1)[1]))
        writer.write(b"GET /sessions/s1/events HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
        await asyncio.wait_for(store.reached.wait(), PATIENCE)
        made[0].transport.abort()  # as for a client that does not read; one that leaves is noticed by the next write
        await asyncio.wait_for(gone.wait(), PATIENCE)
        assert [cycle.disconnected for cycle in made[0]._answering] == [True] * 3
        writer.close()
        gate.set()
        await is_answered(server)


async def test_the_last_open_files_are_kept_for_what_is_live(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections past them are closed at once, counted and logged; who is there is answered, and the store written."""
    async with serve() as server, await ChatClient.connect(server.url) as early:
        await early.until("ready")
        with monkeypatch.context() as patched, capture_logs() as logs:
            patched.setattr(
                "chat.web.open_files.resource.getrlimit", lambda _: (RESERVED, RESERVED)
            )  # all others are used
            for _ in range(3):
                assert await raw(server, b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
            await early.say("hello")
            await early.until("saved")
        assert [line["event"] for line in logs if line["log_level"] == "error"] == [
            "connections refused: too few open files are left"
        ]
        async with httpx.AsyncClient(base_url=server.http) as http:
            assert Scrape((await http.get("/metrics")).text)("realtime_connections_refused_total") == 3


LIMITED = """
import resource
from chat.web.open_files import make_room_for_sockets
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 1000))
for sessions in (10, 300, 3000):
    make_room_for_sockets(sessions)
    print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_there_are_descriptors_for_every_session() -> None:
    """The limit is raised to what `MAX_SESSIONS` needs, as far as it may be; if that is too little, the log says so."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'realtime'}{os.pathsep}{ROOT}"}
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    limits = [line for line in ran.stdout.splitlines() if line.startswith("(")]
    assert limits == ["(276, 1000)", "(856, 1000)", "(1000, 1000)"]
    assert ran.stdout.count("too few open files") == 1
    assert "wanted=6256" in ran.stdout
