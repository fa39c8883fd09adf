"""How a session ends: its last event is stored, then its end is announced on the real queue, whatever is down."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

import chat.durability.courier
from infra.handoff import SqsHandoff
from infra.local.stack import MOTO_ENVIRONMENT
from infra.records import SessionEnded
from infra.settings import Settings
from infra.store.sqlite import SqliteStore
from tests.conftest import Serve
from tests.support.client import ChatClient
from tests.support.queue import Queue, running_queue
from tests.support.scripted import Pause, ScriptedModel


async def announced(queue: Queue) -> list[SessionEnded]:
    """What is on the queue, waiting a moment for the first."""
    return [SessionEnded.from_json(body) for body in await asyncio.to_thread(queue.bodies, None, 5)]


def using(queue: Queue) -> dict[str, object]:
    """The settings that name this queue."""
    return {"disconnect_queue_url": queue.url, "aws_endpoint_url": queue.settings.aws_endpoint_url}


async def test_a_goodbye_ends_the_session_at_once(serve: Serve, queue: Queue, tmp_path: Path) -> None:
    """The message names session, epoch and reason, and by then the last event is in the store."""
    async with serve(**using(queue), linger_seconds=60) as server:
        client = await ChatClient.connect(server.url)
        await client.say("hello")
        await client.until("done")
        await client.websocket.close(1000)
        (ended,) = await announced(queue)
        assert (ended.session_id, ended.epoch, ended.reason) == ("s1", 1, "closed")
        store = await SqliteStore.open(tmp_path / "realtime.db")
        events = await store.latest_events("s1", limit=10)
        await store.close()
        assert [event.role for event in events] == ["user", "assistant"]


async def test_a_closed_tab_ends_its_session_soon(serve: Serve, queue: Queue) -> None:
    """A browser says 1001: nobody waits out the linger of a lost connection."""
    async with serve(**using(queue), linger_seconds=60, going_away_seconds=0.2) as server:
        client = await ChatClient.connect(server.url)
        await client.until("ready")
        await client.websocket.close(1001)
        (ended,) = await announced(queue)
        assert ended.reason == "closed"


async def test_a_reload_keeps_its_session(serve: Serve, queue: Queue) -> None:
    """A browser says 1001 here as well: the page that comes back resumes, and nothing was announced."""
    async with serve(**using(queue), going_away_seconds=60) as server:
        client = await ChatClient.connect(server.url)
        ready = await client.until("ready")
        await client.websocket.close(1001)
        async with await ChatClient.connect(server.url, epoch="1", after=str(ready["seq"])) as back:
            assert (await back.next())["resumed"] is True
            assert await asyncio.to_thread(queue.bodies) == []


async def test_a_reload_in_the_middle_of_a_reply_loses_none_of_it(serve: Serve, queue: Queue) -> None:
    """The reply goes on without its page, which reads it to the end when it is back."""
    model = ScriptedModel(["Hel", pause := Pause(), "lo"])
    async with serve(**using(queue), model=model, going_away_seconds=0) as server:
        client = await ChatClient.connect(server.url)
        await client.say("hi")
        token = await client.until("token")
        await client.websocket.close(1001)
        await pause.reached.wait()
        async with await ChatClient.connect(server.url, epoch="1", after=str(token["seq"])) as back:
            assert (await back.next())["resumed"] is True
            pause.set()
            assert (await back.until("done"))["reason"] == "complete"
            assert back.text() == "lo"


async def test_a_tab_closed_in_the_middle_of_a_reply_has_it_finished(
    serve: Serve, queue: Queue, tmp_path: Path
) -> None:
    """The session ends after its last reply, one that was still waiting for its turn included."""
    model = ScriptedModel(["Hel", pause := Pause(), "lo"], ["bye"])
    async with serve(**using(queue), model=model, going_away_seconds=0) as server:
        client = await ChatClient.connect(server.url)
        await client.say("hi")
        await client.say("and bye")
        await client.until("token")
        await client.websocket.close(1001)
        await pause.reached.wait()
        assert await asyncio.to_thread(queue.bodies) == []
        pause.set()
        (ended,) = await announced(queue)
        assert ended.reason == "closed"
        store = await SqliteStore.open(tmp_path / "realtime.db")
        events = await store.latest_events("s1", limit=10)
        await store.close()
        assert [event.content for event in events if event.role == "assistant"] == ["Hello", "bye"]


async def test_a_drop_ends_the_session_after_its_linger(serve: Serve, queue: Queue) -> None:
    """A cut line and nobody back in time: ended as dropped."""
    async with serve(**using(queue), linger_seconds=0.2) as server:
        client = await ChatClient.connect(server.url)
        await client.until("ready")
        client.websocket.transport.abort()
        (ended,) = await announced(queue)
        assert ended.reason == "dropped"


async def test_a_blip_ends_nothing(serve: Serve, queue: Queue) -> None:
    """Back within the linger, the session goes on at the same epoch, and nothing was announced."""
    async with serve(**using(queue), linger_seconds=60) as server:
        client = await ChatClient.connect(server.url)
        await client.until("ready")
        client.websocket.transport.abort()
        async with await ChatClient.connect(server.url) as back:
            assert (await back.next())["epoch"] == 1
            assert await asyncio.to_thread(queue.bodies) == []


async def test_a_second_tab_keeps_the_session(serve: Serve, queue: Queue) -> None:
    """A goodbye from one of two sockets ends nothing; the second one's does."""
    async with serve(**using(queue)) as server:
        async with await ChatClient.connect(server.url) as staying:
            async with await ChatClient.connect(server.url) as leaving:
                await leaving.until("ready")
            await staying.say("still here")
            await staying.until("done")
            assert await asyncio.to_thread(queue.bodies) == []
        assert [ended.epoch for ended in await announced(queue)] == [1]


