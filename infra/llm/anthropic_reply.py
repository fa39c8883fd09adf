"""How the events of Anthropic's Messages API read. Its reference is "Streaming messages" in Anthropic's docs."""

from collections.abc import Collection, Iterator
from typing import Any

import msgspec

from infra.llm.base import Chunk, Finished, FinishReason, ModelError, Reasoning, ToolCall
from infra.llm.calls import sensible
from infra.llm.errors import broke_off, failure
from infra.llm.events import read, tell

STOP_REASONS: dict[str, FinishReason] = {
    "end_turn": "complete",
    "stop_sequence": "complete",
    "tool_use": "complete",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
}
"""Every other reason cuts: `refusal`, `pause_turn`, and those that nobody knows yet."""


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Message(msgspec.Struct):
    usage: _Usage | None = None


class _Event(msgspec.Struct):
    type: str
    index: int = 0
    delta: _Delta | None = None
    content_block: dict[str, Any] | None = None
    usage: _Usage | None = None
    message: _Message | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Event)


class AnthropicReply:
    """What has come of a reply so far; see `streamed.Reply`."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.is_over = False
        self.failed: ModelError | None = None
        self._blocks: dict[int, dict[str, Any]] = {}
        self._arguments: dict[int, list[str]] = {}
        self._input = self._output = self._cached = 0

    def add(self, events: Collection[bytes]) -> list[Chunk]:
        """See `streamed.Reply.add`."""
        chunks: list[Chunk] = []
        for data in events:
            event = read(_decoder, data)
            if event is None:
                continue  # nonsense between good events
            if event.type == "content_block_delta" and event.delta:
                self._add_delta(event.index, event.delta, chunks)
            elif event.type == "content_block_start" and event.content_block:
                self._blocks[event.index] = event.content_block
                if text := event.content_block.get("text"):
                    tell(str(text), chunks)
            elif event.type == "error":
                self.failed = failure(event.error)
                break
            elif event.type == "message_stop":
                self.is_over = True
            else:
                self._count(event)
        return chunks

    def rest(self) -> Iterator[Chunk]:
        """See `streamed.Reply.rest`."""
        if self.failed:
            raise self.failed
        if self.reason is None:
            raise broke_off()
        reason = STOP_REASONS.get(self.reason, "cut")
        thoughts = [block for block in self._blocks.values() if "thinking" in str(block.get("type"))]
        opaque = {"thinking_blocks": thoughts} if thoughts else None
        calls = list(self._calls()) if reason == "complete" else []
        if calls:
            if opaque:
                calls[0] = calls[0].with_message(opaque)
            yield from calls
            yield Finished("tool_calls", self._input, self._output, self._cached)
        else:
            why = self.reason[:40] if reason == "cut" else ""
            yield Finished(reason, self._input, self._output, self._cached, why=why, opaque=opaque)

    def _add_delta(self, index: int, delta: _Delta, chunks: list[Chunk]) -> None:
        if delta.type == "text_delta":
            tell(delta.text, chunks)
        elif delta.type == "input_json_delta":
            self._arguments.setdefault(index, []).append(delta.partial_json)
        elif delta.type == "thinking_delta":
            block = self._blocks.setdefault(index, {"type": "thinking", "thinking": ""})
            block["thinking"] = block.get("thinking", "") + delta.thinking
            if delta.thinking:
                chunks.append(Reasoning(delta.thinking))
        elif delta.type == "signature_delta":
            self._blocks.setdefault(index, {"type": "thinking", "thinking": ""})["signature"] = delta.signature

    def _count(self, event: _Event) -> None:
        if event.delta and event.delta.stop_reason:
            self.reason = event.delta.stop_reason
        if usage := event.usage or (event.message.usage if event.message else None):
            read, written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
            self._cached = max(self._cached, read)
            self._input = max(self._input, (usage.input_tokens or 0) + read + written)
            self._output = usage.output_tokens or self._output

    def _calls(self) -> Iterator[ToolCall]:
        for index, block in self._blocks.items():
            if block.get("type") == "tool_use":
                pieces = self._arguments.get(index) or [msgspec.json.encode(block.get("input") or {}).decode()]
                for text in sensible(pieces):
                    yield ToolCall(str(block.get("id") or ""), str(block.get("name") or ""), text)
