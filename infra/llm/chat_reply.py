"""A streamed chat completion, from its chunks to what the turn is told. The service's manners end here."""

from collections.abc import Collection, Iterator
from typing import Any

from infra.llm.base import Chunk, Finished, FinishReason, ModelError, Reasoning, TextDelta, Tokens, well_formed
from infra.llm.calls import Calls
from infra.llm.chat_chunks import read
from infra.llm.errors import broke_off, failure
from infra.llm.thinking import Thinking

FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "complete",
    "end_turn": "complete",
    "stop_sequence": "complete",
    "eos": "complete",
    "eos_token": "complete",
    "complete": "complete",
    "completed": "complete",
    "tool_calls": "complete",
    "tool_use": "complete",
    "function_call": "complete",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "max_output_tokens": "length",
}
"""What is known to be good, and what is known to be the limit. Every other reason cuts."""
MOST_NONSENSE = 1000
"""Events that are no chunk and are passed over, before it is no stream at all."""


class ChatReply:
    """What has come of a reply so far. `is_over` once nothing more that matters can come."""

    def __init__(self, offered: Collection[str] = ()) -> None:
        """`offered` are the names of the tools that the model may call."""
        self.reason: str | None = None
        self.is_over = False
        self.failed: ModelError | None = None
        """The service said that it failed, or this is no stream."""
        self._calls = Calls(offered)
        self._thinking = Thinking()
        self._half = ""
        self._tokens = Tokens()
        self._opaque: dict[str, Any] = {}
        self._nonsense = 0
        self._said_something = False

    def add(self, events: Collection[bytes]) -> list[Chunk]:
        """Take in the data of the events that came together; what is to be told of them, before what `failed`."""
        texts: list[str] = []
        thoughts: list[str] = []
        for data in events:
            if data.strip() == b"[DONE]":
                self.is_over = True
                continue
            said = read(data)
            if said is None:
                self._pass_over()
                continue
            if said.error:
                self.failed = failure(said.error)
                break
            for piece in said.pieces:
                self._calls.add(piece)
                self._said_something = True
            if said.thought:
                thoughts.append(said.thought)
            if said.text and (text := self._shown(said.text, thoughts)):
                texts.append(text)
            self.reason = said.reason or self.reason
            self._tokens = said.tokens or self._tokens
            if said.opaque:
                self._keep(said.opaque)
        chunks: list[Chunk] = [Reasoning(well_formed("".join(thoughts)))] if thoughts else []
        if texts:
            self._said_something = True
            chunks.append(TextDelta("".join(texts), len(texts)))
        return chunks

    def rest(self) -> Iterator[Chunk]:
        """What there is to say at the end.

        Raises:
            ModelError: it `failed`, or this is not how a reply ends.
        """
        if self.failed:
            raise self.failed
        thought, text = self._thinking.rest()
        if thought:
            yield Reasoning(well_formed(thought))
        if text or self._half:
            self._said_something = True
            yield TextDelta(well_formed(text + self._half))
        if self.reason is None and not (self.is_over and self._said_something):
            raise broke_off()
        calls = self._calls.whole()
        if calls and self.reason is None and not self._calls.are_complete():
            raise broke_off()
        reason = FINISH_REASONS.get((self.reason or "stop").lower(), "cut")
        if calls and reason == "complete":
            if self._opaque:
                calls[0] = calls[0].with_message(self._opaque)
            yield from calls
            yield self._finished("tool_calls")
        else:
            why = (self.reason or "")[:40] if reason == "cut" else ""
            yield self._finished(reason, why, self._opaque or None)

    def _finished(self, reason: FinishReason, why: str = "", opaque: dict[str, Any] | None = None) -> Finished:
        tokens = self._tokens
        return Finished(reason, tokens.input, tokens.output, tokens.cached, tokens.reasoning, why, opaque)

    def _shown(self, text: str, thoughts: list[str]) -> str:
        """What of the text is the answer; what is thought goes to the thoughts.

        The first half of a surrogate pair at the end is held back: some services cut between the two.
        """
        text = self._half + text
        self._half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
        thought, answer = self._thinking.feed(text.removesuffix(self._half) if self._half else text)
        if thought:
            thoughts.append(thought)
        return well_formed(answer)

    def _keep(self, opaque: dict[str, Any]) -> None:
        for name, value in opaque.items():
            known = self._opaque.get(name)
            if isinstance(known, list) and isinstance(value, list):
                self._opaque[name] = known + value
            elif isinstance(known, dict) and isinstance(value, dict):
                self._opaque[name] = known | value
            else:
                self._opaque[name] = value

    def _pass_over(self) -> None:
        self._nonsense += 1
        if self._nonsense > MOST_NONSENSE:
            self.failed = ModelError("model_unavailable", "The model's answer cannot be read.", retryable=True)
