"""What all models over HTTP share: the SDK asks, and what streams back is read as bytes.

An SDK makes an object of every chunk, which is nine tenths of what a token costs. Here the bytes go through `sse.py` to
the reply of the provider's own format.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Protocol

import httpx2
from msgspec import structs

from infra.llm.base import Chunk, Finished, Message, ModelError, Reasoning, ToolSpec
from infra.llm.errors import model_error
from infra.llm.sse import EventReader, TooLong
from infra.patience import Patience

CONNECT_SECONDS = 10.0
FINISH_SECONDS = 1.0
"""How long a service has to end its stream, and to count its tokens, once it has said why it ends."""
EOF_SECONDS = 0.05
"""How long a stream that is over may take to end: a connection that has ended can be used again."""
MOST_PLAIN_BYTES = 8 * 1024 * 1024
"""How much of an answer that is no stream is read: the whole reply as one piece of JSON."""
STILL_AT_WORK = Reasoning("")


class Reply(Protocol):
    """What has come of a reply so far."""

    reason: str | None
    """Why the provider ended it, once it has."""
    is_over: bool
    """Whether nothing more that matters can come."""
    failed: ModelError | None
    """The provider said that it failed, or this is no stream."""

    def add(self, events: Collection[bytes]) -> list[Chunk]:
        """Take in the data of the events that came together; what is to be told of them, before what `failed`."""

    def rest(self) -> Iterator[Chunk]:
        """What there is to say at the end.

        Raises:
            ModelError: it `failed`, or this is not how a reply ends.
        """


class StreamedModel:
    """A `Model` over HTTP. A provider says how it is asked, and how its reply reads."""

    def __init__(self, name: str, client: Any, api_error: type[Exception], timeout: float) -> None:
        """`client` is the provider's SDK, `api_error` its errors; a service may be silent for `timeout` seconds."""
        self._name = name
        self._client = client
        self._api_error = api_error
        self._timeout = timeout

    async def _ask(self, messages: Sequence[Message], tools: Sequence[ToolSpec], request: AsyncExitStack) -> Any:
        """The SDK's streaming response, which leaves with the `request`."""
        raise NotImplementedError

    def _reply(self, tools: Sequence[ToolSpec]) -> Reply:
        """A reply of which nothing has come."""
        raise NotImplementedError

    async def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> AsyncGenerator[Chunk, None]:
        """See `Model.stream`."""
        reply = self._reply(tools)
        events = EventReader()
        plain: bytearray | None = bytearray()
        # One generator, though it is long: each that a piece passes through costs as much as reading it. Leaving the
        # block closes the HTTP response, also when we are cancelled: the provider stops generating, and charging.
        with self._sorted(reply):
            async with Patience(self._timeout) as patience, AsyncExitStack() as request:
                received = _pieces(await self._ask(messages, tools, request))
                deadline: float | None = None
                while True:
                    piece = await (anext(received, None) if deadline is None else _before(deadline, received))
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
            yield structs.replace(last, model=self._name) if type(last) is Finished else last

    async def close(self) -> None:
        """See `Model.close`."""
        await self._client.close()

    @contextmanager
    def _sorted(self, reply: Reply) -> Iterator[None]:
        """Whatever goes wrong leaves as a `ModelError`; once the reply is known to have ended, nothing does."""
        try:
            yield
        except self._api_error as error:
            raise model_error(error) from error
        except TimeoutError as error:
            raise ModelError("model_timeout", "The model did not answer in time.", retryable=True) from error
        except TooLong as error:
            raise ModelError("model_unavailable", "The model's answer cannot be read.", retryable=True) from error
        except (httpx2.HTTPError, OSError) as error:
            if reply.reason is None:
                message = "The model's service cannot be reached or failed."
                raise ModelError("model_unavailable", message, retryable=True) from error


def timeouts() -> httpx2.Timeout:
    """Those of the SDK's client: silence is measured here, where any byte counts and a frozen process does not."""
    return httpx2.Timeout(None, connect=CONNECT_SECONDS)


def limits(sessions: int) -> httpx2.Limits:
    """An SDK's own limit is 1,000: every live session may wait for an answer at once."""
    return httpx2.Limits(max_connections=sessions)


def _pieces(response: Any) -> AsyncIterator[bytes]:
    """The body as it arrives. The SDK's own way leads through three more generators, which only unpack."""
    answer = response.http_response
    packed = answer.headers.get("content-encoding", "identity") != "identity"
    return aiter(answer.aiter_bytes() if packed else answer.stream)


def _the_rest(reply: Reply) -> float:
    """How many seconds a stream has to end that has said why it does, or that it does."""
    return EOF_SECONDS if reply.is_over else FINISH_SECONDS


async def _before(deadline: float, received: AsyncIterator[bytes]) -> bytes | None:
    """The next piece, if it comes in time."""
    try:
        async with asyncio.timeout_at(deadline):
            return await anext(received, None)
    except TimeoutError:
        return None


def _last(events: EventReader, plain: bytearray | None) -> list[bytes]:
    """What is left at the end of the stream: its last event, or the whole of an answer that is no stream."""
    last = [each for _, each in events.end()]
    if plain is None or last:
        return last
    text = bytes(plain).strip()
    return [text, b"[DONE]"] if text.startswith((b"{", b"[")) else []
