"""`AnthropicModel` over real HTTP: against aimock, which speaks Anthropic's protocol too, and recorded events."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.llm import Finished, Message, Model, ModelError, Reasoning, TextDelta, ToolCall, ToolSpec, open_model
from infra.llm.anthropic_request import build
from infra.llm.base import Chunk
from infra.settings import SettingsError, load_settings
from tests.conftest import Serve, make_settings
from tests.support.aimock import API_KEY, AIMock
from tests.support.client import PATIENCE, ChatClient
from tests.support.model_service import HELLO, WEATHER, Answer, Service, Step, Strict, heard

CALL = ToolCall("c1", "weather", '{"city":"Rome"}')


def provider(base_url: str, **changed: Any) -> dict[str, Any]:
    """The settings that lead to this service."""
    named = {"anthropic_base_url": base_url.removesuffix("/v1"), "anthropic_api_key": API_KEY, "llm_model": "claude"}
    return {"llm_provider": "anthropic", "llm_timeout_seconds": PATIENCE} | named | changed


@asynccontextmanager
async def model_at(base_url: str, **changed: Any) -> AsyncIterator[Model]:
    """The model as the product makes it, closed at the end."""
    model = open_model(make_settings(Path(), **provider(base_url, **changed)))
    try:
        yield model
    finally:
        await model.close()


async def ask(base_url: str, messages: list[Message] = HELLO, tools: list[ToolSpec] | None = None) -> Answer:
    """What the model there makes of this."""
    async with model_at(base_url) as model:
        return await Answer.of(model, messages, tools)


async def test_a_reply_streams_and_ends_with_its_usage(aimock: AIMock) -> None:
    """Text comes as the service sent it, then one end with the tokens it counted."""
    aimock.answer(
        {"userMessage": "hello"},
        {"content": "Hello to you.", "usage": {"input_tokens": 7, "output_tokens": 4}},
        chunkSize=5,
    )
    answer = await ask(aimock.base_url)
    assert answer.text == "Hello to you."
    end = answer.chunks[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.input_tokens, end.output_tokens) == ("complete", 7, 4)
    (entry,) = aimock.journal()
    assert (entry["method"], entry["path"]) == ("POST", "/v1/messages")


async def test_parallel_tool_calls_come_out_whole(aimock: AIMock) -> None:
    """Text comes first, then two calls whose arguments arrived three characters at a time, each in one piece."""
    calls = [
        {"id": "c1", "name": "weather", "arguments": '{"city": "Rome"}'},
        {"id": "c2", "name": "weather", "arguments": '{"city": "Oslo"}'},
    ]
    aimock.answer({}, {"content": "I look.", "toolCalls": calls}, chunkSize=3)
    answer = await ask(aimock.base_url, HELLO, [WEATHER])
    assert answer.text == "I look."
    assert [json.loads(call.arguments) for call in answer.calls] == [{"city": "Rome"}, {"city": "Oslo"}]
    end = answer.chunks[-1]
    assert isinstance(end, Finished)
    assert end.reason == "tool_calls"


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
    """The prompt apart, roles in turns, results as what the user says; prompt and tools are marked for the cache."""
    thinking = [{"type": "thinking", "thinking": "Hm.", "signature": "s"}]
    said = [
        Message("system", "Be brief."),
        Message("user", "Weather in Rome?"),
        Message("assistant", "I look.", (CALL.with_message({"thinking_blocks": thinking}),)),
        Message("tool", '{"sky":"blue"}', tool_call_id="c1"),
        Message("user", "And?"),
        Message("user", "Well?"),
    ]
    body = build("claude", said, [WEATHER], None)
    marked = {"cache_control": {"type": "ephemeral"}}
    assert body["system"] == [{"type": "text", "text": "Be brief.", **marked}]
    assert body["tools"] == [
        {"name": "weather", "description": "Tell the weather.", "input_schema": WEATHER.parameters, **marked}
    ]
    assert body["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "Weather in Rome?"}]},
        {
            "role": "assistant",
            "content": [
                *thinking,
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Rome"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": '{"sky":"blue"}'},
                {"type": "text", "text": "And?"},
                {"type": "text", "text": "Well?"},
            ],
        },
    ]
    flat = build("claude", said, [], 50)
    assert "tools" not in flat
    assert flat["max_tokens"] == 50
    assert "tool_use" not in json.dumps(flat)
    assert "sky" in json.dumps(flat)


def event(kind: str, **fields: Any) -> bytes:
    """An event as the API sends it."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n".encode()


def delta(index: int, kind: str, **fields: Any) -> bytes:
    """A piece of a block."""
    return event("content_block_delta", index=index, delta={"type": kind} | fields)


USAGE = {"input_tokens": 10, "cache_read_input_tokens": 90, "cache_creation_input_tokens": 5, "output_tokens": 1}
START = event("message_start", message={"id": "m", "role": "assistant", "content": [], "usage": USAGE})
PING = event("ping")
THOUGHTS = [
    event("content_block_start", index=0, content_block={"type": "thinking", "thinking": ""}),
    delta(0, "thinking_delta", thinking="A "),
    delta(0, "thinking_delta", thinking="greeting."),
    delta(0, "signature_delta", signature="sig"),
    event("content_block_stop", index=0),
]
TEXT = [
    event("content_block_start", index=1, content_block={"type": "text", "text": ""}),
    delta(1, "text_delta", text="Hello "),
    PING,
    delta(1, "text_delta", text="world."),
    event("content_block_stop", index=1),
]
STOP = event("message_stop")


