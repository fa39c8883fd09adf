"""What a model thinks, and what its provider wants back: who is told of it, and who is not."""

from pathlib import Path
from typing import Any

import httpx

from infra.llm import Finished, Reasoning, ToolCall
from infra.store.sqlite import SqliteStore
from tests.conftest import Serve
from tests.support.client import ChatClient
from tests.support.scripted import ScriptedModel

THOUGHT = {"call": {"extra_content": {"google": {"thought_signature": "secret-signature"}}}}
SIGNED = {"reasoning_details": [{"signature": "secret-signature"}]}


async def test_thoughts_reach_those_who_asked_for_them(serve: Serve) -> None:
    """With `?reasoning=1` they come as they are thought, outside the stream; they are in no answer and no history."""
    model = ScriptedModel([Reasoning("A greeting, "), Reasoning("I think."), "Hello!"])
    async with (
        serve(model=model) as server,
        await ChatClient.connect(server.url, reasoning="1") as curious,
        await ChatClient.connect(server.url) as other,
    ):
        await other.until("ready")
        await curious.say("hi")
        for client in (curious, other):
            await client.until("done")
        thoughts = [frame for frame in curious.frames if frame["type"] == "reasoning"]
        assert [thought["content"] for thought in thoughts] == ["A greeting, ", "I think."]
        assert all("seq" not in thought for thought in thoughts)
        assert "reasoning" not in other.types()
        assert curious.text() == other.text() == "Hello!"
        async with await ChatClient.connect(server.url) as late:
            ready = await late.until("ready")
    assert [event["content"] for event in ready["history"]] == ["hi", "Hello!"]


async def test_what_a_provider_wants_back_is_shown_to_no_client(serve: Serve, tmp_path: Path) -> None:
    """It is stored with the call and the answer, goes back to the model, also after a restart, and no further."""
    told: list[list[Any]] = []
    call = ToolCall("c1", "get_user_stats", "{}", THOUGHT)
    for number in (1, 2):
        scripts = [[call], ["You are new.", Finished("complete", opaque=SIGNED)]] if number == 1 else [["Again."]]
        model = ScriptedModel(*scripts)
        async with (
            serve(model=model) as server,
            await ChatClient.connect(server.url) as client,
            httpx.AsyncClient(base_url=server.http) as http,
        ):
            ready = await client.until("ready")
            await client.say("my stats?")
            done = await client.until("done")
            while (await client.until("saved"))["through"] < done["seq"]:
                pass
            page = (await http.get("/sessions/s1/events")).text
        assert "secret-signature" not in page
        assert "secret-signature" not in str(client.frames) + str(ready)
        told.append(model.calls[-1])
    for messages in told:
        (asked,) = (message for message in messages if message.tool_calls)
        assert asked.tool_calls[0].opaque == THOUGHT
    answered = next(message for message in told[1] if message.content == "You are new.")
    assert answered.opaque == SIGNED
    store = await SqliteStore.open(tmp_path / "realtime.db")
    stored = await store.events("s1", limit=99)
    await store.close()
    assert [event.metadata["opaque"] for event in stored if "opaque" in event.metadata] == [THOUGHT, SIGNED]
