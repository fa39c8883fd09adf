"""Any OpenAI-compatible chat completions endpoint, through the `openai` SDK."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import ChoiceDeltaToolCall

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
            # The SDK's own limit is 1,000: every live session may wait for an answer at once.
            http_client=openai.DefaultAsyncHttpxClient(limits=httpx2.Limits(max_connections=settings.max_sessions)),
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
        reply = _Reply()
        try:
            # Leaving the block closes the HTTP response, also when we are cancelled: the provider stops
            # generating, and charging.
            async with await self._client.chat.completions.create(**request) as response:
                async for chunk in response:
                    if text := reply.add(chunk):
                        yield TextDelta(text)
        except openai.APIError as error:
            raise _model_error(error) from error
        except ValueError as error:  # the SDK's own when an event is no JSON, or no UTF-8
            raise ModelError("model_unavailable", "The model's answer cannot be read.", retryable=True) from error
        for last in reply.rest():
            yield last

    async def close(self) -> None:
        """See `Model.close`."""
        await self._client.close()


class _Reply:
    """What has come of a reply so far, put together from its chunks.

    It tolerates what services that call themselves compatible do differently. Their chunks may lack any part, whatever
    the SDK's types say.
    """

    def __init__(self) -> None:
        self._half = ""
        self._calls: list[_PartialCall] = []
        self._at_index: dict[int | None, _PartialCall] = {}
        self._reason: str | None = None
        self._usage = (0, 0)

    def add(self, chunk: ChatCompletionChunk) -> str:
        """Take a chunk in; the text that can be shown now."""
        if chunk.usage:
            self._usage = (chunk.usage.prompt_tokens or 0, chunk.usage.completion_tokens or 0)
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        self._reason = choice.finish_reason or self._reason
        if not choice.delta:
            return ""
        for piece in choice.delta.tool_calls or ():
            self._add_piece(piece)
        return self._add_text(choice.delta.content) if choice.delta.content else ""

    def rest(self) -> Iterator[Chunk]:
        """What there is to say at the end.

        Raises:
            ModelError: this is not how a reply ends.
        """
        if self._reason is None:
            raise ModelError("model_unavailable", "The model's answer broke off.", retryable=True)
        if self._half:
            yield TextDelta(well_formed(self._half))
        for call in self._calls:
            yield call.whole()
        yield Finished("tool_calls" if self._calls else FINISH_REASONS.get(self._reason, "complete"), *self._usage)

    def _add_text(self, text: str) -> str:
        """The text, without the first half of a surrogate pair at its end: some services cut between the two."""
        text = self._half + text
        self._half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
        return well_formed(text.removesuffix(self._half))

    def _add_piece(self, piece: ChoiceDeltaToolCall) -> None:
        """Put a piece where it belongs: some services leave `index` out or always say 0, and change the id instead."""
        call = self._at_index.get(piece.index)
        if call is None or call.is_over(piece):
            call = self._at_index[piece.index] = _PartialCall()
            self._calls.append(call)
        call.add(piece)


@dataclass
class _PartialCall:
    """A tool call whose name and arguments arrive in pieces."""

    call_id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)

    def is_over(self, piece: ChoiceDeltaToolCall) -> bool:
        """Whether the piece begins another call. An id alone does not: there are services that make one per piece."""
        return bool(piece.id and piece.id != self.call_id and piece.function and piece.function.name)

    def add(self, piece: ChoiceDeltaToolCall) -> None:
        self.call_id = self.call_id or piece.id or ""
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
