"""What is known of the turn that is being answered, and how a tool call's arguments are written down. Pure."""

from typing import Any

import msgspec
from msgspec import UNSET

from chat.protocol import frames as wire

MOST_LEVELS = 64
"""How deep a tool call's arguments may be nested before they are kept as text: encoders recurse, and fail."""

TOKEN_BYTES = 64
"""What a token takes besides its letters: the string's header, and its place in a list."""


class OpenTurn:
    """The turn that runs: the text since the last tool round, the calls without a result, the tokens it took."""

    __slots__ = ("_bytes", "_drafted", "_weighed", "open_calls", "part", "text", "turn_id", "usage")

    def __init__(self, turn_id: str) -> None:
        self.turn_id = turn_id
        self.text: list[str] = []
        self.part = 0
        """How many texts of this turn are recorded: one for each round of tools that came after words."""
        self._drafted = 0
        self._weighed = self._bytes = 0
        self.open_calls: dict[str, str] = {}
        self.usage = wire.Usage()

    def add(self, usage: wire.Usage) -> None:
        """Count what a round of the model took."""
        had = self.usage
        self.usage = wire.Usage(
            had.input_tokens + usage.input_tokens,
            had.output_tokens + usage.output_tokens,
            had.cached_tokens + usage.cached_tokens,
            had.reasoning_tokens + usage.reasoning_tokens,
            had.cost if usage.cost is UNSET else usage.cost if had.cost is UNSET else had.cost + usage.cost,
        )

    def take_text(self) -> str:
        """The text so far; from here on it counts anew."""
        text = "".join(self.text)
        if text:
            self.part += 1
        self.text.clear()
        self._drafted = self._weighed = self._bytes = 0
        return text

    def held_bytes(self) -> int:
        """About how much memory its text takes. What was weighed is not weighed again."""
        new = self.text[self._weighed :]
        self._weighed = len(self.text)
        self._bytes += TOKEN_BYTES * len(new) + sum(map(len, new))
        return self._bytes

    def undrafted(self) -> str:
        """The text since this was last asked, or since it was taken."""
        text = "".join(self.text[self._drafted :])
        self._drafted = len(self.text)
        return text


def object_or_text(arguments: str) -> Any:
    """A call's arguments as an object, or as the text that the model wrote if they are not one."""
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return arguments
    return value if isinstance(value, dict) and _is_flat(value, MOST_LEVELS) else arguments


def _is_flat(value: Any, levels: int) -> bool:
    """Whether nothing is nested deeper than so many levels."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_flat(each, levels - 1) for each in inner)


def to_json(value: Any) -> str:
    """The value as the text that is stored."""
    return msgspec.json.encode(value).decode()
