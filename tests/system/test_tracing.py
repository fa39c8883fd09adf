"""Tracing: a conversation is one trace, from its first message to its summary, at a collector that decodes it."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from functions.summary.summarize import Summarizer
from infra import tracing
from infra.llm import Finished, ModelError, ToolCall, open_one
from infra.llm.traced import TracedModel
from infra.records import SessionEnded, utc_now
from infra.store.sqlite import SqliteStore
from infra.tracing.otel import CONVENTIONS
from tests.conftest import Serve, make_settings
from tests.support.client import ChatClient
from tests.support.collector import Collector, about, running_collector
from tests.support.queue import Queue
from tests.support.scripted import Pause, ScriptedModel, Step

SECRET = "sk-do-not-print-me"
LOOK = ToolCall("c1", "fetch_data", '{"topic": "sales"}')


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector; whatever was traced in the test is traced no more after it."""
    with running_collector() as running:
        yield running
        tracing.stop_tracing(5)


def traced(*scripts: Sequence[Step]) -> TracedModel:
    """A model that says these, wrapped as the product wraps those that it makes."""
    return TracedModel(ScriptedModel(*scripts), "openai", "gpt-4o-mini")


def to(collector: Collector, **changed: Any) -> dict[str, Any]:
    """The settings that lead there."""
    return {"otel_exporter_otlp_endpoint": collector.url} | changed


async def chat(url: str, content: str = "hello") -> None:
    """One message, and its answer, stored."""
    async with await ChatClient.connect(url) as client:
        await client.until("ready")
        await client.say(content)
        done = await client.until("done")
        while (await client.until("saved"))["through"] < done["seq"]:
            pass


async def test_a_conversation_is_one_trace(serve: Serve, collector: Collector, queue: Queue) -> None:
    """Session, turn, model calls, tool, journal and hand-off hang together; the queue carries the trace on."""
    model = traced(
        ["Let me see.", LOOK, Finished("tool_calls", 30, 7)], ["All is well.", Finished("complete", 40, 5, 20, 2)]
    )
    where = {"disconnect_queue_url": queue.url, "aws_endpoint_url": queue.settings.aws_endpoint_url}
    async with serve(model=model, otel_exporter_otlp_headers=f"api-key={SECRET}", **to(collector), **where) as server:
        await chat(server.url)
    session, turn = collector.one("session"), collector.one("turn")
    assert turn.parent_span_id == session.span_id
    inner = [*collector.named("chat gpt-4o-mini"), collector.one("execute_tool fetch_data")]
    assert {span.parent_span_id for span in inner} == {turn.span_id}
    handoff = collector.one("hand off session")
    assert handoff.parent_span_id == session.span_id
    assert {span.trace_id for span in (session, turn, *inner, handoff)} == {session.trace_id}
    assert {link.span_id for span in collector.named("write journal") for link in span.links} == {session.span_id}
    (body,) = queue.bodies()
    header = SessionEnded.from_json(body).traceparent
    assert header
    assert header.split("-")[1:3] == [session.trace_id.hex(), session.span_id.hex()]
    assert {each["api-key"] for each in collector.headers} == {SECRET}
    assert {each["service.name"] for each in collector.resources} == {"realtime-ai-backend"}


async def test_a_model_call_speaks_the_conventions(serve: Serve, collector: Collector) -> None:
    """Names and values are those of OpenTelemetry's conventions for generative AI, at the version we name."""
    async with serve(model=traced(["Hi.", Finished("complete", 40, 5, 20, 2)]), **to(collector)) as server:
        await chat(server.url)
    seen = about(collector.one("chat gpt-4o-mini"))
    assert seen.pop("gen_ai.response.time_to_first_chunk") >= 0
    assert seen == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 40,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 20,
        "gen_ai.usage.reasoning.output_tokens": 2,
    }
    assert collector.schemas == {CONVENTIONS}
    assert about(collector.one("session"))["gen_ai.conversation.id"] == "s1"


async def test_contents_stay_here_unless_they_are_asked_for(serve: Serve, collector: Collector) -> None:
    """By default nothing of what anybody said is in a span."""
    async with serve(model=traced(["plum", LOOK], ["cherry"]), **to(collector)) as server:
        await chat(server.url, "apple")
    assert not [word for word in (b"apple", b"plum", b"cherry", b"sales") if word in collector.raw]


