"""A request to Anthropic's Messages API: roles alternate, and results of tools are what the user says."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from infra.llm.base import Message, ToolSpec
from infra.llm.chat_request import flat, safe_name

MAX_TOKENS = 8192
"""The longest reply where LLM_MAX_TOKENS does not say: the API wants a limit."""
CACHED = {"cache_control": {"type": "ephemeral"}}
"""Marks the end of what is the same in every request of a conversation: it is read for a tenth of the price."""
NOT_IN_AN_ID = re.compile(r"[^A-Za-z0-9_-]")


def build(model: str, messages: Sequence[Message], tools: Sequence[ToolSpec], max_tokens: int | None) -> dict[str, Any]:
    """The request's body."""
    if not tools:  # the API takes calls only where tools are on offer, which a turn's last round does not do
        messages = flat(messages)
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": max_tokens or MAX_TOKENS,
        "messages": _conversation(messages),
        "stream": True,
    }
    if prompt := "\n\n".join(message.content for message in messages if message.role == "system"):
        body["system"] = [{"type": "text", "text": prompt, **CACHED}]
    if tools:
        body["tools"] = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.parameters} for tool in tools
        ]
        body["tools"][-1] |= CACHED
    return body


def _conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "system":
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message)
        if told and told[-1]["role"] == role:
            told[-1]["content"] += blocks
        elif blocks:
            told.append({"role": role, "content": blocks})
    return told


def _blocks(message: Message) -> list[dict[str, Any]]:
    if message.role == "tool":
        call_id = NOT_IN_AN_ID.sub("_", message.tool_call_id or "")
        return [{"type": "tool_result", "tool_use_id": call_id, "content": message.content}]
    blocks: list[dict[str, Any]] = []
    for opaque in (message.opaque, *((call.opaque or {}).get("message") for call in message.tool_calls)):
        blocks += (opaque or {}).get("thinking_blocks", ())
    if message.content.strip():  # an empty text is refused
        blocks.append({"type": "text", "text": message.content})
    for call in message.tool_calls:
        call_id = NOT_IN_AN_ID.sub("_", call.call_id)
        arguments = msgspec.json.decode(call.arguments)  # an object: the history sees to that
        blocks.append({"type": "tool_use", "id": call_id, "name": safe_name(call.name), "input": arguments})
    return blocks
