"""The one vocabulary that every provider is translated into. Callers never branch on the provider."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal, Protocol

import msgspec

FinishReason = Literal["complete", "tool_calls", "length"]


class ToolCall(msgspec.Struct, frozen=True):
    """The model asks for a tool. `arguments` is JSON text as the model wrote it, so it may be nonsense."""

    call_id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True):
    """One entry of the history that a model is given.

    `tool_calls` is set on assistant messages that asked for tools; `tool_call_id` on the tool messages that
    answer them.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class ToolSpec(msgspec.Struct, frozen=True):
    """What a model is told about a tool. `parameters` is a JSON Schema of type object."""

    name: str
    description: str
    parameters: dict[str, Any]


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """A piece of the answer's text, as it arrived."""

    text: str


class Finished(msgspec.Struct, frozen=True):
    """The last thing a stream yields: how the answer ended, and the tokens it took (0 if the provider does not say)."""

    reason: FinishReason
    input_tokens: int = 0
    output_tokens: int = 0


Chunk = TextDelta | ToolCall | Finished


class ModelError(Exception):
    """The model did not answer.

    Attributes:
        code: for the client's `error` frame: `model_unavailable`, `model_rate_limited`, `model_refused` or
            `model_timeout`.
        retryable: whether the same call may succeed when tried again.
    """

    def __init__(self, code: str, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable


def well_formed(text: str) -> str:
    """The text with U+FFFD in place of half surrogate pairs, which JSON can carry but UTF-8 and the stores cannot."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Model(Protocol):
    """A language model."""

    def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> AsyncGenerator[Chunk, None]:
        """Answer the last message, ending with one `Finished`. Closing the generator stops the call.

        Raises:
            ModelError: while iterating. Providers never retry; the turn decides that.
        """

    async def close(self) -> None:
        """Let go of connections."""
