"""Anthropic's Messages API, by the `anthropic` SDK."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from importlib.util import find_spec
from typing import Any

import anthropic
from anthropic import AsyncAnthropic

from infra.llm.anthropic_reply import AnthropicReply
from infra.llm.anthropic_request import build
from infra.llm.base import Message, ToolSpec
from infra.llm.streamed import Reply, StreamedModel, limits, timeouts
from infra.settings import Settings


class AnthropicModel(StreamedModel):
    """A `Model` behind `POST {base_url}/v1/messages` with `stream: true`."""

    def __init__(self, client: AsyncAnthropic, model: str, max_tokens: int | None, timeout: float) -> None:
        super().__init__(model, client, anthropic.APIError, timeout)
        self._max_tokens = max_tokens

    @classmethod
    def from_settings(cls, settings: Settings) -> "AnthropicModel":
        """Build the client. It connects on the first call."""
        assert settings.llm_model, "the settings check that LLM_MODEL is there"
        assert settings.anthropic_api_key, "the settings check that ANTHROPIC_API_KEY is there"
        client = anthropic.DefaultAioHttpClient if find_spec("aiohttp") else anthropic.DefaultAsyncHttpxClient
        return cls(
            AsyncAnthropic(
                api_key=settings.anthropic_api_key.get_secret_value(),
                base_url=settings.anthropic_base_url,
                timeout=timeouts(),
                max_retries=0,  # the turn retries, and only while nothing was shown
                http_client=client(limits=limits(settings.max_sessions)),
            ),
            settings.llm_model,
            settings.llm_max_tokens,
            settings.llm_timeout_seconds,
        )

    def _reply(self, tools: Sequence[ToolSpec]) -> Reply:
        return AnthropicReply()

    async def _ask(self, messages: Sequence[Message], tools: Sequence[ToolSpec], request: AsyncExitStack) -> Any:
        body = build(self._name, messages, tools, self._max_tokens)
        return await request.enter_async_context(self._client.messages.with_streaming_response.create(**body))
