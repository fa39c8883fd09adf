"""OpenAI's two APIs, by the `openai` SDK: chat completions, which every compatible service has, and Responses."""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from importlib.util import find_spec
from typing import Any

import openai
from openai import AsyncOpenAI

from infra.llm.base import Message, ToolSpec
from infra.llm.chat_reply import ChatReply
from infra.llm.chat_request import build
from infra.llm.quirks import Quirk, suspects
from infra.llm.responses import ResponsesReply
from infra.llm.responses import build as build_response
from infra.llm.streamed import Reply, StreamedModel, limits, timeouts
from infra.settings import Settings
from infra.telemetry import get_logger

log = get_logger("llm")


def openai_client(settings: Settings) -> AsyncOpenAI:
    """The SDK's client. It connects on the first call."""
    # Over aiohttp it reads for half the cost, where that is installed: the function has none.
    client = openai.DefaultAioHttpClient if find_spec("aiohttp") else openai.DefaultAsyncHttpxClient
    return AsyncOpenAI(
        api_key=settings.openai_api_key.get_secret_value() if settings.openai_api_key else "not-needed",
        base_url=settings.openai_base_url,
        timeout=timeouts(),
        max_retries=0,  # the turn retries, and only while nothing was shown
        http_client=client(limits=limits(settings.max_sessions)),
    )


class OpenAIModel(StreamedModel):
    """A `Model` behind `POST {base_url}/chat/completions` with `stream: true`."""

    def __init__(
        self, client: AsyncOpenAI, model: str, max_tokens: int | None, timeout: float, quirks: Sequence[str] = ()
    ) -> None:
        """`quirks` are what is known of the service from the start."""
        super().__init__(model, client, openai.APIError, timeout)
        self._max_tokens = max_tokens
        self._quirks = {Quirk(name) for name in quirks}

    @classmethod
    def from_settings(cls, settings: Settings) -> "OpenAIModel":
        """The model that the settings name."""
        assert settings.llm_model, "the settings check that LLM_MODEL is there"
        client, timeout = openai_client(settings), settings.llm_timeout_seconds
        return cls(client, settings.llm_model, settings.llm_max_tokens, timeout, settings.quirks)

    def _reply(self, tools: Sequence[ToolSpec]) -> Reply:
        return ChatReply([tool.name for tool in tools])

    async def _ask(self, messages: Sequence[Message], tools: Sequence[ToolSpec], request: AsyncExitStack) -> Any:
        """The response to the request, asked again in another way if the service does not know this one."""
        tried: list[Quirk] = []
        while True:
            quirks = self._quirks | set(tried)
            body = build(self._name, messages, tools, self._max_tokens, quirks)
            try:
                response = await request.enter_async_context(self._create(**_unchecked(body, "messages")))
            except openai.APIStatusError as error:
                found = suspects(error.status_code, error.response.text, body)
                quirk = next((each for each in found if each not in quirks), None)
                if quirk is None:
                    raise
                tried.append(quirk)
                continue
            if tried:
                log.warning(
                    "the model is asked in another way from now on; LLM_QUIRKS says so at once",
                    model=self._name,
                    quirks=[each.value for each in tried],
                )
                self._quirks |= set(tried)
            return response

    @property
    def _create(self) -> Callable[..., Any]:
        return self._client.chat.completions.with_streaming_response.create  # type: ignore[no-any-return]


class ResponsesModel(StreamedModel):
    """A `Model` behind `POST {base_url}/responses` with `stream: true`, and nothing kept there."""

    def __init__(self, client: AsyncOpenAI, model: str, max_tokens: int | None, timeout: float) -> None:
        super().__init__(model, client, openai.APIError, timeout)
        self._max_tokens = max_tokens

    @classmethod
    def from_settings(cls, settings: Settings) -> "ResponsesModel":
        """The model that the settings name."""
        assert settings.llm_model, "the settings check that LLM_MODEL is there"
        return cls(openai_client(settings), settings.llm_model, settings.llm_max_tokens, settings.llm_timeout_seconds)

    def _reply(self, tools: Sequence[ToolSpec]) -> Reply:
        return ResponsesReply()

    async def _ask(self, messages: Sequence[Message], tools: Sequence[ToolSpec], request: AsyncExitStack) -> Any:
        body = build_response(self._name, messages, tools, self._max_tokens)
        create = self._client.responses.with_streaming_response.create
        return await request.enter_async_context(create(**_unchecked(body, "input")))


def _unchecked(body: dict[str, Any], history: str) -> dict[str, Any]:
    """The arguments by which the SDK sends this body as it is.

    It holds whatever it is given against its types, which takes milliseconds for a long history, and the loop with it.
    What comes as `extra_body` takes the place of what it checked.
    """
    named: dict[str, Any] = {name: body[name] for name in ("model", "stream") if name in body}
    return {history: [], **named, "extra_body": {name: it for name, it in body.items() if name not in named}}
