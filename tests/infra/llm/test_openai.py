"""`OpenAIModel` over real HTTP: against aimock, and for what aimock cannot do against a few lines of our own.

aimock speaks the protocol as it should be, and breaks off where it is told to. It cannot hang, send chunks that are
not what they should be, or tell when the client closed the connection.
"""

import asyncio
import json
import socket
from contextlib import aclosing
from typing import Any

import pytest

from infra.llm import Finished, Message, TextDelta, ToolCall
from infra.llm.openai import OpenAIModel
from tests.conftest import Serve
from tests.support.aimock import API_KEY, AIMock
from tests.support.client import PATIENCE, ChatClient
from tests.support.model_service import (
    DONE,
    HANG,
    HELLO,
    STOP,
    WEATHER,
    Answer,
    Service,
    Step,
    answer_to,
    ask,
    call_piece,
    chunk,
    model_at,
    provider,
)

# Against aimock: the protocol as it should be.


async def test_a_reply_streams_and_ends_with_its_usage(aimock: AIMock) -> None:
    """Text comes in the pieces the service sent, then one end with the tokens it counted."""
    aimock.answer(
        {"userMessage": "hello"},
        {"content": "Hello to you.", "usage": {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}},
        chunkSize=5,
        latency=20,
    )
    answer = await ask(aimock.base_url)
    assert answer.chunks == [TextDelta("Hello"), TextDelta(" to y"), TextDelta("ou."), Finished("complete", 7, 4)]


async def test_the_request_has_the_form_the_api_wants(aimock: AIMock) -> None:
    """System prompt, a whole tool round, the history and the tools arrive as the API documents them."""
    messages = [
        Message("system", "Be brief."),
        Message("user", "Weather in Rome?"),
        Message("assistant", "", (ToolCall("c1", "weather", '{"city":"Rome"}'),)),
        Message("tool", '{"sky":"blue"}', tool_call_id="c1"),
        Message("assistant", "Blue sky."),
        Message("user", "hello"),
    ]
    aimock.answer({"userMessage": "hello", "systemMessage": "Be brief."}, {"content": "Hi."})
    async with model_at(aimock.base_url, llm_max_tokens=50) as model:
        answer = await Answer.of(model, messages, [WEATHER])
    assert answer.text == "Hi."
    (entry,) = aimock.journal()
    assert (entry["method"], entry["path"]) == ("POST", "/v1/chat/completions")
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
    assert aimock.bodies() == [
        {
            "model": "gpt-4o-mini",
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_completion_tokens": 50,
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Weather in Rome?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": '{"sky":"blue"}', "tool_call_id": "c1"},
                {"role": "assistant", "content": "Blue sky."},
                {"role": "user", "content": "hello"},
            ],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "weather",
                        "description": "Tell the weather.",
                        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
                    },
                }
            ],
        }
    ]


async def test_what_is_not_set_is_not_sent(aimock: AIMock) -> None:
    """Without tools and a limit the request names neither: services refuse an empty `tools`."""
    aimock.answer({}, {"content": "Hi."})
    await ask(aimock.base_url)
    assert aimock.bodies()[0].keys() == {"model", "stream", "stream_options", "messages"}


async def test_parallel_tool_calls_come_out_whole(aimock: AIMock) -> None:
    """Text comes first, then two calls whose arguments arrived three characters at a time, each in one piece."""
    rome, oslo = '{"city": "Rome", "days": 3}', '{"city": "Oslo"}'
    calls = [
        {"id": "c1", "name": "weather", "arguments": rome},
        {"id": "c2", "name": "weather", "arguments": oslo},
    ]
    aimock.answer({}, {"content": "I look.", "toolCalls": calls}, chunkSize=3)
    answer = await ask(aimock.base_url)
    assert answer.text == "I look."
    assert answer.chunks[-3:-1] == [ToolCall("c1", "weather", rome), ToolCall("c2", "weather", oslo)]
    end = answer.chunks[-1]
    assert isinstance(end, Finished)
    assert end.reason == "tool_calls"


async def test_a_reply_cut_at_the_limit_says_so(aimock: AIMock) -> None:
    """`finish_reason` length ends the stream with length."""
    aimock.answer({}, {"content": "And then", "finishReason": "length"})
    end = (await ask(aimock.base_url)).chunks[-1]
    assert isinstance(end, Finished)
    assert end.reason == "length"


