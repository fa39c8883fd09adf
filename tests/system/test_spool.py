"""A container that is killed while its store or its queue is down: the next one delivers what it had accepted."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from chat.durability.journal import Journal
from chat.durability.spool import Spool
from chat.metrics import Metrics
from infra.local.postgres import Postgres
from infra.local.stack import MOTO_ENVIRONMENT
from infra.records import Event, SessionEnded
from infra.store import StoreUnavailable
from infra.store.sqlite import SqliteStore
from tests.conftest import Serve
from tests.support.client import ChatClient
from tests.support.flaky import FlakyStore
from tests.support.queue import running_queue
from tests.support.spooled import die, spooled, until
from tests.support.supabase import a_lite, free_port, fresh_database, open_store
from tests.system.test_local import environment

TURNS = 5
QUEUE = "123456789012/realtime-ai-backend-local-session-ended"

LEFT = Event(
    event_id="e",
    session_id="s1",
    turn_id="t",
    role="assistant",
    content="left",
    timestamp=datetime.now(UTC),
    metadata={"reason": "complete"},
)


@asynccontextmanager
async def container(data_dir: Path, port: int, **settings: str) -> AsyncIterator["subprocess.Popen[bytes]"]:
    """The container's own process, once it is healthy; killed at the latest when the block is left."""
    process = _start(data_dir, port, **settings)
    try:
        async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(20):
            while not await _is_healthy(http, port):
                assert process.poll() is None, "the container did not start"
                await asyncio.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.communicate()


