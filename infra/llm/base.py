"""The one vocabulary that every provider is translated into. Callers never branch on the provider."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal, Protocol

import msgspec

MOST_OPAQUE_BYTES = 64 * 1024
"""The most that is kept of what a provider wants back with a call or an answer."""
FinishReason = Literal["complete", "tool_calls", "length", "cut"]
"""`cut` is any end but the model's own and the limit's: a filter's, a refusal's, one that nobody knows."""


class ToolCall(msgspec.Struct, frozen=True):
    """The model asks for a tool. `arguments` is JSON text as the model wrote it, so it may be nonsense."""

    call_id: str
    name: str
    arguments: str
    opaque: dict[str, Any] | None = None
    """What the provider wants back as it is: with the `call`, or with the `message` that made it."""

    def with_message(self, opaque: dict[str, Any]) -> "ToolCall":
        """The same call, with what the provider wants back with its message."""
        return ToolCall(self.call_id, self.name, self.arguments, (self.opaque or {}) | {"message": opaque})


class Message(msgspec.Struct, frozen=True):
    """One entry of the history that a model is given.

    `tool_calls` is set on assistant messages that asked for tools; `tool_call_id` on the tool messages that
    answer them.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    opaque: dict[str, Any] | None = None
    """What the provider wants back with this message as it is, such as signed thoughts. Nobody else may see it."""


class ToolSpec(msgspec.Struct, frozen=True):
    """What a model is told about a tool. `parameters` is a JSON Schema of type object."""

    name: str
    description: str
    parameters: dict[str, Any]


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """A piece of the answer's text, as it arrived; or several that arrived together."""

    text: str
    pieces: int = 1


class Reasoning(msgspec.Struct, frozen=True, gc=False):
    """What the model thinks before it answers. Without text it says only that the provider is still at work."""

    text: str


class Tokens(msgspec.Struct, frozen=True):
    """What a reply took: `cached` is part of `input`, `reasoning` part of `output`."""

    input: int = 0
    output: int = 0
    cached: int = 0
    reasoning: int = 0


class Finished(msgspec.Struct, frozen=True):
    """The last thing a stream yields: how the answer ended, and the tokens it took (0 if the provider does not say).

    `why` is the provider's own word for a reason that cuts. `opaque` belongs to the answer's `Message`. `model` is the
    name of the one that answered.
    """

    reason: FinishReason
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    why: str = ""
    opaque: dict[str, Any] | None = None
    model: str = ""


Chunk = TextDelta | Reasoning | ToolCall | Finished


class ModelError(Exception):
    """The model did not answer.

    Attributes:
        code: for the client's `error` frame; one of those that begin with `model_`.
        retryable: whether the same call may succeed when tried again.
        retry_after: how many seconds the provider asks to be left alone.
        detail: the status and the provider's own code, for the log.
    """

    def __init__(
        self, code: str, message: str, *, retryable: bool, retry_after: float | None = None, detail: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable
        self.retry_after = retry_after
        self.detail = detail


def well_formed(text: str) -> str:
    """The text with U+FFFD in place of half surrogate pairs, which JSON can carry but UTF-8 and the stores cannot."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def bounded(opaque: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a provider wants back, if it can be stored and is not too much: a history is kept in memory."""
    try:
        return opaque if opaque and len(msgspec.json.encode(opaque)) <= MOST_OPAQUE_BYTES else None
    except (UnicodeEncodeError, RecursionError):
        return None


class Model(Protocol):
    """A language model."""

    def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> AsyncGenerator[Chunk, None]:
        """Answer the last message, ending with one `Finished`. Closing the generator stops the call.

        Raises:
            ModelError: while iterating. Providers never retry; the turn decides that.
        """

    async def close(self) -> None:
        """Let go of connections."""
