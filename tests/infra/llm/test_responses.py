"""`ResponsesModel` over real HTTP: against aimock, which speaks OpenAI's Responses API too, and recorded events."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.llm import Finished, Message, Model, ModelError, Reasoning, TextDelta, ToolCall, open_model
from infra.llm.base import Chunk
from infra.llm.responses import build
from tests.conftest import Serve, make_settings
from tests.support.aimock import API_KEY, AIMock
from tests.support.client import PATIENCE, ChatClient
from tests.support.model_service import HELLO, WEATHER, Answer, Service, Step, heard


def provider(base_url: str) -> dict[str, Any]:
    """The settings that lead to this service."""
    named = {"openai_base_url": base_url, "openai_api_key": API_KEY, "llm_model": "gpt-5", "openai_api": "responses"}
    return {"llm_provider": "openai", "llm_timeout_seconds": PATIENCE} | named


@asynccontextmanager
async def model_at(base_url: str) -> AsyncIterator[Model]:
    """The model as the product makes it, closed at the end."""
    model = open_model(make_settings(Path(), **provider(base_url)))
    try:
        yield model
    finally:
        await model.close()


async def test_a_reply_streams_and_ends_with_its_usage(aimock: AIMock) -> None:
    """Text comes as the service sent it, then one end with the tokens it counted."""
    aimock.answer(
        {"userMessage": "hello"},
        {"content": "Hello to you.", "usage": {"input_tokens": 7, "output_tokens": 4, "total_tokens": 11}},
        chunkSize=5,
    )
    async with model_at(aimock.base_url) as model:
        answer = await Answer.of(model, HELLO)
    assert answer.text == "Hello to you."
    last = answer.chunks[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.input_tokens, last.output_tokens) == ("complete", 7, 4)
    (entry,) = aimock.journal()
    assert (entry["method"], entry["path"]) == ("POST", "/v1/responses")


async def test_a_conversation_with_tools(aimock: AIMock, serve: Serve) -> None:
    """Over the WebSocket: a tool is called, its result goes back to the service, and its answer streams on."""
    call = {"id": "c1", "name": "fetch_data", "arguments": {"topic": "sales", "months": 2}}
    aimock.answer({"userMessage": "sales", "hasToolResult": False}, {"toolCalls": [call]})
    aimock.answer({"userMessage": "sales", "hasToolResult": True}, {"content": "Sales went up."})
    async with serve(**provider(aimock.base_url)) as server, await ChatClient.connect(server.url) as client:
        await client.say("how are sales?")
        assert (await client.until("done"))["reason"] == "complete"
        assert client.text() == "Sales went up."


def test_the_request_has_the_form_the_api_wants() -> None:
    """Items in their order, thoughts before the call they led to, the prompt apart, and nothing kept there."""
    thought = {"type": "reasoning", "id": "rs", "encrypted_content": "xyz", "summary": []}
    call = ToolCall("c1", "weather", '{"city":"Rome"}').with_message({"items": [thought]})
    said = [
        Message("system", "Be brief."),
        Message("user", "Weather in Rome?"),
        Message("assistant", "I look.", (call,)),
        Message("tool", '{"sky":"blue"}', tool_call_id="c1"),
    ]
    body = build("gpt-5", said, [WEATHER], 50)
    assert body["instructions"] == "Be brief."
    assert (body["store"], body["max_output_tokens"]) == (False, 50)
    assert body["input"] == [
        {"role": "user", "content": "Weather in Rome?"},
        thought,
        {"role": "assistant", "content": "I look."},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Rome"}'},
        {"type": "function_call_output", "call_id": "c1", "output": '{"sky":"blue"}'},
    ]
    assert body["tools"][0]["name"] == "weather"


def event(kind: str, **fields: Any) -> bytes:
    """An event as the API sends it."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n".encode()


def end(status: str, **fields: Any) -> bytes:
    """The last event."""
    usage = {
        "input_tokens": 90,
        "input_tokens_details": {"cached_tokens": 64},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 12},
    }
    return event(f"response.{status}", response={"status": status, "usage": usage} | fields)


TEXT = [event("response.output_text.delta", delta="Hello "), event("response.output_text.delta", delta="world.")]
THOUGHT = {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "xyz"}
CALL = {"type": "function_call", "id": "fc", "call_id": "c1", "name": "weather", "arguments": '{"city":"Rome"}'}


async def after(*steps: Step) -> tuple[list[Chunk], ModelError | None]:
    """What comes of these events, and the error that ends them."""
    async with Service(*steps) as service, model_at(service.base_url) as model:
        return await heard(model, [WEATHER])


async def test_thoughts_calls_and_tokens() -> None:
    """Summaries of thoughts are told, their encrypted form is kept for the next request, and every token counted."""
    chunks, _ = await after(
        event("response.created", response={}),
        event("response.reasoning_summary_text.delta", delta="Looking."),
        event("response.output_item.done", item=THOUGHT | {"status": None}),
        event("response.output_item.done", item=CALL),
        end("completed"),
    )
    kept = {"message": {"items": [THOUGHT]}}
    assert chunks == [
        Reasoning("Looking."),
        ToolCall("c1", "weather", '{"city":"Rome"}', kept),
        Finished("tool_calls", 90, 20, 64, 12),
    ]


@pytest.mark.parametrize(
    ("last", "reason", "why"),
    [
        (end("completed"), "complete", ""),
        (end("incomplete", incomplete_details={"reason": "max_output_tokens"}), "length", ""),
        (end("incomplete", incomplete_details={"reason": "content_filter"}), "cut", "content_filter"),
    ],
)
async def test_how_a_reply_ends(last: bytes, reason: str, why: str) -> None:
    """Whole, at the limit, or cut, which says by what."""
    chunks, _ = await after(*TEXT, b"data: {nonsense\n\n", last)
    assert "".join(chunk.text for chunk in chunks if isinstance(chunk, TextDelta)) == "Hello world."
    finished = chunks[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.why) == (reason, why)


@pytest.mark.parametrize(
    ("last", "code"),
    [
        ((), "model_unavailable"),
        ((event("error", code="server_error", message="secret"),), "model_unavailable"),
        ((event("response.failed", response={"error": {"code": "insufficient_quota"}}),), "model_quota"),
        ((event("response.failed", response={"error": {"code": "rate_limit_exceeded"}}),), "model_rate_limited"),
    ],
    ids=["broken off", "an error", "no credit", "busy"],
)
async def test_a_stream_that_fails(last: tuple[bytes, ...], code: str) -> None:
    """It is told as what it is, without the service's words."""
    _, error = await after(*TEXT, *last)
    assert error
    assert error.code == code
    assert "secret" not in str(error)
