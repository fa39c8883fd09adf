"""Conversations over a real socket with the real server."""

import asyncio
import json

from infra.llm import Finished, ToolCall
from tests.conftest import Serve
from tests.support.client import ChatClient
from tests.support.scripted import RepliesTo, ScriptedModel

STATS = ToolCall("call-1", "get_user_stats", "{}")


async def test_a_first_message_is_answered_and_saved(serve: Serve) -> None:
    """A new session gets ready, accepted, mode, tokens, done and saved, each `seq` above the one before."""
    async with serve() as server, await ChatClient.connect(server.url) as client:
        await client.say("hello there", message_id="m1")
        done = await client.until("done")
        await client.until("saved", through=done["seq"])
    ready, accepted, mode = client.frames[:3]
    assert ready == {
        "type": "ready",
        "seq": 0,
        "session_id": "s1",
        "epoch": 1,
        "resumed": False,
        "mode": None,
        "history": [],
        "active_turn_id": None,
        "protocol": 1,
        "unsaved": [],
        "more": False,
    }
    told = {"message_id": "m1", "turn_id": done["turn_id"], "content": "hello there"}
    assert accepted == {"type": "accepted", "seq": 1} | told
    assert mode == {"type": "mode", "seq": 2, "mode": "casual"}
    assert "hello there" in client.text()
    assert done["reason"] == "complete"
    assert done["usage"]["output_tokens"] == len(client.text().split())
    seqs = [frame["seq"] for frame in client.frames]
    assert seqs == sorted(set(seqs))


async def test_plain_text_is_a_message(serve: Serve) -> None:
    """A text frame that is no JSON object is what the user says, so a terminal client can chat."""
    async with serve() as server, await ChatClient.connect(server.url) as client:
        await client.send("hello from a terminal")
        await client.until("done")
        assert "hello from a terminal" in client.text()


async def test_tools_run_and_their_results_make_the_answer(serve: Serve) -> None:
    """Both keyword tools are called, answer, and the reply is made of what they gave."""
    async with serve() as server, await ChatClient.connect(server.url, user_id="ann") as client:
        await client.say("fetch the sales data and show my stats")
        done = await client.until("done")
        await client.until("saved", through=done["seq"])
    calls = {f["name"]: f for f in client.frames if f["type"] == "tool_call"}
    results = {f["name"]: f["result"] for f in client.frames if f["type"] == "tool_result"}
    assert calls["fetch_data"]["arguments"] == {"topic": "sales"}
    assert len(results["fetch_data"]["rows"]) == 6
    assert (results["get_user_stats"]["sessions"], results["get_user_stats"]["messages"]) == (1, 1)
    assert "For sales there are 6 rows" in client.text()
    assert client.types()[:4] == ["ready", "accepted", "mode", "token"]


async def test_a_later_turn_knows_the_earlier_one(serve: Serve) -> None:
    """The second reply refers back to the first message."""
    async with serve() as server, await ChatClient.connect(server.url) as client:
        for text in ("my cat is called Momo", "what now?"):
            await client.say(text)
            done = await client.until("done")
        assert "my cat is called Momo" in client.text(done["turn_id"])


async def test_a_reopened_session_has_its_history_and_mode(serve: Serve) -> None:
    """After goodbye and return the epoch is one more, and `ready` carries every event, and the mode, once."""
    async with serve() as server:
        async with await ChatClient.connect(server.url) as client:
            await client.say("compare two numbers")
            done = await client.until("done")
        async with await ChatClient.connect(server.url) as again:
            ready = await again.next()
            await again.say("and now?")
            second = await again.until("done")
    assert (ready["epoch"], ready["mode"], ready["seq"]) == (2, "analytical", 0)
    assert [(event["role"], event["turn_id"]) for event in ready["history"]] == [
        ("user", done["turn_id"]),
        ("assistant", done["turn_id"]),
    ]
    assert "Earlier you said “compare two numbers”" in again.text(second["turn_id"])


