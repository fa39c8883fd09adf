"""A chat completions request that every service takes: what strict ones refuse is put right before it is sent."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from infra.llm.base import Message, ToolCall, ToolSpec
from infra.llm.quirks import Quirk

NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]")
LONGEST_NAME = 64
CUT_SHORT = "(The answer was cut short.)"
"""Stands where an answer should be between a tool's result and the next question: some services insist on one."""


def build(
    model: str, messages: Sequence[Message], tools: Sequence[ToolSpec], max_tokens: int | None, quirks: set[Quirk]
) -> dict[str, Any]:
    """The request's body."""
    in_words = Quirk.NO_TOOLS in quirks or (Quirk.NO_TOOL_HISTORY in quirks and not tools)
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(each, quirks) for each in _alternating(_without(messages, quirks, in_words=in_words))],
        "stream": True,
    }
    if Quirk.NO_STREAM_OPTIONS not in quirks:
        body["stream_options"] = {"include_usage": True}
    if tools and Quirk.NO_TOOLS not in quirks:
        body["tools"] = [_tool(tool) for tool in tools]
    if max_tokens:
        body["max_tokens" if Quirk.MAX_TOKENS in quirks else "max_completion_tokens"] = max_tokens
    return body


def _without(messages: Sequence[Message], quirks: set[Quirk], *, in_words: bool) -> list[Message]:
    """The messages without roles that the model does not know: what they say is said by those it knows."""
    kept = list(messages)
    if in_words:
        kept = flat(kept)
    if Quirk.NO_SYSTEM in quirks:
        said = "\n\n".join(each.content for each in kept if each.role == "system")
        kept = [Message("user", said), *(each for each in kept if each.role != "system")] if said else kept
    return kept


def flat(messages: Sequence[Message]) -> list[Message]:
    """Calls and results as words."""
    told = []
    names: dict[str | None, str] = {}
    for message in messages:
        names |= {call.call_id: call.name for call in message.tool_calls}
        if message.role == "tool":
            told.append(Message("user", f"[{names.get(message.tool_call_id, 'tool')} answered: {message.content}]"))
        elif message.tool_calls:
            called = [f"[called {call.name} with {call.arguments}]" for call in message.tool_calls]
            told.append(Message("assistant", "\n".join(filter(None, [message.content, *called]))))
        else:
            told.append(message)
    return told


def _alternating(messages: Sequence[Message]) -> list[Message]:
    """The messages so that no two of one role follow each other, and an answer follows what tools have said."""
    told: list[Message] = []
    for message in messages:
        before = told[-1] if told else None
        if before and before.role == message.role and message.role != "tool" and not before.tool_calls:
            content = "\n\n".join(filter(None, [before.content, message.content]))
            told[-1] = Message(message.role, content, message.tool_calls, None, message.opaque)
            continue
        if before and before.role == "tool" and message.role == "user":
            told.append(Message("assistant", CUT_SHORT))
        told.append(message)
    return told


def _message(message: Message, quirks: set[Quirk]) -> dict[str, Any]:
    sent: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        sent["tool_calls"] = [_call(call, quirks) for call in message.tool_calls]
        sent["content"] = message.content or None
    if message.tool_call_id is not None:
        sent["tool_call_id"] = _call_id(message.tool_call_id, quirks)
    for opaque in (message.opaque, *((call.opaque or {}).get("message") for call in message.tool_calls)):
        sent |= opaque or {}
    return sent


def _call(call: ToolCall, quirks: set[Quirk]) -> dict[str, Any]:
    function = {"name": safe_name(call.name), "arguments": call.arguments}
    sent: dict[str, Any] = {"id": _call_id(call.call_id, quirks), "type": "function", "function": function}
    back: dict[str, Any] = (call.opaque or {}).get("call", {})
    return sent | back


def _call_id(call_id: str, quirks: set[Quirk]) -> str:
    return hashlib.sha256(call_id.encode()).hexdigest()[:9] if Quirk.SHORT_IDS in quirks else call_id


def safe_name(name: str) -> str:
    """A name that every service takes, for one that a model may have made up."""
    return NOT_IN_A_NAME.sub("_", name)[:LONGEST_NAME] or "unnamed"


def _tool(tool: ToolSpec) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
    }
