"""Several models: the next is asked where one cannot be had, and one that fails again and again is left alone."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from infra.llm import Finished, ModelError, Reasoning, TextDelta, open_model
from infra.llm.base import Chunk
from infra.llm.fallback import FAILURES, REST_SECONDS, FallbackModel
from infra.llm.retries import ATTEMPTS
from infra.settings import SettingsError, load_settings
from tests.conftest import Serve, make_settings
from tests.support.client import ChatClient
from tests.support.model_service import HELLO, Strict, body_of, chunk
from tests.support.scripted import ScriptedModel

DOWN = ModelError("model_unavailable", "Down.", retryable=True)
WRONG_KEY = ModelError("model_key", "No.", retryable=False)


@pytest.fixture(autouse=True)
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited between tries, without waiting."""
    slept: list[float] = []

    async def wait(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("infra.llm.retries._wait", wait)
    return slept


class Clock:
    """The loop's time, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        loop = asyncio.get_running_loop()
        time = loop.time
        monkeypatch.setattr(loop, "time", lambda: time() + self.ahead)


def both(first: ScriptedModel, second: ScriptedModel, patience: float = 60) -> FallbackModel:
    return FallbackModel([("first", first), ("second", second)], patience)


async def heard(model: FallbackModel) -> list[Chunk]:
    return [chunk async for chunk in model.stream(HELLO, []) if chunk != Reasoning("")]


async def test_the_next_is_asked_after_the_tries_of_the_first() -> None:
    """A passing failure is tried again, then the next model answers; nobody notices."""
    first, second = ScriptedModel(*[[DOWN]] * ATTEMPTS), ScriptedModel(["Hi."])
    assert await heard(both(first, second)) == [TextDelta("Hi."), Finished("complete", 1, 1)]
    assert (len(first.calls), len(second.calls)) == (ATTEMPTS, 1)


async def test_what_cannot_succeed_is_not_tried_again() -> None:
    """A wrong key is wrong the second time, too: the next model is asked at once."""
    first, second = ScriptedModel([WRONG_KEY]), ScriptedModel(["Hi."])
    assert (await heard(both(first, second)))[0] == TextDelta("Hi.")
    assert len(first.calls) == 1


async def test_a_reply_that_began_is_not_begun_again() -> None:
    """Once a word was shown the failure is told; a thought is none."""
    first, second = ScriptedModel([Reasoning("Hm."), "Hel", DOWN]), ScriptedModel(["Hi."])
    with pytest.raises(ModelError, match="Down"):
        await heard(both(first, second))
    assert second.calls == []


async def test_the_last_failure_is_told() -> None:
    """And is final: all were tried as often as they may be."""
    with pytest.raises(ModelError) as failure:
        await heard(both(ScriptedModel([WRONG_KEY]), ScriptedModel(*[[DOWN]] * ATTEMPTS)))
    assert (failure.value.code, failure.value.retryable) == ("model_unavailable", False)


@pytest.mark.parametrize(("wanted", "tries"), [(5.0, 2), (500.0, 1)])
async def test_retry_after_is_obeyed_or_the_next_is_asked(waited: list[float], wanted: float, tries: int) -> None:
    """What is asked for is waited, if the patience reaches so far."""
    busy = ModelError("model_rate_limited", "Busy.", retryable=True, retry_after=wanted)
    first, second = ScriptedModel([busy], ["Here I am."]), ScriptedModel(["Hi."])
    answered = (await heard(both(first, second)))[0]
    assert answered == TextDelta("Here I am." if tries == 2 else "Hi.")
    assert waited == [wanted] * (tries - 1)


@pytest.mark.parametrize("code", ["model_refused", "model_bad_request"])
async def test_nobody_has_a_model_left_alone_by_what_they_say(code: str) -> None:
    """A conversation that it refuses, however often, is that conversation's: others are still answered by it."""
    refusal = ModelError(code, "No.", retryable=False)
    first = ScriptedModel(*[[refusal]] * (FAILURES + 2), ["Hi, others."])
    model = both(first, ScriptedModel(*[["Hi."]] * 20))
    for _ in range(FAILURES + 2):
        assert (await heard(model))[0] == TextDelta("Hi.")
    assert (await heard(model))[0] == TextDelta("Hi, others.")


async def test_one_that_never_answers_is_replaced_too(serve: Serve) -> None:
    """Its silence is noticed by its own client, before the turn gives up: there is another to ask."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = await body_of(reader)
        if body["model"] == "second":
            events = [json.dumps(chunk({"content": "Hi."})), json.dumps(chunk({}, "stop")), "[DONE]"]
            text = "".join(f"data: {event}\n\n" for event in events).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text))
            await writer.drain()
        else:
            await reader.read()  # returns when the client leaves
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as service:
        url = f"http://127.0.0.1:{service.sockets[0].getsockname()[1]}/v1"
        named = {"llm_provider": "openai", "llm_model": "first", "openai_api_key": "k", "openai_base_url": url}
        more = {"llm_fallback": "openai/second", "llm_timeout_seconds": 0.2}
        async with serve(**named, **more) as server, await ChatClient.connect(server.url) as client:
            await client.say("hello")
            assert (await client.until("done"))["model"] == "second"
        assert client.text() == "Hi."
        assert "error" not in client.types()


async def test_one_that_fails_again_and_again_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then one call tries it; while that fails the others are spared it, and once it works it is asked as before."""
    clock = Clock(monkeypatch)
    first = ScriptedModel(*[[WRONG_KEY]] * (FAILURES + 1), *[["Back."]] * 2)
    model = both(first, ScriptedModel(*[["Hi."]] * 20))
    for _ in range(FAILURES + 5):
        assert (await heard(model))[0] == TextDelta("Hi.")
    assert len(first.calls) == FAILURES
    clock.ahead += REST_SECONDS + 1
    for _ in range(3):
        assert (await heard(model))[0] == TextDelta("Hi.")
    assert len(first.calls) == FAILURES + 1
    clock.ahead += REST_SECONDS + 1
    assert [(await heard(model))[0] for _ in range(2)] == [TextDelta("Back.")] * 2


@pytest.mark.parametrize("named", ["gpt-4o", "oracle/delphi", "openai/"])
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    """With an example of a right one."""
    monkeypatch.setenv("LLM_FALLBACK", named)
    with pytest.raises(SettingsError, match="LLM_FALLBACK: pairs as openai/gpt-4o-mini"):
        load_settings(None)


def test_a_key_that_a_fallback_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, and not when it is needed."""
    monkeypatch.setenv("LLM_FALLBACK", "anthropic/claude")
    with pytest.raises(SettingsError, match="ANTHROPIC_API_KEY: needed"):
        load_settings(None)


async def test_done_and_the_stored_event_name_the_model(serve: Serve) -> None:
    """The one that answered, in place of the first, which refuses its key."""

    def refuses(body: dict[str, Any]) -> tuple[int, str] | None:
        return (401, "no") if body["model"] == "first" else None

    async with Strict(refuses) as service:
        named = {"llm_provider": "openai", "llm_model": "first", "openai_api_key": "k"}
        more = {"openai_base_url": service.base_url, "llm_fallback": "openai/second"}
        async with serve(**named, **more) as server, await ChatClient.connect(server.url) as client:
            await client.say("hello")
            assert (await client.until("done"))["model"] == "second"
            async with await ChatClient.connect(server.url) as late:
                (_, answer) = (await late.until("ready"))["history"]
    assert answer["metadata"]["model"] == "second"


async def test_without_fallbacks_nothing_stands_between() -> None:
    """The one model is the model."""
    model = open_model(make_settings(Path()))
    assert not isinstance(model, FallbackModel)
    await model.close()
    several: Sequence[str] = ("demo/", "demo/")
    model = open_model(make_settings(Path(), llm_fallback=",".join(several)))
    assert isinstance(model, FallbackModel)
    await model.close()
