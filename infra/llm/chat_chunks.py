"""One chunk of a chat completion, as it was meant: OpenAI's form at full speed, and every other that services send."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from infra.llm.base import Tokens
from infra.llm.calls import Piece

KNOWN_IN_CALL = frozenset({"id", "index", "type", "function", "custom"})
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
OPAQUE = ("reasoning_details", "extra_content", "thinking_blocks")
"""What a service may want back with the message: signed or encrypted thoughts."""


class Said(msgspec.Struct, frozen=True):
    """What a chunk says."""

    text: str = ""
    thought: str = ""
    pieces: tuple[Piece, ...] = ()
    reason: str | None = None
    tokens: Tokens | None = None
    opaque: dict[str, Any] | None = None
    error: Any = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: msgspec.Raw | None = None
    function_call: msgspec.Raw | None = None
    reasoning: msgspec.Raw | None = None
    thinking: msgspec.Raw | None = None
    refusal: msgspec.Raw | None = None
    reasoning_details: msgspec.Raw | None = None
    extra_content: msgspec.Raw | None = None
    thinking_blocks: msgspec.Raw | None = None


class _Choice(msgspec.Struct):
    delta: _Delta
    finish_reason: str | None = None
    index: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice]
    usage: msgspec.Raw | None = None
    error: msgspec.Raw | None = None
    x_groq: msgspec.Raw | None = None


_decoder = msgspec.json.Decoder(_Chunk)
_NULL = (None, msgspec.Raw(b"null"))


def read(data: bytes) -> Said | None:
    """What the chunk says; None if it is nothing that can be read.

    Only a chunk in exactly OpenAI's form, and with text alone, is read the fast way: nearly all are.
    """
    try:
        chunk = _decoder.decode(data)
    except (ValueError, RecursionError):  # msgspec's own are ValueErrors, and bytes in a text are UnicodeDecodeErrors
        return _read_anything(data)
    if len(chunk.choices) == 1 and chunk.usage in _NULL and chunk.error is None and chunk.x_groq is None:
        choice = chunk.choices[0]
        delta = choice.delta
        if (
            delta.tool_calls in _NULL
            and delta.function_call in _NULL
            and delta.reasoning is None
            and delta.thinking is None
            and delta.refusal in _NULL
            and delta.reasoning_details is None
            and delta.extra_content is None
            and delta.thinking_blocks is None
        ):
            return Said(delta.content or "", delta.reasoning_content or "", (), choice.finish_reason)
    return _read_anything(data)


def _read_anything(data: bytes) -> Said | None:
    try:
        chunk = json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    if isinstance(chunk, list) and len(chunk) == 1:  # Gemini's errors
        chunk = chunk[0]
    if not isinstance(chunk, dict):
        return None
    if chunk.get("error") and not chunk.get("choices"):
        return Said(error=chunk["error"])
    tokens = tokens_of(chunk.get("usage")) or tokens_of(_dict(chunk.get("x_groq")).get("usage"))
    choices = chunk.get("choices")
    choice = _dict(choices[0] if isinstance(choices, list) and choices else choices)
    delta = _dict(choice.get("delta")) or _dict(choice.get("message")) or {"content": choice.get("text")}
    text, thought = _texts(delta.get("content"))
    if refusal := delta.get("refusal"):
        text += _texts(refusal)[0]
    for name in THOUGHTS:
        if told := "".join(_texts(delta.get(name))):
            thought += told
            break
    reason = choice.get("finish_reason")
    return Said(
        text,
        thought,
        _pieces(delta),
        reason if isinstance(reason, str) and reason else None,
        tokens,
        {name: delta[name] for name in OPAQUE if delta.get(name)} or None,
    )


def _texts(content: Any) -> tuple[str, str]:
    """The (text, thought) in what stands where a text should: a text, a part, or a list of parts."""
    if isinstance(content, str):
        return content, ""
    if isinstance(content, list):
        parts = [_texts(part) for part in content]
        return "".join(text for text, _ in parts), "".join(thought for _, thought in parts)
    if not isinstance(content, dict):
        return "", ""
    kind = str(content.get("type", "text"))
    if "think" in kind or "reason" in kind:
        within = next((content[name] for name in ("thinking", "reasoning", "text", "summary") if content.get(name)), "")
        return "", "".join(_texts(within))
    within = next((content[name] for name in ("text", "value", "content", "refusal") if content.get(name)), "")
    return _texts(within)


def _pieces(delta: Mapping[str, Any]) -> tuple[Piece, ...]:
    calls = delta.get("tool_calls")
    found = calls if isinstance(calls, list) else [calls] if isinstance(calls, dict) else []
    pieces = [_piece(each) for each in found if isinstance(each, dict)]
    if isinstance(legacy := delta.get("function_call"), dict):
        pieces.append(_piece({"index": 0, "function": legacy}))
    return tuple(pieces)


def _piece(call: Mapping[str, Any]) -> Piece:
    function = _dict(call.get("function")) or call  # some put the name and the arguments beside the id
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    index = call.get("index")
    return Piece(
        index if isinstance(index, int) else None,
        _word(call.get("id")),
        _word(function.get("name")),
        arguments or "",
        {
            name: value
            for name, value in call.items()
            if name not in KNOWN_IN_CALL and value is not None and function is not call
        }
        or None,
    )


def tokens_of(usage: Any) -> Tokens | None:
    """The tokens that a service counted, under any of the names that are in use; None where it counted none."""
    usage = _dict(usage)
    if not usage:
        return None
    prompt = _dict(usage.get("prompt_tokens_details")) or _dict(usage.get("input_tokens_details"))
    output = _dict(usage.get("completion_tokens_details")) or _dict(usage.get("output_tokens_details"))
    return Tokens(
        _number(usage.get("prompt_tokens")) or _number(usage.get("input_tokens")),
        _number(usage.get("completion_tokens")) or _number(usage.get("output_tokens")),
        _number(prompt.get("cached_tokens")) or _number(usage.get("prompt_cache_hit_tokens")),
        _number(output.get("reasoning_tokens")) or _number(usage.get("reasoning_tokens")),
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _word(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _number(value: Any) -> int:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e12 else 0
