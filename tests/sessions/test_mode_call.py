"""The model is asked for the mode: once, not for long, and whatever comes of it the turn goes on."""

import asyncio
from collections.abc import Sequence

import pytest
from structlog.testing import capture_logs

from chat.sessions.mode_call import MODE_CHARS, ask_mode
from infra.llm import Finished, Message, ModelError, ToolCall
from tests.support.scripted import Pause, ScriptedModel, Step

QUESTION = [Message("system", "Which?"), Message("user", "hello")]


async def test_the_answer_and_what_it_took() -> None:
    """All of its words, and its tokens; it is offered no tools."""
    model = ScriptedModel(["sup", "port", Finished("complete", 30, 2)])
    assert await ask_mode(model, QUESTION) == ("support", Finished("complete", 30, 2))
    assert (model.calls, model.offered) == ([QUESTION], [[]])


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ([ModelError("model_unavailable", "Down.", retryable=True)], "model_unavailable"),
        (["sup", ModelError("model_timeout", "Late.", retryable=True)], "model_timeout"),
        ([RuntimeError("a secret")], "RuntimeError"),
        ([asyncio.CancelledError()], "cancelled"),
    ],
)
async def test_a_failure_is_no_answer(script: Sequence[Step], cause: str) -> None:
    """A failure is logged without its text, which may hold secrets, and the model is not asked twice."""
    model = ScriptedModel(script)
    with capture_logs() as logs:
        assert await ask_mode(model, QUESTION) == ("", None)
    assert [(line["event"], line["cause"]) for line in logs] == [("the model named no mode", cause)]
    assert "secret" not in str(logs)
    assert len(model.calls) == 1


@pytest.mark.parametrize("before", [[], ["support"]])
async def test_a_model_that_takes_too_long_is_let_go(before: list[Step], monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow answer is given up: its call is closed, and what it had begun to say does not count."""
    monkeypatch.setattr("chat.sessions.mode_call.MODE_SECONDS", 0.05)
    model = ScriptedModel([*before, asyncio.Event()])
    async with asyncio.timeout(5):
        assert await ask_mode(model, QUESTION) == ("", None)
    assert model.cut_short.is_set()


async def test_a_model_that_talks_on_is_cut_short() -> None:
    """No more is read than a name and a sentence around it would take."""
    model = ScriptedModel(["x" * 50] * 1000)
    answer, _ = await ask_mode(model, QUESTION)
    assert len(answer) < MODE_CHARS + 60
    assert model.cut_short.is_set()


async def test_a_tool_call_is_no_answer() -> None:
    """A model that calls what it was not offered has named no mode."""
    model = ScriptedModel([ToolCall("c", "look", "{}"), Finished("tool_calls", 3, 1)])
    assert await ask_mode(model, QUESTION) == ("", Finished("tool_calls", 3, 1))


async def test_a_stop_stops_it() -> None:
    """A turn that is cancelled while it asks is gone at once, and the model's call with it."""
    asked = Pause()
    model = ScriptedModel([asked])
    asking = asyncio.create_task(ask_mode(model, QUESTION))
    await asked.reached.wait()
    asking.cancel()
    await asyncio.wait([asking], timeout=5)
    assert asking.cancelled()
    assert model.cut_short.is_set()
