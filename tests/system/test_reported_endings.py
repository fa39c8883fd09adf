"""What users of other realtime AI servers reported, as it must be here: stopping, and ending."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chat.tools.registry import Registry, tool
from chat.web.connection import Connection
from infra.llm import Message, ToolCall
from tests.conftest import Serve
from tests.support.client import PATIENCE, ChatClient
from tests.support.scripted import Pause, RepliesTo, ScriptedModel
from tests.system.reported import Announced, nothing_more, stored
from tests.system.test_faults import locked


async def test_the_final_write_outlives_the_disconnect(serve: Serve, tmp_path: Path) -> None:
    """The store takes nothing while the client leaves mid-reply; what was said is stored all the same, then told."""
    announced = Announced()
    async with serve(model=ScriptedModel(["half ", Pause()]), handoff=announced) as server:
        client = await ChatClient.connect(server.url)
        await client.until("ready")
        with locked(tmp_path):
            await client.say("go")
            await client.until("token")
            await client.websocket.close(1000)
        await announced.of("s1")
        events = await stored(tmp_path)
    assert [(event.role, event.content) for event in events] == [("user", "go"), ("assistant", "half ")]
    assert events[1].metadata["interrupted"] is True


async def test_a_failed_send_does_not_skip_the_end(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token cannot be sent, and only then the line is seen to be lost; what was said is kept, and the end is told."""
    announced, gate, failed = Announced(), Pause(), asyncio.Event()
    send, send_now = Connection.send, Connection.send_now

    async def fails(self: Connection, message: Any) -> None:
        if gate.is_set():
            failed.set()
            raise OSError("broken pipe")
        await send(self, message)

    monkeypatch.setattr(Connection, "send", fails)
    monkeypatch.setattr(Connection, "send_now", lambda self, text: not gate.is_set() and send_now(self, text))
    async with serve(model=ScriptedModel(["one ", gate, "two", Pause()]), handoff=announced) as server:
        client = await ChatClient.connect(server.url)
        await client.say("go")
        await client.until("token")
        gate.set()
        await asyncio.wait_for(failed.wait(), PATIENCE)
        client.websocket.transport.abort()
        assert (await announced.of("s1")).reason == "dropped"
        events = await stored(tmp_path)
    assert (client.text(), events[-1].content, len(announced.ended)) == ("one ", "one two", 1)


async def test_stop_reaches_the_model(serve: Serve) -> None:
    """The call is cut short at once, not when it is over, and what it might still say is not asked for."""
    gate = Pause()
    model = ScriptedModel(["half ", gate, "costly"])
    async with serve(model=model) as server, await ChatClient.connect(server.url) as client:
        await client.say("go")
        await client.until("token")
        await client.send({"type": "cancel"})
        await client.until("done", reason="cancelled")
        await asyncio.wait_for(model.cut_short.wait(), PATIENCE)
        gate.set()
        assert await nothing_more(client) == []
    assert len(model.calls) == 1


async def test_a_session_that_ends_leaves_the_others_alone(serve: Serve) -> None:
    """One client says goodbye in the middle of its reply; its neighbour's reply goes on to the end."""
    gate = Pause()
    announced = Announced()
    model = RepliesTo({}, default=["one ", gate, "two"])
    async with serve(model=model, handoff=announced) as server, await ChatClient.connect(server.url, "stays") as stays:
        leaves = await ChatClient.connect(server.url, "leaves")
        for client in (stays, leaves):
            await client.say("go")
            await client.until("token")
        await leaves.websocket.close(1000)
        await announced.of("leaves")
        gate.set()
        await stays.until("done", reason="complete")
        assert stays.text() == "one two"
        assert [ended.session_id for ended in announced.ended] == ["leaves"]


async def test_draining_one_session_cuts_no_other_short(serve: Serve) -> None:
    """On a drain an idle session leaves at once with 1012; another's reply is read to its end, and then 1012 too."""
    gate = Pause()
    async with serve(model=RepliesTo({}, default=["one ", gate, "two"]), drain_seconds=30) as server:
        idle, busy = await ChatClient.connect(server.url, "idle"), await ChatClient.connect(server.url, "busy")
        await idle.until("ready")
        await busy.say("go")
        await busy.until("token")
        server.leave()
        assert await idle.closed() == 1012
        gate.set()
        assert await busy.closed() == 1012
    assert (busy.text(), busy.types()[-3:]) == ("one two", ["done", "saved", "goodbye"])


def every_call_is_answered(messages: Sequence[Message]) -> bool:
    """Whether a provider takes these: behind each message with calls exactly their results, and none elsewhere."""
    rest = list(messages)
    while rest:
        message = rest.pop(0)
        answers = [rest.pop(0).tool_call_id for _ in message.tool_calls if rest and rest[0].role == "tool"]
        if message.role == "tool" or sorted(map(str, answers)) != sorted(call.call_id for call in message.tool_calls):
            return False
    return True


async def test_stop_while_tools_run_leaves_a_history_the_model_takes(serve: Serve) -> None:
    """Of two calls one was answered when the stop came; the next turn works, on a history without a dangling call."""
    running = Pause()

    @tool
    async def quick() -> str:
        """Answer."""
        return "done"

    @tool
    async def slow() -> str:
        """Take long."""
        await running.wait()
        return "late"

    calls = [ToolCall("c1", "quick", "{}"), ToolCall("c2", "slow", "{}")]
    model = ScriptedModel(["Looking. ", *calls], ["fine"])
    tools = Registry([quick, slow])
    async with (
        serve(model=model, tools=tools, tool_timeout_seconds=60) as server,
        await ChatClient.connect(server.url) as client,
    ):
        await client.say("go")
        await client.until("tool_result", call_id="c1", result="done")
        await asyncio.wait_for(running.reached.wait(), PATIENCE)
        await client.send({"type": "cancel"})
        await client.until("done", reason="cancelled")
        running.set()
        await client.say("again")
        await client.until("done", reason="complete")
    assert every_call_is_answered(model.calls[1])
    assert [call.call_id for message in model.calls[1] for call in message.tool_calls] == ["c1", "c2"]


async def test_a_stop_before_the_answer_is_not_lost(serve: Serve) -> None:
    """In one packet with the message, before anything of the turn is told, it stops the turn all the same."""
    model = RepliesTo({"go": [Pause(), "costly"]}, default=["fine"])
    async with serve(model=model) as server, await ChatClient.connect(server.url) as client:
        await client.until("ready")
        protocol = client.websocket.protocol
        protocol.send_text(b'{"type": "message", "content": "go"}')
        protocol.send_text(b'{"type": "cancel"}')
        client.websocket.transport.write(b"".join(protocol.data_to_send()))
        done = await client.until("done")
        assert (done["reason"], client.text()) == ("cancelled", "")
        await client.say("again")
        await client.until("done", reason="complete")
        assert client.text() == "fine"