async def test_two_sessions_do_not_mix(serve: Serve) -> None:
    """Two users at once each get their own reply, tools and history."""
    async with (
        serve() as server,
        await ChatClient.connect(server.url, "one", user_id="ann") as ann,
        await ChatClient.connect(server.url, "two", user_id="ben") as ben,
    ):
        await asyncio.gather(ann.say("tell me about apples"), ben.say("tell me about bears"))
        await asyncio.gather(ann.until("done"), ben.until("done"))
        assert "apples" in ann.text()
        assert "bears" in ben.text()
        assert "bears" not in json.dumps(ann.frames)
        assert "apples" not in json.dumps(ben.frames)


async def test_two_sockets_share_one_session(serve: Serve) -> None:
    """A second tab joins mid-reply: it gets the text so far, then every frame; one leaving ends nothing."""
    go_on = asyncio.Event()
    model = ScriptedModel(["Once ", "upon ", go_on, "a time."])
    async with serve(model=model) as server, await ChatClient.connect(server.url) as first:
        await first.say("a story")
        await first.until("token", content="upon ")
        async with await ChatClient.connect(server.url) as second:
            ready = await second.next()
            await second.until("token")
            assert second.text() == "Once upon "
            go_on.set()
            done = await second.until("done")
        assert second.text() == "Once upon a time."
        assert (ready["epoch"], ready["active_turn_id"]) == (1, done["turn_id"])
        assert ready["history"][0]["content"] == "a story"
        assert (await first.until("done"))["seq"] == done["seq"]
        await first.send({"type": "ping"})
        await first.until("pong")


async def test_cancel_keeps_what_was_said_and_the_next_turn_works(serve: Serve) -> None:
    """Stop mid-stream closes the model's call, marks the reply interrupted, and leaves a usable history."""
    never = asyncio.Event()
    model = ScriptedModel(["Half a ", never], ["Whole."])
    async with serve(model=model) as server, await ChatClient.connect(server.url) as client:
        await client.say("go")
        await client.until("token")
        await client.send({"type": "cancel"})
        done = await client.until("done")
        assert done["reason"] == "cancelled"
        await asyncio.wait_for(model.cut_short.wait(), 5)
        await client.say("again")
        assert (await client.until("done"))["reason"] == "complete"
    said = [(message.role, message.content) for message in model.calls[1][1:]]
    assert said == [("user", "go"), ("assistant", "Half a "), ("user", "again")]


async def test_cancel_before_the_first_token(serve: Serve) -> None:
    """Stop sent right behind the message stops the turn, though nothing of it was shown."""
    never = asyncio.Event()
    model = RepliesTo({"go": [never, "late"], "again": ["fine"]})
    async with serve(model=model) as server, await ChatClient.connect(server.url) as client:
        await client.say("go")
        await client.send({"type": "cancel"})
        assert (await client.until("done"))["reason"] == "cancelled"
        await client.say("again")
        await client.until("done")
        assert client.text() == "fine"
    assert [(m.role, m.content) for m in model.calls[-1][1:]] == [("user", "go"), ("user", "again")]


async def test_cancel_while_a_tool_runs(serve: Serve) -> None:
    """Stop during a tool answers its call as stopped, and the model is given a history with no call left open."""
    from chat.tools.registry import Registry, tool

    started, never = asyncio.Event(), asyncio.Event()

    @tool
    async def slow() -> str:
        """Take for ever."""
        started.set()
        await never.wait()
        return "never"

    model = ScriptedModel([ToolCall("c1", "slow", "{}")], ["fine"])
    async with (
        serve(model=model, tools=Registry([slow]), tool_timeout_seconds=60) as server,
        await ChatClient.connect(server.url) as client,
    ):
        await client.say("go")
        await asyncio.wait_for(started.wait(), 5)
        await client.send({"type": "cancel"})
        result = await client.until("tool_result")
        assert result["error"] == "stopped before it answered"
        assert (await client.until("done"))["reason"] == "cancelled"
        await client.say("again")
        await client.until("done")
    roles = [(m.role, m.tool_call_id, [call.call_id for call in m.tool_calls]) for m in model.calls[1][1:]]
    assert roles == [
        ("user", None, []),
        ("assistant", None, ["c1"]),
        ("tool", "c1", []),
        ("user", None, []),
    ]