async def test_contents_are_told_where_they_are_asked_for(serve: Serve, collector: Collector) -> None:
    """Prompt, messages, answer, a tool's arguments and result, as the conventions write them."""
    async with serve(
        model=traced(["plum", LOOK], ["cherry"]), system_prompt="Be brief.", **to(collector, trace_contents=True)
    ) as server:
        await chat(server.url, "apple")
    first, second = map(about, collector.named("chat gpt-4o-mini"))
    assert json.loads(first["gen_ai.system_instructions"]) == [{"type": "text", "content": "Be brief."}]
    call = {"type": "tool_call", "id": "c1", "name": "fetch_data", "arguments": LOOK.arguments}
    assert json.loads(first["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "apple"}]}
    ]
    assert json.loads(first["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "plum"}, call], "finish_reason": "tool_call"}
    ]
    asked, answered = json.loads(second["gen_ai.input.messages"])[1:]
    assert asked["parts"][1] == call | {"arguments": '{"topic":"sales"}'}
    assert answered["parts"][0]["type"] == "tool_call_response"
    tool = about(collector.one("execute_tool fetch_data"))
    assert tool["gen_ai.tool.call.arguments"] == LOOK.arguments
    assert json.loads(tool["gen_ai.tool.call.result"])["topic"] == "sales"


@pytest.mark.parametrize(
    ("script", "tools", "expected"),
    [
        ([ModelError("model_key", "No.", retryable=False, detail="401 bad_key")], "", {"turn": "model_key"}),
        ([ToolCall("c1", "unheard_of", "{}")], "execute_tool (unknown)", {"execute_tool (unknown)": "error"}),
        ([RuntimeError("a secret")], "", {"turn": "internal"}),
    ],
)
async def test_a_failure_is_named_and_not_quoted(
    serve: Serve, collector: Collector, script: list[Step], tools: str, expected: dict[str, str]
) -> None:
    """The span that failed says so by a name of ours; no text of a provider, a tool or a model is in it."""
    async with serve(model=traced(script, ["well"]), **to(collector)) as server:
        await chat(server.url)
    failed = {span.name: about(span)["error.type"] for span in collector.spans if span.status.code == 2}
    assert expected.items() <= failed.items()
    assert b"secret" not in collector.raw
    assert b"unheard_of" not in collector.raw


async def test_a_stopped_turn_is_no_failure(serve: Serve, collector: Collector) -> None:
    """Its span, and its model call's, end with the word for it."""
    pause = Pause()
    async with serve(model=traced(["one ", pause]), **to(collector)) as server:
        client = await ChatClient.connect(server.url)
        await client.say("hello")
        await client.until("token")
        await client.send({"type": "cancel"})
        await client.until("done", reason="cancelled")
        await client.websocket.close()
    assert about(collector.one("turn"))["realtime.reason"] == "cancelled"
    assert about(collector.one("chat gpt-4o-mini"))["realtime.stopped"] is True
    assert not [span.name for span in collector.spans if span.status.code == 2]


async def test_the_function_goes_on_with_the_trace(collector: Collector, tmp_path: Path) -> None:
    """Its span belongs to the session's, and the model call to it; what is no header begins a trace of its own."""
    settings = make_settings(tmp_path, **to(collector))
    tracing.start_tracing(settings, "function", "f1")
    store = await SqliteStore.open(tmp_path / "realtime.db")
    header = f"00-{'ab' * 16}-{'cd' * 8}-01"
    for session_id, traceparent in (("known", header), ("odd", "no header")):
        await store.open_session(session_id, "u", at=utc_now(), container_id="c")
        await Summarizer(store, open_one(settings)).summarize(SessionEnded.from_json(ended(session_id, traceparent)))
    await store.close()
    tracing.stop_tracing(5)
    known, odd = collector.named("summarise session")
    assert (known.trace_id.hex(), known.parent_span_id.hex()) == ("ab" * 16, "cd" * 8)
    assert about(known)["realtime.outcome"] == "written"
    assert odd.parent_span_id == b""


def ended(session_id: str, traceparent: str | None) -> str:
    """The message, as it lies in the queue."""
    message = {"session_id": session_id, "epoch": 1, "ended_at": "2026-01-01T00:00:00Z", "reason": "closed"}
    return json.dumps(message | {"traceparent": traceparent})


async def test_a_collector_that_fails_costs_nothing_but_its_spans(
    serve: Serve, collector: Collector, capfd: pytest.CaptureFixture[str]
) -> None:
    """The chat goes on, the stop is not held up, and the log names no secret."""
    collector.status = 401
    async with serve(model=traced(["Hi."]), otel_exporter_otlp_headers=f"api-key={SECRET}", **to(collector)) as server:
        await chat(server.url)
    assert not collector.spans
    logged = capfd.readouterr().err
    assert "401" in logged
    assert SECRET not in logged


async def test_a_share_of_the_sessions_can_be_traced(serve: Serve, collector: Collector) -> None:
    """With a share of 0 no session is, nor what belongs to it."""
    async with serve(model=traced(["Hi."]), **to(collector, otel_traces_sampler_arg=0)) as server:
        await chat(server.url)
    assert not collector.spans


def test_without_a_collector_nothing_of_it_is_imported(tmp_path: Path) -> None:
    """Neither a container nor a function imports the SDK, or what it sends by. FastAPI itself needs the bare API."""
    script = """
import asyncio, sys
from chat.main import open_backend
from functions.summary import handler
from infra.settings import Settings
async def run():
    async with open_backend(Settings(data_dir=sys.argv[1])):
        pass
asyncio.run(run())
handler._adapter()
parts = ("opentelemetry.sdk", "opentelemetry.exporter", "google.protobuf", "requests", "infra.tracing.otel")
print([name for name in sys.modules if name.startswith(parts)])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"


async def test_the_turns_log_names_its_trace(
    serve: Serve, collector: Collector, capfd: pytest.CaptureFixture[str]
) -> None:
    """A line of the log leads to the trace."""
    failure = ModelError("model_key", "No.", retryable=False)
    async with serve(model=traced([failure]), **to(collector)) as server:
        await chat(server.url)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "model failed" in line]
    assert f"trace_id={collector.one('session').trace_id.hex()}" in line