async def test_a_filtered_reply_is_cut(aimock: AIMock) -> None:
    """Any finish reason that is not known to be good cuts, and is told."""
    aimock.answer({}, {"content": "I can", "finishReason": "content_filter"})
    end = (await ask(aimock.base_url)).chunks[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.why) == ("cut", "content_filter")


@pytest.mark.parametrize("size", [1, 2, 5])
async def test_text_is_well_formed_however_it_is_cut(aimock: AIMock, size: int) -> None:
    """An emoji cut in half between two chunks comes whole, a half of its own becomes U+FFFD, at the end too."""
    aimock.answer({}, {"content": "a\U0001f600b \ud83dc \ude00d \ud83d\U0001f600\ud83d"}, chunkSize=size)
    answer = await ask(aimock.base_url)
    assert answer.text == "a\U0001f600b \ufffdc \ufffdd \ufffd\U0001f600\ufffd"
    assert all(chunk.text.encode() for chunk in answer.chunks if isinstance(chunk, TextDelta))
    assert isinstance(answer.chunks[-1], Finished)


async def test_arguments_are_well_formed(aimock: AIMock) -> None:
    """Arguments are joined before halves of surrogate pairs are replaced."""
    aimock.answer({}, {"toolCalls": [{"name": "weather", "arguments": '{"city":"\U0001f600\ud83d"}'}]}, chunkSize=1)
    (call,) = (await ask(aimock.base_url)).calls
    assert call.arguments == '{"city":"\U0001f600\ufffd"}'


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (429, ("model_rate_limited", True)),
        (500, ("model_unavailable", True)),
        (503, ("model_unavailable", True)),
        (400, ("model_bad_request", False)),
        (401, ("model_key", False)),
        (403, ("model_key", False)),
        (404, ("model_unknown", False)),
        (402, ("model_quota", False)),
        (529, ("model_rate_limited", True)),
    ],
)
async def test_a_refusal_is_sorted(aimock: AIMock, status: int, problem: tuple[str, bool]) -> None:
    """Each status has its code; the service's text, which may name the key, stays out; nothing is tried again here."""
    aimock.answer({}, {"error": {"message": f"Incorrect API key provided: {API_KEY}", "type": "t"}, "status": status})
    answer = await ask(aimock.base_url)
    assert answer.problem == problem
    assert answer.chunks == []
    assert API_KEY not in str(answer.error)
    assert "Incorrect" not in str(answer.error)
    assert len(aimock.journal()) == 1


async def test_the_key_is_what_opens_the_door(aimock: AIMock) -> None:
    """The key of the settings is sent as the service wants it: with it there is an answer, with another a refusal."""
    aimock.answer({}, {"content": "Hi."})
    assert (await ask(aimock.base_url)).text == "Hi."
    refused = await ask(aimock.base_url, openai_api_key="sk-another")
    assert refused.problem == ("model_key", False)
    assert refused.error
    assert refused.error.detail.startswith("HTTP 401")


async def test_a_dropped_connection_is_an_error_after_the_text(aimock: AIMock) -> None:
    """When the connection breaks in the middle, what came is given out, then the error."""
    # The latency lets each piece leave before the next: aimock drops what it wrote last along with the connection.
    aimock.answer({}, {"content": "One two three"}, chunkSize=4, truncateAfterChunks=4, latency=20)
    answer = await ask(aimock.base_url)
    assert answer.text.startswith("One two ")
    assert answer.problem == ("model_unavailable", True)
    assert aimock.journal()[0]["response"]["interrupted"]