async def test_a_stop_of_the_server_announces_every_session(serve: Serve, queue: Queue) -> None:
    """Sessions live at SIGTERM are ended as shutdown before the process goes."""
    async with serve(**using(queue), linger_seconds=60) as server:
        clients = [await ChatClient.connect(server.url, f"s{number}") for number in range(25)]
        for client in clients:
            await client.until("ready")
    ends = await announced(queue)
    assert sorted(ended.session_id for ended in ends) == sorted(f"s{number}" for number in range(25))
    assert {ended.reason for ended in ends} == {"shutdown"}


async def test_a_queue_that_is_down_gets_the_message_later(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQS refuses connections when the session ends; the message is kept, and arrives once the queue is back."""
    for name, value in MOTO_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(chat.durability.courier, "MOST_RETRY_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    url = f"{endpoint}/123456789012/realtime-ai-backend-local-session-ended"
    handoff = Watched(await SqsHandoff.connect(Settings(disconnect_queue_url=url, aws_endpoint_url=endpoint)))
    async with serve(handoff=handoff) as server:
        async with await ChatClient.connect(server.url) as client:
            await client.until("ready")
        await asyncio.wait_for(handoff.failed.wait(), 5)
        with running_queue(port) as queue:
            assert [ended.session_id for ended in await announced(queue)] == ["s1"]


class Choosy:
    """The real SQS client, which the first time takes all of a batch but its first entry."""

    def __init__(self, sqs: Any) -> None:
        self._sqs = sqs
        self.refused = 0

    def send_message_batch(self, **batch: Any) -> Any:
        """See boto3."""
        entries = batch["Entries"]
        if self.refused:
            return self._sqs.send_message_batch(**batch)
        self.refused = 1
        answer = self._sqs.send_message_batch(**batch | {"Entries": entries[1:]}) if entries[1:] else {}
        return answer | {"Failed": [{"Id": entries[0]["Id"], "SenderFault": False, "Code": "InternalError"}]}

    def close(self) -> None:
        """See boto3."""


async def test_what_the_queue_did_not_take_of_a_batch_is_sent_again(serve: Serve, queue: Queue) -> None:
    """SQS may take a batch in part: the rest follows, and nothing is announced twice."""
    async with serve(handoff=SqsHandoff(Choosy(queue.sqs), queue.url), linger_seconds=60) as server:
        clients = [await ChatClient.connect(server.url, f"s{number}") for number in range(5)]
        for client in clients:
            await client.until("ready")
    assert sorted(ended.session_id for ended in await announced(queue)) == [f"s{number}" for number in range(5)]


class Watched:
    """A hand-off that tells when a send failed."""

    def __init__(self, inner: SqsHandoff) -> None:
        self._inner = inner
        self.failed = asyncio.Event()

    async def send(self, ended: list[SessionEnded]) -> list[SessionEnded]:
        """See `Handoff.send`."""
        try:
            return await self._inner.send(ended)
        except Exception:
            self.failed.set()
            raise

    async def close(self) -> None:
        """See `Handoff.close`."""
        await self._inner.close()
