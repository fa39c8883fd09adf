"""OpenAI's Responses API: what is asked, and how its events read ("Streaming events" in OpenAI's reference)."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import msgspec

from infra.llm.base import Chunk, Finished, Message, ModelError, Reasoning, ToolCall, ToolSpec
from infra.llm.calls import sensible
from infra.llm.chat_chunks import tokens_of
from infra.llm.chat_request import safe_name
from infra.llm.errors import broke_off, failure
from infra.llm.events import read, tell


def build(model: str, messages: Sequence[Message], tools: Sequence[ToolSpec], max_tokens: int | None) -> dict[str, Any]:
    """The request's body. The conversation is ours to keep, so that thoughts come encrypted and are sent back."""
    body: dict[str, Any] = {
        "model": model,
        "input": [item for message in messages if message.role != "system" for item in _items(message)],
        "stream": True,
        "store": False,
        "include": ["reasoning.encrypted_content"],
    }
    if prompt := "\n\n".join(message.content for message in messages if message.role == "system"):
        body["instructions"] = prompt
    if tools:
        body["tools"] = [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "strict": False,
            }
            for tool in tools
        ]
    if max_tokens:
        body["max_output_tokens"] = max_tokens
    return body


def _items(message: Message) -> Iterator[dict[str, Any]]:
    if message.role == "tool":
        yield {"type": "function_call_output", "call_id": message.tool_call_id, "output": message.content}
        return
    for opaque in (message.opaque, *((call.opaque or {}).get("message") for call in message.tool_calls)):
        yield from (opaque or {}).get("items", ())
    if message.content:
        yield {"role": message.role, "content": message.content}
    for call in message.tool_calls:
        called = {"call_id": call.call_id, "name": safe_name(call.name), "arguments": call.arguments}
        yield {"type": "function_call", **called}


class _Event(msgspec.Struct):
    type: str
    delta: str | None = None
    item: dict[str, Any] | None = None
    response: dict[str, Any] | None = None
    error: Any = None
    code: str | None = None


_decoder = msgspec.json.Decoder(_Event)
THOUGHTS = ("response.reasoning_summary_text.delta", "response.reasoning_text.delta")
TEXTS = ("response.output_text.delta", "response.refusal.delta")


class ResponsesReply:
    """What has come of a response so far; see `streamed.Reply`."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.is_over = False
        self.failed: ModelError | None = None
        self._calls: list[ToolCall] = []
        self._thoughts: list[dict[str, Any]] = []
        self._end: dict[str, Any] = {}

    def add(self, events: Collection[bytes]) -> list[Chunk]:
        """See `streamed.Reply.add`."""
        chunks: list[Chunk] = []
        for data in events:
            event = read(_decoder, data)
            if event is None:
                continue  # a proxy's own, or nonsense between good events
            if event.type in TEXTS and event.delta:
                tell(event.delta, chunks)
            elif event.type in THOUGHTS and event.delta:
                chunks.append(Reasoning(event.delta))
            elif event.type == "response.output_item.done" and event.item:
                self._take(event.item)
            elif event.type in ("response.completed", "response.incomplete") and event.response is not None:
                self._end, self.is_over = event.response, True
                details = event.response.get("incomplete_details") or {}
                self.reason = str(details.get("reason") or event.response.get("status") or "completed")
            elif event.type in ("response.failed", "error"):
                self.failed = failure((event.response or {}).get("error") or event.error or {"code": event.code or ""})
                break
        return chunks

    def rest(self) -> Iterator[Chunk]:
        """See `streamed.Reply.rest`."""
        if self.failed:
            raise self.failed
        if self.reason is None:
            raise broke_off()
        tokens = tokens_of(self._end.get("usage"))
        opaque = {"items": self._thoughts} if self._thoughts else None
        counted = (tokens.input, tokens.output, tokens.cached, tokens.reasoning) if tokens else (0, 0, 0, 0)
        if self.reason == "completed" and self._calls:
            if opaque:
                self._calls[0] = self._calls[0].with_message(opaque)
            yield from self._calls
            yield Finished("tool_calls", *counted)
        elif self.reason == "completed":
            yield Finished("complete", *counted, opaque=opaque)
        elif self.reason == "max_output_tokens":
            yield Finished("length", *counted)
        else:
            yield Finished("cut", *counted, why=self.reason[:40])

    def _take(self, item: dict[str, Any]) -> None:
        if item.get("type") == "function_call":
            (arguments, *_) = sensible([str(item.get("arguments") or "")])
            self._calls.append(ToolCall(str(item.get("call_id") or ""), str(item.get("name") or ""), arguments))
        elif item.get("type") == "reasoning" and item.get("encrypted_content"):
            self._thoughts.append({name: value for name, value in item.items() if name != "status"})
