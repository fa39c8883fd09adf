"""The one vocabulary every provider is translated to. Callers never branch on the provider."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal, Protocol

import msgspec

FinishReason = Literal["complete", "tool_calls", "length"]


class ToolCall(msgspec.Struct, frozen=True):
    """The model asks for a tool. `arguments` is the JSON text as the model wrote it, which may be nonsense."""

    call_id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True):
    """One entry of the history a model is given.

    `tool_calls` is set on assistant messages that asked for tools; `tool_call_id` on the tool messages that
    answer them.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class ToolSpec(msgspec.Struct, frozen=True):
    """What a model is told of a tool. `parameters` is a JSON Schema of type object."""

    name: str
    description: str
    parameters: dict[str, Any]


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """A piece of the answer's text, as it came."""

    text: str


class Finished(msgspec.Struct, frozen=True):
    """The last thing a stream yields: how it ended, and the tokens it took (0 where the provider is silent)."""

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
    """The text with U+FFFD for halves of surrogate pairs: JSON can carry them, UTF-8 and every store cannot."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Model(Protocol):
    """A language model."""

    def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> AsyncGenerator[Chunk, None]:
        """Answer the last message, ending with one `Finished`. Closing the generator stops the call.

        Raises:
            ModelError: while iterating. Providers do not retry: that is the turn's decision.
        """

    async def close(self) -> None:
        """Let go of connections."""
