"""Any OpenAI-compatible chat completions endpoint, through the `openai` SDK."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import openai
from openai import AsyncOpenAI

from infra.llm.base import (
    Chunk,
    Finished,
    FinishReason,
    Message,
    ModelError,
    TextDelta,
    ToolCall,
    ToolSpec,
    well_formed,
)
from infra.settings import Settings

FINISH_REASONS: dict[str, FinishReason] = {
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "length": "length",
}
"""Everything else, `stop` and `content_filter` among it, is complete: there is no more to come."""


class OpenAIModel:
    """A `Model` behind `POST {base_url}/chat/completions` with `stream: true`."""

    def __init__(self, client: AsyncOpenAI, model: str, max_tokens: int | None = None) -> None:
        self._client = client
        self._model = model
        self._max_tokens = max_tokens

    @classmethod
    def from_settings(cls, settings: Settings) -> "OpenAIModel":
        """Build the client. It connects on the first call."""
        assert settings.llm_model, "the settings check that LLM_MODEL is there"
        key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else "not-needed"
        client = AsyncOpenAI(
            api_key=key,
            base_url=settings.openai_base_url,
            timeout=settings.llm_timeout_seconds,
            max_retries=0,  # the turn retries, and only while nothing was shown
        )
        return cls(client, settings.llm_model, settings.llm_max_tokens)

    async def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> AsyncGenerator[Chunk, None]:
        """See `Model.stream`."""
        request: dict[str, Any] = {
            "model": self._model,
            "messages": [_message(message) for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if tools:
            request["tools"] = [_tool(tool) for tool in tools]
        if self._max_tokens:
            request["max_completion_tokens"] = self._max_tokens
        calls: dict[int, _PartialCall] = {}
        reason, usage = None, (0, 0)
        try:
            # Leaving the block closes the HTTP response, also when we are cancelled: the provider stops
            # generating, and charging.
            async with await self._client.chat.completions.create(**request) as response:
                async for chunk in response:
                    if chunk.usage:
                        usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
                    if not chunk.choices:
                        continue
                    choice = chunk.choices[0]
                    reason = choice.finish_reason or reason
                    if choice.delta.content:
                        yield TextDelta(well_formed(choice.delta.content))
                    for piece in choice.delta.tool_calls or ():
                        calls.setdefault(piece.index, _PartialCall()).add(piece)
        except openai.APIError as error:
            raise _model_error(error) from error
        if reason is None:
            raise ModelError("model_unavailable", "The model's answer broke off.", retryable=True)
        for index in sorted(calls):
            yield calls[index].whole()
        yield Finished("tool_calls" if calls else FINISH_REASONS.get(reason, "complete"), *usage)

    async def close(self) -> None:
        """See `Model.close`."""
        await self._client.close()


@dataclass
class _PartialCall:
    """A tool call whose name and arguments arrive in pieces."""

    call_id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)

    def add(self, piece: Any) -> None:
        self.call_id = piece.id or self.call_id
        if piece.function:
            self.name = piece.function.name or self.name
            self.arguments.append(piece.function.arguments or "")

    def whole(self) -> ToolCall:
        return ToolCall(self.call_id, self.name, well_formed("".join(self.arguments)) or "{}")


def _message(message: Message) -> dict[str, Any]:
    sent: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        sent["tool_calls"] = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
        sent["content"] = message.content or None
    if message.tool_call_id is not None:
        sent["tool_call_id"] = message.tool_call_id
    return sent


def _tool(tool: ToolSpec) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
    }


def _model_error(error: openai.APIError) -> ModelError:
    """Sort the SDK's errors. Their own texts stay out: they can carry keys, prompts and internal addresses."""
    if isinstance(error, openai.APITimeoutError):
        return ModelError("model_timeout", "The model did not answer in time.", retryable=True)
    if isinstance(error, openai.RateLimitError):
        return ModelError("model_rate_limited", "The model is busy; try again in a moment.", retryable=True)
    if isinstance(error, openai.APIStatusError) and error.status_code < 500:
        return ModelError(
            "model_refused", f"The model's service refused the request (HTTP {error.status_code}).", retryable=False
        )
    return ModelError("model_unavailable", "The model's service cannot be reached or failed.", retryable=True)