async def test_nobody_there_is_unavailable() -> None:
    """A service that takes no connection is unavailable."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and no listen: connections are refused
        answer = await ask(f"http://127.0.0.1:{deaf.getsockname()[1]}/v1")
    assert answer.problem == ("model_unavailable", True)


async def test_a_conversation_with_tools(aimock: AIMock, serve: Serve) -> None:
    """Over the WebSocket: two tools are called, their results go back to the service, and its answer streams on."""
    calls = [
        {"id": "c1", "name": "fetch_data", "arguments": {"topic": "sales", "months": 2}},
        {"id": "c2", "name": "get_user_stats", "arguments": {}},
    ]
    figures = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
    aimock.answer(
        {"userMessage": "sales", "hasToolResult": False}, {"content": "Let me see. ", "toolCalls": calls}, chunkSize=4
    )
    aimock.answer(
        {"userMessage": "sales", "hasToolResult": True}, {"content": "Sales went up.", "usage": figures}, chunkSize=4
    )
    aimock.answer({"userMessage": "thanks"}, {"content": "You are welcome."})
    async with serve(**provider(aimock.base_url)) as server, await ChatClient.connect(server.url) as client:
        await client.say("how are sales?")
        done = await client.until("done")
        assert client.text() == "Let me see. Sales went up."
        assert done["reason"] == "complete"
        assert done["usage"]["output_tokens"] >= 5
        results = {f["call_id"]: f["result"] for f in client.frames if f["type"] == "tool_result"}
        await client.say("thanks")
        done = await client.until("done")
        assert client.text(done["turn_id"]) == "You are welcome."

    first, second, third = (body["messages"] for body in aimock.bodies())
    assert [message["role"] for message in first] == ["system", "user"]
    question, asked, *answers = second[1:]
    assert question == {"role": "user", "content": "how are sales?"}
    assert asked["content"] == "Let me see. "
    assert [call["id"] for call in asked["tool_calls"]] == ["c1", "c2"]
    assert json.loads(asked["tool_calls"][0]["function"]["arguments"]) == {"topic": "sales", "months": 2}
    assert {a["tool_call_id"]: json.loads(a["content"]) for a in answers} == results
    assert results["c1"]["rows"][1]["month"] == "Feb"
    assert [message["role"] for message in third[1:]] == ["user", "assistant", "tool", "tool", "assistant", "user"]
    assert all(
        [tool["function"]["name"] for tool in body["tools"]] == ["fetch_data", "get_user_stats"]
        for body in aimock.bodies()
    )


async def test_a_busy_service_is_asked_again(aimock: AIMock, serve: Serve) -> None:
    """One 429 before anything was shown goes unnoticed by the user."""
    aimock.fail_once(429)
    aimock.answer({}, {"content": "Here I am."})
    async with serve(**provider(aimock.base_url)) as server, await ChatClient.connect(server.url) as client:
        await client.say("hello")
        await client.until("done", reason="complete")
    assert client.text() == "Here I am."
    assert "error" not in client.types()
    assert [entry["response"]["status"] for entry in aimock.journal()] == [429, 200]


# Against a service of our own: what aimock cannot do.


@pytest.mark.parametrize("said", [(), (chunk({"content": "Wait"}),)], ids=["from the start", "in the middle"])
async def test_silence_is_a_timeout(said: tuple[Step, ...]) -> None:
    """A service that takes the request and then says nothing more is given up, and its connection closed."""
    async with Service(*said, HANG) as service:
        answer = await ask(service.base_url, llm_timeout_seconds=0.1)
        assert answer.problem == ("model_timeout", True)
        assert answer.text == "Wait" * len(said)
        async with asyncio.timeout(PATIENCE):
            await service.left.wait()


async def test_leaving_the_stream_closes_the_request() -> None:
    """Once the generator is closed the service sees the connection go, though the client lives on."""
    async with Service(chunk({"content": "One"}), HANG) as service, model_at(service.base_url) as model:
        async with aclosing(model.stream(HELLO, [])) as chunks:
            assert await anext(chunks) == TextDelta("One")
            assert not service.left.is_set()
        async with asyncio.timeout(PATIENCE):
            await service.left.wait()


@pytest.mark.parametrize("said", [(), (chunk({"content": "One"}),)], ids=["before it answers", "in the middle"])
async def test_cancelling_the_task_closes_the_request(said: tuple[Step, ...]) -> None:
    """A task that is cancelled while it waits for the service takes its connection with it."""
    reached = asyncio.Event()

    async def read(model: OpenAIModel) -> None:
        async with aclosing(model.stream(HELLO, [])) as chunks:
            async for _ in chunks:
                reached.set()

    async with Service(*said, HANG) as service, model_at(service.base_url) as model:
        task = asyncio.create_task(read(model))
        async with asyncio.timeout(PATIENCE):
            if said:
                await reached.wait()
            else:
                await service.asked.wait()
            task.cancel()
            await service.left.wait()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_users_cancel_closes_the_request(serve: Serve) -> None:
    """A `cancel` frame goes all the way: the service sees its connection close while the socket stays open."""
    async with (
        Service(chunk({"content": "One"}), HANG) as service,
        serve(**provider(service.base_url)) as server,
        await ChatClient.connect(server.url) as client,
    ):
        await client.say("hello")
        await client.until("token")
        await client.send({"type": "cancel"})
        await client.until("done", reason="cancelled")
        async with asyncio.timeout(PATIENCE):
            await service.left.wait()


async def test_an_error_in_the_middle_follows_the_text() -> None:
    """An `error` event after some text is an error after that text; what it says stays out."""
    answer = await answer_to(chunk({"content": "One"}), {"error": {"message": f"lost {API_KEY}", "code": 500}})
    assert answer.chunks == [TextDelta("One")]
    assert answer.problem == ("model_unavailable", True)
    assert "lost" not in str(answer.error)


async def test_an_end_without_a_reason_is_an_error() -> None:
    """A stream that ends without [DONE] and never said why is no whole answer."""
    answer = await answer_to(chunk({"content": "One"}))
    assert answer.chunks == [TextDelta("One")]
    assert answer.problem == ("model_unavailable", True)


@pytest.mark.parametrize("nonsense", [b"data: {oops\n\n", b"data: \xff\n\n"], ids=["no JSON", "no UTF-8"])
async def test_what_cannot_be_read_is_an_error(nonsense: bytes) -> None:
    """Bytes that are no event are the model's failure, told as such."""
    answer = await answer_to(chunk({"content": "One"}), nonsense)
    assert answer.text == "One"
    assert answer.problem == ("model_unavailable", True)


