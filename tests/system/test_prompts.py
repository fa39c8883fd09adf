"""The operator's prompts, from the file to the model, the page's frames, the store and the summary."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from functions.summary.prompt import plain_summary
from infra.llm import Finished, Message, ModelError
from infra.store.sqlite import SqliteStore
from tests.conftest import Serve
from tests.support.client import ChatClient
from tests.support.scripted import ScriptedModel

FILE = """
default = "general"
route = "{route}"
[modes.support]
prompt = "You help with orders."
description = "orders and refunds"
when.words = ["refund*"]
[modes.general]
prompt = "You chat."
"""


@pytest.fixture
def by_rules(tmp_path: Path) -> Path:
    """A file with a rule."""
    file = tmp_path / "rules.toml"
    file.write_text(FILE.format(route="rules"))
    return file


@pytest.fixture
def by_model(tmp_path: Path) -> Path:
    """The same, but the model is asked."""
    file = tmp_path / "model.toml"
    file.write_text(FILE.format(route="model"))
    return file


async def said(client: ChatClient, content: str) -> dict[str, Any]:
    """Say this, and wait until the answer is stored; the turn's end."""
    await client.say(content)
    done = await client.until("done")
    if not any(frame["type"] == "saved" and frame["through"] >= done["seq"] for frame in client.frames):
        await client.until("saved", through=done["seq"])
    return done


def mode_of(client: ChatClient) -> str:
    """The mode that the client was told, which is once, after `accepted` and before the first token."""
    frames = [frame for frame in client.frames if frame["type"] in ("accepted", "mode", "token")]
    assert [frame["type"] for frame in frames[:3]] == ["accepted", "mode", "token"]
    assert client.types().count("mode") == 1
    return str(frames[1]["mode"])


async def test_a_rule_chooses_a_mode_of_the_operators_own(serve: Serve, by_rules: Path, tmp_path: Path) -> None:
    """The page is told its name, the model its prompt, and the summary calls the conversation by it."""
    model = ScriptedModel(["Which order?"])
    async with serve(model=model, prompts_file=by_rules) as server, await ChatClient.connect(server.url) as client:
        await said(client, "I want a refund")
    assert mode_of(client) == "support"
    assert model.calls == [[Message("system", "You help with orders."), Message("user", "I want a refund")]]
    store = await SqliteStore.open(tmp_path / "realtime.db")
    row, events = await store.session("s1"), await store.events("s1", limit=9)
    await store.close()
    assert row
    assert row.mode == "support"
    assert plain_summary(events, row.mode).startswith("A support conversation of 1 message and 1 reply")


async def test_a_session_keeps_a_mode_that_the_file_has_lost(serve: Serve, by_rules: Path) -> None:
    """Opened again under other prompts it still has its mode, and is answered with the default prompt."""
    first, model = ScriptedModel(["Yes."]), ScriptedModel(["Ahoy."])
    async with serve(model=first, prompts_file=by_rules) as server, await ChatClient.connect(server.url) as client:
        await said(client, "I want a refund")
    pirate = "You are a pirate."
    async with serve(model=model, system_prompt=pirate) as server, await ChatClient.connect(server.url) as client:
        ready = await client.next()
        await said(client, "and now?")
    assert ready["mode"] == "support"
    assert "mode" not in client.types()
    assert model.calls[0][0] == Message("system", pirate)


async def test_the_model_names_the_mode(serve: Serve, by_model: Path) -> None:
    """Before its first answer it is asked once; the mode is told, kept, and its tokens are part of the turn's."""
    model = ScriptedModel(["support", Finished("complete", 20, 1)], ["Which order?"], ["I see."], ["Back?"])
    async with serve(model=model, prompts_file=by_model) as server:
        async with await ChatClient.connect(server.url) as client:
            done = await said(client, "my money back please")
            await said(client, "order 1")
        async with await ChatClient.connect(server.url) as again:
            ready = await again.next()
            await said(again, "hello again")
    assert (mode_of(client), ready["mode"]) == ("support", "support")
    assert done["usage"] == {"input_tokens": 21, "output_tokens": 2, "cached_tokens": 0, "reasoning_tokens": 0}
    assert "support: orders and refunds\ngeneral" in model.calls[0][0].content
    assert [call[0].content for call in model.calls[1:]] == ["You help with orders."] * 3


@pytest.mark.parametrize("problem", [asyncio.Event(), ModelError("model_unavailable", "Down.", retryable=True)])
async def test_a_model_that_names_none_delays_nobody(
    serve: Serve, by_model: Path, problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs or fails: after the time it has, the turn is answered in the default mode, and does not fail."""
    monkeypatch.setattr("chat.sessions.mode_call.MODE_SECONDS", 0.05)
    model = ScriptedModel([problem], ["Hi."])
    async with serve(model=model, prompts_file=by_model) as server, await ChatClient.connect(server.url) as client:
        done = await said(client, "hello")
    assert (mode_of(client), client.text(), done["reason"]) == ("general", "Hi.", "complete")
    assert model.calls[1][0] == Message("system", "You chat.")


async def test_the_demo_model_can_be_asked_too(serve: Serve, by_model: Path) -> None:
    """Without a key the same file works: the demo model finds a mode that the message names."""
    async with serve(prompts_file=by_model) as server, await ChatClient.connect(server.url) as client:
        await said(client, "hello support")
    assert mode_of(client) == "support"
