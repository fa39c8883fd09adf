"""What breaks around a conversation: readers, networks, models, tools, the store. Nothing accepted is lost."""

import asyncio
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

import chat.sessions.turn
import chat.sessions.watch
import chat.web.connection
import infra.store.sqlite
from chat.tools.registry import Registry, tool
from infra.llm import ModelError, ToolCall
from infra.llm.demo import DemoModel
from infra.store.sqlite import SqliteStore
from tests.conftest import Serve
from tests.support.client import ChatClient
from tests.support.scripted import RepliesTo, ScriptedModel

MEGABYTES = ["x" * 50_000] * 320
"""16 MB: more than every buffer between the server and a client that does not read, the kernel's among them."""


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the database's write lock from another connection: no write gets through meanwhile."""
    with closing(sqlite3.connect(data_dir / "realtime.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.rollback()


async def test_a_client_that_never_reads_is_closed_and_loses_nothing(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is closed with 4408, its turn runs on to the end and is stored whole, and a neighbour notices nothing."""
    monkeypatch.setattr(chat.sessions.watch, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(chat.web.connection, "GRACE_SECONDS", 60)  # the close code is read at the end of the test
    monkeypatch.setattr(chat.sessions.turn, "MOST_REPLY_CHARS", sys.maxsize)  # in one reply, to have it sooner
    model = RepliesTo({"flood me": MEGABYTES})
    async with serve(model=model, slow_reader_seconds=0.5, linger_seconds=30) as server:
        websocket = await connect(f"{server.url}/ws/session/s1", proxy=None, max_size=None, max_queue=1)
        deaf = ChatClient(websocket)
        await deaf.say("flood me")
        async with await ChatClient.connect(server.url, "neighbour") as neighbour:
            for _ in range(20):
                await neighbour.say("hello")
                await neighbour.until("done", reason="complete")
        async with await ChatClient.connect(server.url) as back:
            ready = await back.next()
            if ready["active_turn_id"]:
                await back.until("done", reason="complete")
            else:
                assert ready["history"][-1]["metadata"]["reason"] == "complete"
        assert await deaf.closed() == 4408
        assert len(deaf.text()) < len("".join(MEGABYTES))
        async with await ChatClient.connect(server.url) as again:
            assert (await again.next())["history"][-1]["content"] == "".join(MEGABYTES)


async def test_a_client_that_vanishes_mid_turn_finds_its_reply(serve: Serve) -> None:
    """The line is cut without a goodbye; the turn goes on, and whoever returns in time gets all of it, same epoch."""
    go_on = asyncio.Event()
    async with serve(model=ScriptedModel(["one ", go_on, "two"]), linger_seconds=30) as server:
        client = await ChatClient.connect(server.url)
        await client.say("go")
        await client.until("token")
        client.websocket.transport.abort()
        async with await ChatClient.connect(server.url) as back:
            ready = await back.next()
            go_on.set()
            done = await back.until("done")
        assert (ready["epoch"], ready["active_turn_id"]) == (1, done["turn_id"])
        assert back.text() == "one two"


async def test_a_dropped_session_is_ended_after_its_linger(serve: Serve, tmp_path: Path) -> None:
    """Nobody came back: the running turn is stopped, and what was said of it is stored as interrupted."""
    never = asyncio.Event()
    model = ScriptedModel(["half ", never])
    async with serve(model=model, linger_seconds=0.1) as server:
        client = await ChatClient.connect(server.url)
        await client.say("go")
        await client.until("token")
        client.websocket.transport.abort()
        await asyncio.wait_for(model.cut_short.wait(), 5)
    store = await SqliteStore.open(tmp_path / "realtime.db")
    events = await store.latest_events("s1", limit=10)
    await store.close()
    assert [(event.role, event.content) for event in events] == [("user", "go"), ("assistant", "half ")]
    assert events[1].metadata["interrupted"] is True


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (ModelError("model_refused", "The model's service refused.", retryable=False), "model_refused"),
        (RuntimeError("secret-key-123 at 10.0.0.1"), "internal"),
        (asyncio.Event(), "model_timeout"),
    ],
)
async def test_a_failing_model_is_a_named_error(serve: Serve, failure: Exception, code: str) -> None:
    """Refusing, raising or hanging, it ends the turn with an error a client may read, and the next turn works."""
    model = RepliesTo({"go": [failure]})
    async with serve(model=model, llm_timeout_seconds=0.1) as server, await ChatClient.connect(server.url) as client:
        await client.say("go")
        error = await client.until("error")
        done = await client.until("done")
        assert (error["code"], error["turn_id"], done["reason"]) == (code, done["turn_id"], "error")
        assert "secret" not in error["message"]
        await client.say("again")
        assert (await client.until("done"))["reason"] == "complete"


async def test_a_model_that_fails_mid_reply_keeps_what_it_said(serve: Serve) -> None:
    """A reply that began is not begun again: its text stays, marked as broken off."""
    broken = ModelError("model_unavailable", "The model's answer broke off.", retryable=True)
    model = ScriptedModel(["half a ", broken], ["fine"])
    async with serve(model=model) as server, await ChatClient.connect(server.url) as client:
        await client.say("go")
        await client.until("error", code="model_unavailable")
        await client.until("done", reason="error")
        await client.say("again")
        await client.until("done", reason="complete")
        assert client.text() == "half a fine"
    assert [message.content for message in model.calls[1][1:]] == ["go", "half a ", "again"]


@tool
async def broken() -> str:
    """Fail."""
    raise RuntimeError("secret-key-123")


@tool
async def stuck() -> str:
    """Never answer."""
    await asyncio.Event().wait()
    return ""


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (ToolCall("c1", "broken", "{}"), "the tool failed"),
        (ToolCall("c1", "stuck", "{}"), "no answer within 0.1 s"),
        (ToolCall("c1", "missing", "{}"), "no tool named 'missing'"),
        (ToolCall("c1", "broken", "not json"), "bad arguments"),
        (ToolCall("c1", "broken", '{"x": 1}'), "bad arguments: x"),
    ],
)
async def test_a_failing_tool_is_a_result_the_model_reads(serve: Serve, call: ToolCall, named: str) -> None:
    """Raising, hanging, unknown or wrongly called, a tool's failure goes back to the model, and the turn goes on."""
    model = ScriptedModel([call], ["sorry"])
    async with (
        serve(model=model, tools=Registry([broken, stuck]), tool_timeout_seconds=0.1) as server,
        await ChatClient.connect(server.url) as client,
    ):
        await client.say("go")
        result = await client.until("tool_result")
        await client.until("done", reason="complete")
    assert named in result["error"]
    assert named.split("'")[0] in model.calls[1][-1].content
    assert "secret" not in str(client.frames)


async def test_while_the_store_is_locked_chat_goes_on_and_is_saved_after(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies come while no write gets through; `saved` waits, then comes, and every event is stored once, in order."""
    monkeypatch.setattr(infra.store.sqlite, "BUSY_SECONDS", 0.05)
    async with serve() as server, await ChatClient.connect(server.url) as client:
        await client.next()
        with locked(tmp_path):
            for number in range(3):
                await client.say(f"message {number}")
                done = await client.until("done")
            assert "saved" not in client.types()
        await client.until("saved", through=done["seq"])
    async with serve() as server, await ChatClient.connect(server.url) as again:
        history = (await again.next())["history"]
    assert [event["role"] for event in history] == ["user", "assistant"] * 3
    assert [event["content"] for event in history[::2]] == [f"message {number}" for number in range(3)]


async def test_a_session_is_not_opened_on_a_store_that_is_down(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is told `store_unavailable` and closed with 4503, which means come back; then it works."""
    monkeypatch.setattr(infra.store.sqlite, "BUSY_SECONDS", 0.05)
    async with serve() as server:
        with locked(tmp_path):
            async with await ChatClient.connect(server.url) as client:
                assert await client.closed() == 4503
                assert client.frames[0]["code"] == "store_unavailable"
                assert client.frames[0]["retry_after"] == 2
        async with await ChatClient.connect(server.url) as client:
            assert (await client.next())["epoch"] == 1


async def test_a_full_journal_refuses_messages_but_keeps_what_it_took(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past JOURNAL_MAX_EVENTS a message gets `store_unavailable` with a delay and its id; later it is taken."""
    monkeypatch.setattr(infra.store.sqlite, "BUSY_SECONDS", 0.05)
    async with serve(journal_max_events=2) as server, await ChatClient.connect(server.url) as client:
        await client.next()
        with locked(tmp_path):
            await client.say("first")
            done = await client.until("done")
            await client.say("second", message_id="m2")
            error = await client.until("error")
            assert (error["code"], error["message_id"], error["retry_after"]) == ("store_unavailable", "m2", 5.0)
        await client.until("saved", through=done["seq"])
        await client.say("second", message_id="m2")
        await client.until("done", reason="complete")


async def test_a_stop_is_not_upset_by_a_client_that_leaves_unread(serve: Serve) -> None:
    """A client that said goodbye without reading does not keep the others from being told of the restart."""
    async with serve(model=RepliesTo({"flood me": MEGABYTES})) as server:
        staying = [await ChatClient.connect(server.url, f"s{number}") for number in range(3)]
        websocket = await connect(f"{server.url}/ws/session/deaf", proxy=None, max_size=None, max_queue=1)
        deaf = ChatClient(websocket)
        await deaf.say("flood me")
        for client in staying:
            await client.say("hello")
            await client.until("done")
        websocket.protocol.send_close(1000)
        websocket.transport.write(b"".join(websocket.protocol.data_to_send()))
    assert [await client.closed() for client in staying] == [1012] * 3
    websocket.transport.abort()


async def test_a_stop_of_the_server_keeps_what_was_said(serve: Serve) -> None:
    """SIGTERM's path: sockets close with 1012, a running reply is stored as interrupted, and a restart has it all."""
    never = asyncio.Event()
    async with serve(model=ScriptedModel(["half ", never])) as server:
        client = await ChatClient.connect(server.url)
        await client.say("go")
        await client.until("token")
    assert await client.closed() == 1012
    async with serve(model=DemoModel(0)) as server, await ChatClient.connect(server.url) as back:
        ready = await back.next()
    assert ready["epoch"] == 2
    assert [event["content"] for event in ready["history"]] == ["go", "half "]
    assert ready["history"][1]["metadata"]["interrupted"] is True