async def test_a_message_during_a_reply_waits_its_turn(serve: Serve) -> None:
    """With WHILE_BUSY=queue the second message is accepted at once and answered after the first."""
    go_on = asyncio.Event()
    model = ScriptedModel(["one", go_on], ["two"])
    async with serve(model=model) as server, await ChatClient.connect(server.url) as client:
        await client.say("first")
        await client.until("token")
        await client.say("second", message_id="m2")
        accepted = await client.until("accepted", message_id="m2")
        go_on.set()
        first = await client.until("done")
        second = await client.until("done")
    assert first["turn_id"] != second["turn_id"] == accepted["turn_id"]
    assert [m.content for m in model.calls[1][1:]] == ["first", "one", "second"]


async def test_a_message_during_a_reply_interrupts_it(serve: Serve) -> None:
    """With WHILE_BUSY=interrupt the running reply ends as cancelled and the new one starts."""
    never = asyncio.Event()
    model = ScriptedModel(["one", never], ["two"])
    async with (
        serve(model=model, while_busy="interrupt") as server,
        await ChatClient.connect(server.url) as client,
    ):
        await client.say("first")
        await client.until("token")
        await client.say("second")
        assert (await client.until("done"))["reason"] == "cancelled"
        assert (await client.until("done"))["reason"] == "complete"
        assert client.text() == "onetwo"


async def test_a_message_during_a_reply_is_rejected(serve: Serve) -> None:
    """With WHILE_BUSY=reject it gets the error `busy` with its own id, and the reply goes on."""
    go_on = asyncio.Event()
    async with (
        serve(model=ScriptedModel(["one", go_on, "!"]), while_busy="reject") as server,
        await ChatClient.connect(server.url) as client,
    ):
        await client.say("first")
        await client.until("token")
        await client.say("second", message_id="m2")
        error = await client.until("error")
        assert (error["code"], error["message_id"], error["retry_after"]) == ("busy", "m2", 2.0)
        go_on.set()
        await client.until("done", reason="complete")
        assert client.text() == "one!"


async def test_messages_during_a_reply_are_merged(serve: Serve) -> None:
    """With WHILE_BUSY=merge all that came during a reply is answered by one turn."""
    go_on = asyncio.Event()
    model = ScriptedModel(["one", go_on], ["both"])
    async with serve(model=model, while_busy="merge") as server, await ChatClient.connect(server.url) as client:
        await client.say("first")
        await client.until("token")
        await client.say("second", message_id="m2")
        await client.say("third", message_id="m3")
        turns = {(await client.until("accepted", message_id=m))["turn_id"] for m in ("m2", "m3")}
        go_on.set()
        await client.until("done")
        merged = await client.until("done")
    assert turns == {merged["turn_id"]}
    assert [m.content for m in model.calls[1][1:]] == ["first", "one", "second", "third"]


async def test_a_message_sent_twice_is_answered_once(serve: Serve) -> None:
    """The same `message_id` again is accepted as the same turn, also after the session was reopened."""
    model = ScriptedModel(["answer"])
    async with serve(model=model) as server:
        async with await ChatClient.connect(server.url) as client:
            await client.say("hello", message_id="m1")
            done = await client.until("done")
            await client.say("hello", message_id="m1")
            assert (await client.until("accepted", message_id="m1"))["turn_id"] == done["turn_id"]
        async with await ChatClient.connect(server.url) as again:
            await again.say("hello", message_id="m1")
            assert (await again.until("accepted"))["turn_id"] == done["turn_id"]
    assert len(model.calls) == 1


async def test_usage_of_all_rounds_is_summed(serve: Serve) -> None:
    """`done` counts the tokens of every call the turn made to the model."""
    model = ScriptedModel([STATS, Finished("tool_calls", 10, 3)], ["answer", Finished("length", 20, 4)])
    async with serve(model=model) as server, await ChatClient.connect(server.url) as client:
        await client.say("go")
        done = await client.until("done")
    assert (done["reason"], done["usage"]) == (
        "length",
        {"input_tokens": 30, "output_tokens": 7, "cached_tokens": 0, "reasoning_tokens": 0},
    )
