"""Coming back: whatever the network did, a client sees every frame once, in order, and the stream goes on."""

import asyncio
from typing import Any

import pytest

from chat.tools.registry import Registry, tool
from infra.llm import ToolCall
from tests.conftest import Serve, Served
from tests.support.client import ChatClient
from tests.support.scripted import RepliesTo, ScriptedModel

STREAM = ("accepted", "mode", "token", "tool_call", "tool_result", "done", "saved")


def stream(*clients: ChatClient) -> list[dict[str, Any]]:
    """What these connections, one after the other, saw of the stream, runs of tokens joined."""
    seen: list[dict[str, Any]] = []
    for frame in (frame for client in clients for frame in client.frames if frame["type"] in STREAM):
        last = seen[-1] if seen else {}
        if frame["type"] == last.get("type") == "token" and frame["turn_id"] == last["turn_id"]:
            seen[-1] = frame | {"content": last["content"] + frame["content"]}
        else:
            seen.append(frame)
    return seen


async def drop(client: ChatClient) -> None:
    """Lose the connection as a network does, without a goodbye."""
    client.websocket.transport.abort()
    await client.websocket.wait_closed()


async def back(server: Served, client: ChatClient) -> ChatClient:
    """Come back from where this connection stopped reading."""
    ready = next(frame for frame in client.frames if frame["type"] == "ready")
    seq = max(frame.get("seq", 0) for frame in client.frames)
    again = await ChatClient.connect(server.url, epoch=str(ready["epoch"]), after=str(seq))
    resumed = await again.next()
    assert (resumed["type"], resumed["resumed"], resumed["seq"], resumed["history"]) == ("ready", True, seq, [])
    return again


async def test_a_drop_in_the_middle_of_an_answer(serve: Serve) -> None:
    """Tokens that came while nobody was there are in the replay, joined, and the rest streams on."""
    go, missed = asyncio.Event(), asyncio.Event()
    model = ScriptedModel(["one ", "two ", go, "three ", "four ", missed, "five"])
    async with serve(model=model, linger_seconds=30) as server, await ChatClient.connect(server.url) as watching:
        client = await ChatClient.connect(server.url)
        await client.say("hello")
        while client.text() != "one two ":
            await client.next()
        await drop(client)
        go.set()
        while watching.text() != "one two three four ":
            await watching.next()
        again = await back(server, client)
        assert (await again.until("token"))["content"] == "three four "
        missed.set()
        await again.until("done")
        await watching.until("done")
        assert client.text() + again.text() == watching.text() == "one two three four five"
        await again.websocket.close()


async def test_a_drop_at_every_frame(serve: Serve) -> None:
    """However often a client comes back, and wherever it was, it sees what one that stayed has seen."""
    call = ToolCall("c1", "look", "{}")
    model = ScriptedModel(["Let ", "me ", "look. ", call], ["It ", "is ", "fine."])

    @tool
    async def look() -> str:
        """Look."""
        await asyncio.sleep(0)
        return "all well"

    async with (
        serve(model=model, tools=Registry([look]), linger_seconds=30) as server,
        await ChatClient.connect(server.url) as stayed,
    ):
        visits = [await ChatClient.connect(server.url)]
        await visits[-1].next()
        await visits[-1].say("look, please", message_id="m1")
        await stayed.until("done")
        await stayed.until("saved", through=stayed.frames[-1]["seq"])
        while visits[-1].frames[-1].get("seq", 0) < stayed.frames[-1]["seq"]:
            await drop(visits[-1])
            visits.append(await back(server, visits[-1]))
            await visits[-1].next()
        assert len(visits) > 3
        assert stream(*visits) == stream(stayed)
        await visits[-1].websocket.close()


