"""What a connection owes its client besides frames: pongs, whole messages, its turn, a name in the log, a goodbye."""

import asyncio
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from chat.sessions.outbox import SOFT_CHARS, Outbox
from chat.web.asked import request_id
from infra.records import utc_now
from infra.store import StoreUnavailable
from infra.store.sqlite import SqliteStore
from tests.conftest import Serve
from tests.support.client import PATIENCE, ChatClient
from tests.support.flaky import FlakyStore
from tests.support.scripted import ScriptedModel
from tests.support.spooled import until


async def test_a_ping_is_answered(serve: Serve) -> None:
    """With its own payload, as RFC 6455 wants it: clients count on it to see that the line lives."""
    async with serve() as server, await ChatClient.connect(server.url) as client:
        async with asyncio.timeout(PATIENCE):
            await (await client.websocket.ping(b"are you there?"))


async def test_a_message_in_parts_is_whole(serve: Serve) -> None:
    """However it is cut, with empty parts and a ping between them."""
    async with serve() as server, await ChatClient.connect(server.url) as client:
        await client.websocket.ping()
        await client.websocket.send(["he", "", "llo ", "", "there", ""])
        assert (await client.until("accepted"))["content"] == "hello there"


async def test_idle_frames_are_counted_by_the_second(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that pings now and then is none that floods, however long it stays."""
    monkeypatch.setattr("chat.web.connection.MOST_IDLE_FRAMES", 5)
    async with serve() as server, await ChatClient.connect(server.url) as client:
        for _ in range(3):
            for _ in range(4):
                await (await client.websocket.ping())
            await asyncio.sleep(1.05)  # the second that is counted
        await client.say("hello")
        await client.until("done")


async def test_a_message_that_comes_at_a_full_outbox_is_not_lost(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken in passing, but when its turn comes."""
    full, has_room = iter([True]), Outbox.has_room
    monkeypatch.setattr(Outbox, "has_room", lambda outbox: not next(full, False) and has_room(outbox))
    async with serve() as server, await ChatClient.connect(server.url) as client:
        await client.until("ready")
        await client.say("hello")
        await client.until("done")
    assert next(full, None) is None


async def test_what_comes_while_the_reader_is_behind_is_heard_later(serve: Serve) -> None:
    """Who does not read is not listened to, so that its answers do not pile up; what it said is not lost."""
    long = "x" * (3 * SOFT_CHARS)
    model = ScriptedModel([long], ["second"], ["third"])
    async with serve(model=model, while_busy="queue") as server:
        client = await ChatClient.connect(server.url)
        await client.until("ready")
        transport = client.websocket.transport
        transport.pause_reading()
        for content in ("one", "two", "three"):
            await client.say(content, message_id=content)
        await until(lambda: bool(model.calls))
        transport.resume_reading()
        async with asyncio.timeout(PATIENCE):
            while [frame["type"] for frame in client.frames].count("done") < 3:
                await client.next()
        accepted = [frame["message_id"] for frame in client.frames if frame["type"] == "accepted"]
        assert accepted == ["one", "two", "three"]
        await client.websocket.close()


@pytest.mark.parametrize(("given", "named"), [("req-42/a=b", True), ("with a space", False), ("x" * 300, False)])
@pytest.mark.parametrize("header", [b"x-request-id", b"x-amzn-trace-id"])
def test_the_log_names_the_request_as_the_balancer_does(header: bytes, given: str, named: bool) -> None:
    """By the balancer's header, if what it holds is a name; otherwise by one of our own."""
    name = request_id({"headers": [(header, given.encode())]})
    assert (name == given) == named
    assert 0 < len(name) <= 200
    assert " " not in name


async def test_a_server_that_stops_says_so(serve: Serve) -> None:
    """Without a drain as well: the client reads 1012, which means come back."""
    async with serve() as server:
        client = await ChatClient.connect(server.url)
        await client.until("ready")
    assert await client.closed() == 1012


async def test_events_cannot_be_read_while_the_store_is_down(serve: Serve, tmp_path: Path) -> None:
    """503 with a reason in JSON, and no word of the store's own."""
    store = FlakyStore(await SqliteStore.open(tmp_path / "flaky.db"))
    async with serve(store=store) as server, httpx.AsyncClient(base_url=server.http) as http:
        await store.open_session("s1", "u", at=utc_now(), container_id="box")
        for path in ("/sessions/s1", "/sessions/s1/events", f"/sessions/s1/events?before={uuid4()}"):
            store.weather.extend([None, StoreUnavailable("secret")][path == "/sessions/s1" :])
            answer = await http.get(path)
            assert answer.status_code == 503
            assert "secret" not in answer.text
            assert answer.json()["detail"]
