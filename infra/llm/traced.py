"""A model whose calls are traced, by OpenTelemetry's conventions for generative AI: see `infra.tracing.otel`."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from infra import tracing
from infra.llm.base import Chunk, Finished, Message, Model, ModelError, Reasoning, TextDelta, ToolCall, ToolSpec

REASONS = {"complete": "stop", "tool_calls": "tool_call", "length": "length", "cut": "content_filter"}
"""Our words for how a reply ends, in those of the conventions."""


class TracedModel:
    """A `Model` that is another one. Each call is a span, the calls that failed and are tried again included."""

    def __init__(self, model: Model, provider: str, name: str) -> None:
        self._model = model
        self._name = name
        self._about = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": name,
            "gen_ai.request.stream": True,
        }

    async def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> AsyncGenerator[Chunk, None]:
        """See `Model.stream`."""
        span = tracing.begin(f"chat {self._name}", self._about, kind="client")
        said: list[Chunk] = []
        if tracing.has_contents():
            span.set(_asked(messages))
        time = asyncio.get_running_loop().time
        began, spoke = time(), False
        try:
            async with aclosing(self._model.stream(messages, tools)) as chunks:
                async for chunk in chunks:
                    if not spoke and type(chunk) is not Reasoning:
                        spoke = True
                        span.set({"gen_ai.response.time_to_first_chunk": time() - began})
                    if tracing.has_contents():
                        said.append(chunk)
                    if type(chunk) is Finished:
                        span.set(_ended(chunk))
                    yield chunk
        except ModelError as error:
            span.failed(error.code)
            span.set({"realtime.model.detail": error.detail or None})
            raise
        except (asyncio.CancelledError, GeneratorExit):
            span.set({"realtime.stopped": True})
            raise
        finally:
            if said:
                span.set(_answered(said))
            span.end()

    async def close(self) -> None:
        """See `Model.close`."""
        await self._model.close()


def _ended(finished: Finished) -> dict[str, Any]:
    return {
        "gen_ai.response.model": finished.model or None,
        "gen_ai.response.finish_reasons": [REASONS[finished.reason]],
        "gen_ai.usage.input_tokens": finished.input_tokens,
        "gen_ai.usage.output_tokens": finished.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": finished.cached_tokens or None,
        "gen_ai.usage.reasoning.output_tokens": finished.reasoning_tokens or None,
    }


def _asked(messages: Sequence[Message]) -> dict[str, Any]:
    system = [_text(each.content) for each in messages if each.role == "system"]
    others = [{"role": each.role, "parts": _parts(each)} for each in messages if each.role != "system"]
    return {"gen_ai.system_instructions": _json(system), "gen_ai.input.messages": _json(others)}


def _answered(said: Sequence[Chunk]) -> dict[str, Any]:
    text = "".join(chunk.text for chunk in said if isinstance(chunk, TextDelta))
    parts = [*([_text(text)] if text else []), *(_call(chunk) for chunk in said if isinstance(chunk, ToolCall))]
    reasons = [REASONS[chunk.reason] for chunk in said if isinstance(chunk, Finished)]
    message = {"role": "assistant", "parts": parts, "finish_reason": reasons[0] if reasons else "error"}
    return {"gen_ai.output.messages": _json([message])}


def _parts(message: Message) -> list[dict[str, Any]]:
    if message.role == "tool":
        return [{"type": "tool_call_response", "id": message.tool_call_id, "response": message.content}]
    return [*([_text(message.content)] if message.content else []), *map(_call, message.tool_calls)]


def _text(content: str) -> dict[str, Any]:
    return {"type": "text", "content": content}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_call", "id": call.call_id, "name": call.name, "arguments": call.arguments}


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