async def test_a_drop_while_a_tool_runs(serve: Serve) -> None:
    """The result arrives on the next connection."""
    working = asyncio.Event()

    @tool
    async def work() -> str:
        """Work."""
        await working.wait()
        return "done"

    model = ScriptedModel([ToolCall("c1", "work", "{}")], ["Finished."])
    async with serve(model=model, tools=Registry([work]), linger_seconds=30) as server:
        client = await ChatClient.connect(server.url)
        await client.say("work")
        await client.until("tool_call")
        await drop(client)
        again = await back(server, client)
        working.set()
        assert (await again.until("tool_result"))["result"] == "done"
        await again.until("done", reason="complete")
        await again.websocket.close()


async def test_coming_back_after_the_end_of_the_turn(serve: Serve) -> None:
    """A turn that ended while nobody was there is told to its end, and is not told again the next time."""
    go = asyncio.Event()
    model = ScriptedModel(["one ", go, "two"])
    async with serve(model=model, linger_seconds=30) as server, await ChatClient.connect(server.url) as watching:
        await watching.until("ready")
        client = await ChatClient.connect(server.url)
        await client.until("ready")
        await client.say("hello")
        await client.until("token")
        await drop(client)
        go.set()
        await watching.until("done")
        again = await back(server, client)
        await again.until("done", reason="complete")
        assert again.text() == "two"
        await drop(again)
        twice = await back(server, again)
        await twice.send({"type": "ping"})
        while (frame := await twice.next())["type"] != "pong":
            assert frame["type"] == "saved"
        await twice.websocket.close()


async def test_what_one_window_says_appears_in_the_other(serve: Serve) -> None:
    """With its words, under its message id."""
    async with (
        serve() as server,
        await ChatClient.connect(server.url) as one,
        await ChatClient.connect(server.url) as other,
    ):
        await asyncio.gather(one.until("ready"), other.until("ready"))
        await one.say("hello there", message_id="m1")
        accepted = await other.until("accepted")
        assert (accepted["message_id"], accepted["content"]) == ("m1", "hello there")
        await asyncio.gather(one.until("done"), other.until("done"))
        assert one.text() == other.text() != ""


@pytest.mark.parametrize(
    "query", [{"epoch": "1"}, {"after": "1"}, {"epoch": "x", "after": "1"}, {"epoch": "1", "after": "-1"}]
)
async def test_a_position_that_is_none(serve: Serve, query: dict[str, str]) -> None:
    """It is refused by name, and coming back with it again is no use."""
    async with serve() as server:
        client = await ChatClient.connect(server.url, **query)
        assert (await client.next())["code"] == "bad_field"
        assert await client.closed() == 4400


async def test_another_epoch_starts_over(serve: Serve) -> None:
    """A session that ended and was opened anew says so, and carries what is stored."""
    async with serve() as server:
        async with await ChatClient.connect(server.url) as client:
            await client.say("hello", message_id="m1")
            done = await client.until("done")
            await client.until("saved", through=done["seq"])
        again = await ChatClient.connect(server.url, epoch="1", after="2")
        ready = await again.next()
        assert (ready["epoch"], ready["resumed"]) == (2, False)
        assert [event["role"] for event in ready["history"]] == ["user", "assistant"]
        await again.websocket.close()


async def test_a_buffer_that_does_not_reach_back(serve: Serve) -> None:
    """`ready` says that it could not resume, and carries the history and the running answer so far."""
    go = asyncio.Event()
    model = RepliesTo({"hello": ["word "] * 100 + [go]})
    async with serve(model=model, linger_seconds=30, replay_bytes=500) as server:
        client = await ChatClient.connect(server.url)
        await client.say("hello")
        while client.text() != "word " * 100:
            await client.next()
        again = await ChatClient.connect(server.url, epoch="1", after="1")
        ready, token = await again.next(), await again.next()
        assert (ready["resumed"], [event["role"] for event in ready["history"]]) == (False, ["user"])
        assert token["content"] == "word " * 100
        go.set()
        for each in (client, again):
            await each.until("done")
            await each.websocket.close()
