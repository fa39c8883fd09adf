"""Any OpenAI-compatible chat completions endpoint: the `openai` SDK asks, and what it answers is read as bytes.

The SDK makes an object of every chunk, which is nine tenths of what a token costs; see `sse.py` and `chat_chunks.py`
for what reads it instead.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

import httpx2
import openai
from openai import AsyncOpenAI

from infra.llm import chat_request
from infra.llm.base import Chunk, Message, ModelError, Reasoning, ToolSpec
from infra.llm.chat_reply import ChatReply
from infra.llm.openai_errors import model_error
from infra.llm.quirks import Quirk, suspects
from infra.llm.sse import EventReader, TooLong
from infra.patience import Patience
from infra.settings import Settings
from infra.telemetry import get_logger

CONNECT_SECONDS = 10.0
FINISH_SECONDS = 1.0
"""How long a service has to end its stream, and to count its tokens, once it has said why it ends."""
EOF_SECONDS = 0.05
"""How long a stream that is over may take to end: a connection that has ended can be used again."""
MOST_PLAIN_BYTES = 8 * 1024 * 1024
"""How much of an answer that is no stream is read: the whole reply as one piece of JSON."""
STILL_AT_WORK = Reasoning("")

log = get_logger("llm")


class OpenAIModel:
    """A `Model` behind `POST {base_url}/chat/completions` with `stream: true`."""

    def __init__(
        self, client: AsyncOpenAI, model: str, max_tokens: int | None, timeout: float, quirks: Sequence[str] = ()
    ) -> None:
        """`timeout` is how many seconds the service may be silent; `quirks` are what is known of it from the start."""
        self._client = client
        self._model = model
        self._max_tokens = max_tokens
        self._timeout = timeout
        self._quirks = {Quirk(name) for name in quirks}

    @classmethod
    def from_settings(cls, settings: Settings) -> "OpenAIModel":
        """Build the client. It connects on the first call."""
        assert settings.llm_model, "the settings check that LLM_MODEL is there"
        key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else "not-needed"
        # The SDK's own limit is 1,000: every live session may wait for an answer at once.
        limits = httpx2.Limits(max_connections=settings.max_sessions)
        client = AsyncOpenAI(
            api_key=key,
            base_url=settings.openai_base_url,
            # Silence is measured here, where any byte counts and a frozen process does not.
            timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
            max_retries=0,  # the turn retries, and only while nothing was shown
            http_client=_transport()(limits=limits),
        )
        return cls(client, settings.llm_model, settings.llm_max_tokens, settings.llm_timeout_seconds, settings.quirks)

    async def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> AsyncGenerator[Chunk, None]:
        """See `Model.stream`."""
        reply = ChatReply([tool.name for tool in tools])
        events = EventReader()
        plain: bytearray | None = bytearray()
        # One generator, though it is long: each that a piece passes through costs as much as reading it. Leaving the
        # block closes the HTTP response, also when we are cancelled: the provider stops generating, and charging.
        with _sorted(reply):
            async with Patience(self._timeout) as patience, AsyncExitStack() as request:
                received = _pieces(await self._ask(messages, tools, request))
                deadline: float | None = None
                while True:
                    if deadline is None:
                        piece = await anext(received, None)
                    else:
                        piece = await _before(deadline, received)
                    if piece is None:
                        break
                    patience.rest()
                    data = [each for _, each in events.feed(piece)]
                    if data:
                        plain = None
                    elif plain is not None and len(plain) < MOST_PLAIN_BYTES:
                        plain += piece
                    for chunk in reply.add(data) or (STILL_AT_WORK,):
                        yield chunk
                    if reply.failed:
                        break
                    if deadline is None and (reply.reason or reply.is_over):
                        deadline = asyncio.get_running_loop().time() + _the_rest(reply)
                    patience.wake()
                patience.rest()
                for chunk in reply.add(_last(events, plain)):
                    yield chunk
        for last in reply.rest():
            yield last

    async def close(self) -> None:
        """See `Model.close`."""
        await self._client.close()

    async def _ask(self, messages: Sequence[Message], tools: Sequence[ToolSpec], request: AsyncExitStack) -> Any:
        """The response to the request, asked again in another way if the service does not know this one."""
        tried: list[Quirk] = []
        while True:
            quirks = self._quirks | set(tried)
            body = chat_request.build(self._model, messages, tools, self._max_tokens, quirks)
            try:
                answer = self._client.chat.completions.with_streaming_response.create(**body)
                response = await request.enter_async_context(answer)
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
                    model=self._model,
                    quirks=[each.value for each in tried],
                )
                self._quirks |= set(tried)
            return response


def _pieces(response: Any) -> AsyncIterator[bytes]:
    """The body as it arrives. The SDK's own way leads through three more generators, which only unpack."""
    answer = response.http_response
    packed = answer.headers.get("content-encoding", "identity") != "identity"
    return aiter(answer.aiter_bytes() if packed else answer.stream)


def _the_rest(reply: ChatReply) -> float:
    """How many seconds a stream has to end that has said why it does, or that it does."""
    return EOF_SECONDS if reply.is_over else FINISH_SECONDS


async def _before(deadline: float, received: AsyncIterator[bytes]) -> bytes | None:
    """The next piece, if it comes in time."""
    try:
        async with asyncio.timeout_at(deadline):
            return await anext(received, None)
    except TimeoutError:
        return None


@contextmanager
def _sorted(reply: ChatReply) -> Iterator[None]:
    """Whatever goes wrong leaves as a `ModelError`; once the reply is known to have ended, nothing does."""
    try:
        yield
    except openai.APIError as error:
        raise model_error(error) from error
    except TimeoutError as error:
        raise ModelError("model_timeout", "The model did not answer in time.", retryable=True) from error
    except TooLong as error:
        raise ModelError("model_unavailable", "The model's answer cannot be read.", retryable=True) from error
    except (httpx2.HTTPError, OSError) as error:
        if reply.reason is None:
            message = "The model's service cannot be reached or failed."
            raise ModelError("model_unavailable", message, retryable=True) from error


def _last(events: EventReader, plain: bytearray | None) -> list[bytes]:
    """What is left at the end of the stream: its last event, or the whole of an answer that is no stream."""
    last = [each for _, each in events.end()]
    if plain is None or last:
        return last
    text = bytes(plain).strip()
    return [text, b"[DONE]"] if text.startswith((b"{", b"[")) else []


def _transport() -> Any:
    """The SDK's client over aiohttp, which reads for half the cost, where that is installed: the function has none."""
    return openai.DefaultAioHttpClient if find_spec("aiohttp") else openai.DefaultAsyncHttpxClient
