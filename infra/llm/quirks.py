"""What a service does not take, though it calls itself compatible: learned from its refusal, once for a model.

`LLM_QUIRKS` says it at once, so that nothing has to be refused.
"""

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

REFUSALS = frozenset({400, 404, 405, 415, 422, 501})
"""The statuses that may mean that something in the request is not known. OpenRouter says 404 of tools."""
CANNOT = re.compile(r"support|enable|available|allow|permit|implement|unknown|unexpected|unrecogni|extra|require")


class Quirk(str, Enum):
    """One thing that has to be asked for in another way."""

    NO_TOOLS = "no_tools"
    """The model cannot call tools: none is offered, and what they said before is told in words."""
    NO_TOOL_HISTORY = "no_tool_history"
    """Without tools on offer the service takes no earlier calls: they are told in words."""
    MAX_TOKENS = "max_tokens"
    """`max_tokens`, and not `max_completion_tokens`."""
    NO_STREAM_OPTIONS = "no_stream_options"
    """No `stream_options`, and so perhaps no usage."""
    NO_SYSTEM = "no_system"
    """No system role: the prompt is the beginning of the first message."""
    SHORT_IDS = "short_ids"
    """The ids of calls have nine letters and digits."""


def suspects(status: int, text: str, body: Mapping[str, Any]) -> Iterator[Quirk]:
    """What the refusal of this request may mean, the likeliest first."""
    if status not in REFUSALS:
        return
    text = text[:4000].lower()
    if "context" in text or "too long" in text:  # of a conversation, and of nothing that is not known
        return
    has_calls = any(message["role"] == "tool" for message in body["messages"])
    if "tool call id" in text or "tool_call_id" in text:
        yield Quirk.SHORT_IDS
    if ("tool" in text or "function" in text) and CANNOT.search(text):
        if "tools" in body and "schema" not in text:
            yield Quirk.NO_TOOLS
        elif has_calls:
            yield Quirk.NO_TOOL_HISTORY
    if "system" in text and body["messages"][0]["role"] == "system" and ("role" in text or CANNOT.search(text)):
        yield Quirk.NO_SYSTEM
    named = re.search("max_(completion_)?tokens|stream_options|include_usage", text)
    if named or status == 422:  # which some answer to a field that they do not know, without its name
        if "max_completion_tokens" in body and (named is None or "tokens" in named[0]):
            yield Quirk.MAX_TOKENS
        if "stream_options" in body and (named is None or "tokens" not in named[0]):
            yield Quirk.NO_STREAM_OPTIONS
