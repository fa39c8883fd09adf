"""How the three APIs stream a reply: the events that they really send, in their order and of their size."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"x-request-id: req_0123456789abcdef0123456789abcdef\r\ntransfer-encoding: chunked\r\n\r\n"
)
END = b"0\r\n\r\n"
MESSAGE = "msg_0123456789abcdef0123456789abcdef0123456789abcdef"


@dataclass(frozen=True)
class Wire:
    """One API's stream, as HTTP chunks."""

    opening: bytes
    """What comes before the first word."""
    word: Callable[[int, str], bytes]
    """One word, the reply's so-manyth."""
    closing: Callable[[tuple[str, ...]], bytes]
    """What comes behind the last of these words."""


def _chat_completions() -> Wire:
    """OpenAI's first API, which all compatible services have: about 370 bytes a word."""

    def chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
        fields = {
            "id": "chatcmpl-C0123456789abcdefghijklmnopqr",
            "object": "chat.completion.chunk",
            "created": 1795000000,
            "model": "gpt-4o-mini-2024-07-18",
            "service_tier": "default",
            "system_fingerprint": "fp_0123456789",
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
            "usage": None,
            "obfuscation": "0123456789abcdef",
        }
        return _http_chunk(f"data: {json.dumps(fields)}\n\n")

    @cache
    def word(text: str) -> bytes:
        return chunk({"content": text})

    last = chunk({}, "stop") + _http_chunk("data: [DONE]\n\n")
    return Wire(chunk({"role": "assistant", "content": ""}), lambda _, text: word(text), lambda _: last)


def _messages() -> Wire:
    """Anthropic's API: about 130 bytes a word."""
    counted = {"input_tokens": 472, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    kept = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}
    message: dict[str, Any] = {
        "model": "claude-sonnet-4-5-20250929",
        "id": "msg_0123456789abcdefghijklmn",
        "type": "message",
        "role": "assistant",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": counted | {"cache_creation": kept, "output_tokens": 2, "service_tier": "standard"},
    }

    @cache
    def word(text: str) -> bytes:
        return _event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    @cache
    def closing(texts: tuple[str, ...]) -> bytes:
        ended, usage = {"stop_reason": "end_turn", "stop_sequence": None}, counted | {"output_tokens": len(texts)}
        return (
            _event("content_block_stop", index=0)
            + _event("message_delta", delta=ended, usage=usage)
            + _event("message_stop")
        )

    opening = (
        _event("message_start", message=message)
        + _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        + _event("ping")
    )
    return Wire(opening, lambda _, text: word(text), closing)


def _responses() -> Wire:
    """OpenAI's second API: about 270 bytes a word, numbered events, and at the end the whole text four times."""
    message = {"id": MESSAGE, "type": "message", "role": "assistant"}

    def of_part(kind: str, number: int, **fields: Any) -> bytes:
        return _event(kind, sequence_number=number, item_id=MESSAGE, output_index=0, content_index=0, **fields)

    @cache
    def word(number: int, text: str) -> bytes:
        event = "response.output_text.delta"
        return of_part(event, 4 + number, delta=text, logprobs=[], obfuscation="0123456789ab")

    @cache
    def closing(texts: tuple[str, ...]) -> bytes:
        number, text = 4 + len(texts), "".join(texts)
        item = message | {"status": "completed", "content": [_part(text)]}
        usage = {
            "input_tokens": 472,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": len(texts),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 472 + len(texts),
        }
        return (
            of_part("response.output_text.done", number, text=text, logprobs=[])
            + of_part("response.content_part.done", number + 1, part=_part(text))
            + _event("response.output_item.done", sequence_number=number + 2, output_index=0, item=item)
            + _event("response.completed", sequence_number=number + 3, response=_response("completed", [item], usage))
        )

    begun, item = _response("in_progress", [], None), message | {"status": "in_progress", "content": []}
    opening = (
        _event("response.created", sequence_number=0, response=begun)
        + _event("response.in_progress", sequence_number=1, response=begun)
        + _event("response.output_item.added", sequence_number=2, output_index=0, item=item)
        + of_part("response.content_part.added", 3, part=_part(""))
    )
    return Wire(opening, word, closing)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _response(status: str, output: list[Any], usage: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "id": MESSAGE.replace("msg", "resp"),
        "object": "response",
        "created_at": 1795000000,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "model": "gpt-4o-mini-2024-07-18",
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "auto",
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage,
        "user": None,
        "metadata": {},
    }


def _event(kind: str, **fields: Any) -> bytes:
    data = json.dumps({"type": kind} | fields, separators=(",", ":"))
    return _http_chunk(f"event: {kind}\ndata: {data}\n\n")


def _http_chunk(event: str) -> bytes:
    data = event.encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


WIRES = {
    b"/v1/chat/completions": _chat_completions(),
    b"/v1/messages": _messages(),
    b"/v1/responses": _responses(),
}
"""By the path that is asked."""