def end(reason: str) -> bytes:
    """The end for this reason."""
    return event("message_delta", delta={"stop_reason": reason}, usage={"output_tokens": 12})


async def after(*steps: Step) -> tuple[list[Chunk], ModelError | None]:
    """What comes of these events, and the error that ends them."""
    async with Service(*steps) as service, model_at(service.base_url) as model:
        return await heard(model, [WEATHER])


async def test_thoughts_are_kept_apart_and_sent_back() -> None:
    """They are no part of the text, come back signed as they were, and the tokens of the cache are counted."""
    chunks, error = await after(START, *THOUGHTS, *TEXT, end("end_turn"), STOP)
    assert error is None
    assert "".join(chunk.text for chunk in chunks if isinstance(chunk, Reasoning)) == "A greeting."
    assert "".join(chunk.text for chunk in chunks if isinstance(chunk, TextDelta)) == "Hello world."
    signed = {"thinking_blocks": [{"type": "thinking", "thinking": "A greeting.", "signature": "sig"}]}
    assert chunks[-1] == Finished("complete", 105, 12, 90, opaque=signed)


@pytest.mark.parametrize(
    ("reason", "ends", "why"),
    [("max_tokens", "length", ""), ("refusal", "cut", "refusal"), ("something_new", "cut", "something_new")],
)
async def test_a_reply_that_is_not_whole_says_so(reason: str, ends: str, why: str) -> None:
    """The limit is one reason, and every one that nobody knows cuts."""
    chunks, _ = await after(START, *TEXT, end(reason), STOP)
    last = chunks[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.why) == (ends, why)


async def test_what_is_no_unicode_is_replaced() -> None:
    """Half of a surrogate pair, and a byte that is no UTF-8, cost a letter and not the words around it."""
    half = delta(1, "text_delta", text="a\ud83db ")
    broken = delta(1, "text_delta", text="c#d").replace(b"#", b"\xff")
    chunks, error = await after(START, half, broken, end("end_turn"), STOP)
    assert error is None
    assert "".join(chunk.text for chunk in chunks if isinstance(chunk, TextDelta)) == "a\ufffdb c\ufffdd"


async def test_arguments_may_be_missing_or_whole_from_the_start() -> None:
    """A call without pieces has the input of its block; nonsense between events is passed over."""
    whole = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Rome"}}
    none = {"type": "tool_use", "id": "c2", "name": "weather", "input": {}}
    steps = [
        START,
        event("content_block_start", index=0, content_block=whole),
        b"data: {nonsense\n\n",
        event("content_block_start", index=1, content_block=none),
        end("tool_use"),
        STOP,
    ]
    chunks, _ = await after(*steps)
    assert chunks[:2] == [CALL, ToolCall("c2", "weather", "{}")]


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ([START, *TEXT], "model_unavailable"),
        ([START, event("error", error={"type": "overloaded_error", "message": "secret"})], "model_rate_limited"),
        ([START, event("error", error={"type": "api_error", "message": "secret"})], "model_unavailable"),
    ],
    ids=["broken off", "overloaded", "failed"],
)
async def test_a_stream_that_fails(steps: list[Any], code: str) -> None:
    """It is told as what it is, without the service's words."""
    _, error = await after(*steps)
    assert error
    assert (error.code, error.retryable) == (code, True)
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("status", "text", "code", "retryable"),
    [
        (529, "Overloaded", "model_rate_limited", True),
        (401, "invalid x-api-key", "model_key", False),
        (404, "model: claude", "model_unknown", False),
        (400, "Your credit balance is too low to access the Anthropic API.", "model_quota", False),
        (400, "prompt: something", "model_bad_request", False),
        (500, "Internal server error", "model_unavailable", True),
    ],
)
async def test_a_refusal_is_sorted(status: int, text: str, code: str, retryable: bool) -> None:
    """Each has its code, and is asked once."""
    async with Strict(lambda body: (status, text)) as service:
        answer = await ask(service.base_url)
    assert answer.problem == (code, retryable)
    assert len(service.bodies) == 1


@pytest.mark.parametrize("missing", ["ANTHROPIC_API_KEY", "LLM_MODEL"])
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """A key and a model are needed; a key alone chooses the provider."""
    for name in {"ANTHROPIC_API_KEY", "LLM_MODEL", "LLM_PROVIDER"} - {missing}:
        monkeypatch.setenv(name, "anthropic")
    with pytest.raises(SettingsError, match=f"^{missing}: needed"):
        load_settings(None)
    monkeypatch.setenv(missing, "x")
    monkeypatch.delenv("LLM_PROVIDER")
    settings = load_settings(None)
    assert settings.llm_provider == "anthropic"
    assert settings.model.endswith("at api.anthropic.com")