@pytest.mark.parametrize(
    "odd",
    [
        chunk(None),
        chunk(choices=[{"index": 0}]),
        chunk(choices=None),
        chunk(choices=[]),
        {"id": "x"},
        chunk({"content": None, "tool_calls": None}),
        chunk({"role": "assistant", "content": ""}),
        chunk({"tool_calls": []}),
        chunk(choices=[], usage=None),
    ],
    ids=json.dumps,
)
async def test_chunks_may_lack_anything(odd: dict[str, Any]) -> None:
    """A chunk without a delta, choices or any of their parts is passed over."""
    answer = await answer_to(odd, chunk({"content": "One"}), odd, STOP, odd, DONE)
    assert answer.chunks == [TextDelta("One"), Finished("complete")]


async def test_a_byte_that_is_no_utf8_costs_a_letter() -> None:
    """And not the reply: it is replaced where it stands."""
    broken = b"data: %s\n\n" % json.dumps(chunk({"content": "a#b"})).encode().replace(b"#", b"\xff")
    answer = await answer_to(broken, STOP, DONE)
    assert answer.chunks == [TextDelta("a\ufffdb"), Finished("complete")]


@pytest.mark.parametrize("usage", [{}, {"total_tokens": 9}, {"prompt_tokens": None, "completion_tokens": None}])
async def test_tokens_that_are_not_told_are_none(usage: dict[str, Any]) -> None:
    """Usage without counts is 0, never null."""
    answer = await answer_to(chunk({"content": "One"}), STOP, chunk(choices=[], usage=usage), DONE)
    assert answer.chunks[-1] == Finished("complete", 0, 0)


@pytest.mark.parametrize("function", [{"name": "now", "arguments": ""}, {"name": "now"}], ids=["empty", "absent"])
async def test_no_arguments_are_an_empty_object(function: dict[str, Any]) -> None:
    """A call without arguments is one with `{}`, and a call is a call even if the reason was stop."""
    answer = await answer_to(call_piece(index=0, id="c1", function=function), STOP, DONE)
    assert answer.chunks == [ToolCall("c1", "now", "{}"), Finished("tool_calls")]


@pytest.mark.parametrize("index", [{}, {"index": None}, {"index": 0}], ids=["no index", "null", "always 0"])
async def test_calls_without_a_number_are_told_apart_by_their_id(index: dict[str, Any]) -> None:
    """Where `index` says nothing, a new id with a name begins a new call."""
    answer = await answer_to(
        call_piece(**index, id="c1", function={"name": "a", "arguments": '{"x":'}),
        call_piece(**index, function={"arguments": "1}"}),
        call_piece(**index, id="c2", function={"name": "b", "arguments": "{}"}),
        STOP,
        DONE,
    )
    assert answer.calls == [ToolCall("c1", "a", '{"x":1}'), ToolCall("c2", "b", "{}")]


@pytest.mark.parametrize(
    "again",
    [{"id": "c1", "function": {"name": "a", "arguments": "1}"}}, {"id": "c9", "function": {"arguments": "1}"}}],
    ids=["same id and name", "new id, no name"],
)
async def test_pieces_that_repeat_themselves_are_one_call(again: dict[str, Any]) -> None:
    """Services that send the id with every piece, or a new one each time, still mean one call."""
    first = call_piece(index=0, id="c1", function={"name": "a", "arguments": '{"x":'})
    answer = await answer_to(first, call_piece(index=0, **again), STOP, DONE)
    assert answer.calls == [ToolCall("c1", "a", '{"x":1}')]
