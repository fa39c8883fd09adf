"""A model's service for tests: one that says what it is told to, one that refuses, and what comes of asking."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, Literal, Self

from msgspec import structs

from infra.llm import Finished, Message, Model, ModelError, Reasoning, TextDelta, ToolCall, ToolSpec
from infra.llm.base import Chunk
from infra.llm.openai import OpenAIModel
from tests.conftest import make_settings
from tests.support.aimock import API_KEY
from tests.support.client import PATIENCE

Refusal = tuple[int, str] | None


HELLO = [Message("user", "hello")]
WEATHER = ToolSpec("weather", "Tell the weather.", {"type": "object", "properties": {"city": {"type": "string"}}})


def provider(base_url: str, **changed: Any) -> dict[str, Any]:
    """The settings that lead to this service."""
    defaults = {"openai_base_url": base_url, "openai_api_key": API_KEY, "llm_model": "gpt-4o-mini"}
    return {"llm_provider": "openai", "llm_timeout_seconds": PATIENCE} | defaults | changed


@asynccontextmanager
async def model_at(base_url: str, **changed: Any) -> AsyncIterator[OpenAIModel]:
    """The model as the product makes it, closed at the end."""
    model = OpenAIModel.from_settings(make_settings(Path(), **provider(base_url, **changed)))
    try:
        yield model
    finally:
        await model.close()


def unnamed(chunk: Chunk) -> Chunk:
    """The chunk without the name of the model that gave it, which the tests of fallbacks look at."""
    return structs.replace(chunk, model="") if isinstance(chunk, Finished) else chunk


class Answer:
    """All that came of one call: the chunks, and the error that ended them, if any."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.error: ModelError | None = None

    @classmethod
    async def of(cls, model: Model, messages: list[Message] = HELLO, tools: list[ToolSpec] | None = None) -> Self:
        """Call the model and read to the end."""
        answer = cls()
        try:
            async with asyncio.timeout(PATIENCE):
                async for chunk in model.stream(messages, tools or []):
                    if chunk != Reasoning(""):  # it is at work
                        answer.chunks.append(unnamed(chunk))
        except ModelError as error:
            answer.error = error
        return answer

    @property
    def text(self) -> str:
        """The pieces of text, joined."""
        return "".join(chunk.text for chunk in self.chunks if isinstance(chunk, TextDelta))

    @property
    def calls(self) -> list[ToolCall]:
        """The tool calls, in order."""
        return [chunk for chunk in self.chunks if isinstance(chunk, ToolCall)]

    @property
    def problem(self) -> tuple[str, bool] | None:
        """The error's code, and whether to try again."""
        return (self.error.code, self.error.retryable) if self.error else None


async def ask(base_url: str, **changed: Any) -> Answer:
    """Say hello to the model there."""
    async with model_at(base_url, **changed) as model:
        return await Answer.of(model)


async def body_of(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The JSON of the next request."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
    body: dict[str, Any] = json.loads(await reader.readexactly(length))
    return body


def chunk(delta: Any = None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """A chunk as the API sends it; `fields` overwrite its own."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]} | fields


def call_piece(**fields: Any) -> dict[str, Any]:
    """A chunk with one piece of a tool call."""
    return chunk({"tool_calls": [fields]})


HANG: Literal["hang"] = "hang"
STOP = chunk({}, "stop")
DONE = b"data: [DONE]\n\n"
Step = dict[str, Any] | bytes | Literal["hang"]


class Service:
    """A real HTTP server that answers every request with these steps: events, bytes as they are, or silence."""

    def __init__(self, *steps: Step) -> None:
        self._steps = steps
        self.asked = asyncio.Event()
        """A request came, whole."""
        self.left = asyncio.Event()
        """The client closed the connection while we were silent."""

    async def __aenter__(self) -> Self:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening."""
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(ConnectionError):
            await body_of(reader)
            self.asked.set()
            if self._steps[0] != HANG:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            for step in self._steps:
                if step == HANG:
                    with suppress(ConnectionError):
                        await reader.read()  # returns when the client leaves
                    self.left.set()
                else:
                    writer.write(step if isinstance(step, bytes) else b"data: %s\n\n" % json.dumps(step).encode())
                    await writer.drain()


async def answer_to(*steps: Step, **changed: Any) -> Answer:
    """What the model makes of a service that answers so."""
    async with Service(*steps) as service:
        return await ask(service.base_url, **changed)


class Strict:
    """A real service that refuses some requests and answers the others with "Hi."; `bodies` are all that it got."""

    def __init__(self, refuses: Callable[[dict[str, Any]], Refusal]) -> None:
        self._refuses = refuses
        self.bodies: list[dict[str, Any]] = []

    async def __aenter__(self) -> Self:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening."""
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(ConnectionError):
            body = await body_of(reader)
            self.bodies.append(body)
            if refusal := self._refuses(body):
                status, text = refusal
                answer, kind = json.dumps({"error": {"message": text}}).encode(), b"application/json"
            else:
                status, kind = 200, b"text/event-stream"
                events = [json.dumps(chunk({"content": "Hi."})), json.dumps(chunk({}, "stop")), "[DONE]"]
                answer = "".join(f"data: {event}\n\n" for event in events).encode()
            head = b"HTTP/1.1 %d X\r\ncontent-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            writer.write(head % (status, kind, len(answer)) + answer)
            await writer.drain()


async def heard(model: Model, tools: list[ToolSpec]) -> tuple[list[Chunk], ModelError | None]:
    """What comes of saying hello to this model, and the error that ends it."""
    answer = await Answer.of(model, HELLO, tools)
    return answer.chunks, answer.error