def _start(data_dir: Path, port: int, **settings: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "chat"]
    environ = environment(data_dir, port, **settings)
    return subprocess.Popen(command, cwd=data_dir, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


async def _is_healthy(http: httpx.AsyncClient, port: int) -> bool:
    try:
        return (await http.get(f"http://127.0.0.1:{port}/health")).is_success
    except httpx.HTTPError:
        return False


def events_in(data_dir: Path) -> int:
    """How many events the spool holds; what else it holds are modes."""
    return sum(payload.startswith(b"{") for payload in spooled(data_dir, "journal"))


async def _chat(client: ChatClient, name: str) -> None:
    for number in range(TURNS):
        await client.say(f"{name} {number}")
        await client.until("done", reason="complete")


async def test_what_was_accepted_outlives_the_container(postgres: Postgres, tmp_path: Path) -> None:
    """Supabase is down, people chat, kill -9: in the end every message and reply is there once, in order."""
    with ExitStack() as ending:
        lite = a_lite(fresh_database(postgres), ending)
        named = {"SUPABASE_URL": lite.url, "SUPABASE_KEY": lite.service_key}
        port = free_port()
        async with container(tmp_path, port, **named) as first:
            clients = [await ChatClient.connect(f"ws://127.0.0.1:{port}", f"s{number}") for number in range(3)]
            for client in clients:
                await client.say("before")
                done = await client.until("done")
                await client.until("saved", through=done["seq"])
            await until(lambda: spooled(tmp_path, "journal") == [])
            await asyncio.to_thread(lite.stop)
            await asyncio.gather(*(_chat(client, "during") for client in clients))
            await until(lambda: events_in(tmp_path) == len(clients) * TURNS * 2)
            first.kill()
            await asyncio.to_thread(first.wait, 10)
        await asyncio.to_thread(lite.start)
        async with container(tmp_path, port, **named):
            async with await ChatClient.connect(f"ws://127.0.0.1:{port}", "s0") as back:
                history = (await back.next())["history"]
            await until(lambda: spooled(tmp_path, "journal") == [])
        assert [event["content"] for event in history[2::2]] == [f"during {number}" for number in range(TURNS)]
        store = await open_store(lite.url, lite.service_key)
        for number, client in enumerate(clients):
            events = await store.events(f"s{number}", limit=1000)
            assert [event.role for event in events] == ["user", "assistant"] * (TURNS + 1)
            assert [event.content for event in events[::2]] == ["before"] + [f"during {n}" for n in range(TURNS)]
            assert "".join(event.content for event in events[1::2]) == client.text()
        await store.close()


async def test_a_clean_stop_leaves_what_the_store_did_not_take(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM's path, the store down: nothing is lost with the process, and the next one stores it, once."""
    monkeypatch.setattr("chat.sessions.registry.LAST_SAVED_SECONDS", 0.01)
    monkeypatch.setattr("chat.main.SESSIONS_SECONDS", 0.01)
    down, named = StoreUnavailable("it rains"), {"supabase_url": "http://127.0.0.1:1", "supabase_key": "sb_secret_x"}
    store = FlakyStore(await SqliteStore.open(tmp_path / "realtime.db"))
    with capture_logs() as logs:
        async with serve(store=store, **named) as server:
            client = await ChatClient.connect(server.url)
            await client.until("ready")
            store.weather.extend([down] * 100)
            await client.say("hello")
            await client.until("done")
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["ended sessions not announced"]
    assert events_in(tmp_path) == 2
    store = FlakyStore(await SqliteStore.open(tmp_path / "realtime.db"))
    async with serve(store=store, **named):
        await until(lambda: spooled(tmp_path, "journal") == [])
        assert [event.role for event in await store.events("s1", limit=9)] == ["user", "assistant"]


async def test_an_end_that_the_queue_did_not_take_is_announced_by_the_next_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQS is down when a session ends, and the container is killed: the next one sends the message, unchanged."""
    for name, value in MOTO_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    queue_port, port = free_port(), free_port()
    endpoint = f"http://127.0.0.1:{queue_port}"
    named = MOTO_ENVIRONMENT | {"AWS_ENDPOINT_URL": endpoint, "DISCONNECT_QUEUE_URL": f"{endpoint}/{QUEUE}"}
    async with container(tmp_path, port, **named) as first:
        async with await ChatClient.connect(f"ws://127.0.0.1:{port}", "s1") as client:
            await client.until("ready")
        await until(lambda: len(spooled(tmp_path, "endings")) == 1)
        first.kill()
        await asyncio.to_thread(first.wait, 10)
    (kept,) = spooled(tmp_path, "endings")
    assert spooled(tmp_path, "journal") == [], "SQLite has a second copy of its own events"
    with running_queue(queue_port) as queue:
        async with container(tmp_path, port, **named):
            bodies = await asyncio.to_thread(queue.bodies, None, 10)
            await until(lambda: spooled(tmp_path, "endings") == [])
    assert bodies == [kept.decode()]
    ended = SessionEnded.from_json(bodies[0])
    assert (ended.session_id, ended.epoch, ended.reason) == ("s1", 1, "closed")


async def test_two_containers_do_not_share_a_folder(serve: Serve, tmp_path: Path) -> None:
    """Each would deliver what the other has: the second is refused in one line that names the setting."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/queue"
        async with serve(disconnect_queue_url=url, aws_endpoint_url=url):
            second = _start(tmp_path, free_port(), DISCONNECT_QUEUE_URL=url, **MOTO_ENVIRONMENT)
            _, errors = await asyncio.to_thread(second.communicate, None, 20)
    last = errors.decode().splitlines()[-1]
    assert second.returncode == 2
    assert last == f"cannot start: DATA_DIR: {tmp_path} is in use by another container; give each its own"


async def test_a_session_opens_with_what_an_earlier_container_left_of_it(serve: Serve, tmp_path: Path) -> None:
    """It waits until that is stored: no history without it, and none in the wrong order."""
    store = FlakyStore(await SqliteStore.open(tmp_path / "realtime.db"))
    await store.open_session("s1", "anonymous", at=LEFT.timestamp, container_id="before")
    await _leave(store, tmp_path, LEFT)
    gate = asyncio.Event()
    store.weather.append(gate)
    store.reached.clear()
    async with serve(store=store, supabase_url="http://127.0.0.1:1", supabase_key="sb_secret_x") as server:
        await asyncio.wait_for(store.reached.wait(), 5)
        client = await ChatClient.connect(server.url)
        opening = asyncio.create_task(client.next())
        async with await ChatClient.connect(server.url, "s2") as other:
            assert (await other.next())["type"] == "ready", "another session has nothing to wait for"
        assert not opening.done()
        gate.set()
        assert [event["content"] for event in (await opening)["history"]] == ["left"]
        await client.websocket.close()


async def _leave(store: FlakyStore, folder: Path, event: Event) -> None:
    """Record the event in a process that is killed before the store takes it."""
    spool = await Spool.open(folder)
    journal = Journal(store, Metrics(), max_events=9)
    store.weather.extend([StoreUnavailable("it rains")] * 2)
    store.weather.append(asyncio.Event())
    await journal.recover(spool)
    journal.start()
    journal.record(event, 1, lambda _: None)
    await until(lambda: len(spooled(folder, "journal")) == 1)
    await die(journal._courier, spool)
    store.weather.clear()
