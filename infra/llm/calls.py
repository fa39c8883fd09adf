"""Tool calls, put together from the pieces in which services send them, each in its own way."""

import json
import re
from collections.abc import Collection
from typing import Any

import msgspec

from infra.llm.base import ToolCall, well_formed

FENCE = re.compile(r"\A\s*```(?:json)?\s*|\s*```\s*\Z")


class Piece(msgspec.Struct, frozen=True):
    """A piece of a call. Any part may be missing; `opaque` is what the service wants back as it is."""

    index: int | None = None
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    opaque: dict[str, Any] | None = None


class Calls:
    """The calls of one reply, from their pieces."""

    def __init__(self, offered: Collection[str]) -> None:
        """`offered` are the names of the tools: a name that is none of them may be the beginning of one."""
        self._offered = offered
        self._calls: list[_Call] = []
        self._at_index: dict[int | None, _Call] = {}

    def add(self, piece: Piece) -> None:
        """Put a piece where it belongs: to the call at its index, or to a new one.

        Some services leave `index` out or always say 0, and change the id or the name instead; some send the id or
        the name with every piece, or a new id each time.
        """
        call = self._at_index.get(piece.index)
        if call is None and piece.index is None and self._calls and not piece.name:
            call = self._calls[-1]
        if call is None or call.is_over(piece, self._offered):
            call = self._at_index[piece.index] = _Call()
            self._calls.append(call)
        call.add(piece, self._offered)

    def whole(self) -> list[ToolCall]:
        """The calls, each with the arguments that make sense."""
        return [one for call in self._calls for one in call.whole()]

    def are_complete(self) -> bool:
        """Whether there is a call, and the arguments of each are a JSON object: nothing of them is missing."""
        calls = self.whole()
        return bool(calls) and all(_object(call.arguments) is not None for call in calls)


class _Call:
    def __init__(self) -> None:
        self.call_id = ""
        self.name = ""
        self.arguments: list[str] = []
        self.opaque: dict[str, Any] = {}

    def is_over(self, piece: Piece, offered: Collection[str]) -> bool:
        """Whether the piece begins another call. An id alone does not: there are services that make one per piece."""
        if not piece.name or not self.name:
            return False
        if piece.call_id and self.call_id and piece.call_id != self.call_id:
            return True
        if piece.call_id:
            return False
        if piece.name != self.name:
            return piece.name in offered or self.name in offered
        return bool(_object("".join(self.arguments)))  # one that has its arguments, and is named again

    def add(self, piece: Piece, offered: Collection[str]) -> None:
        self.call_id = self.call_id or piece.call_id
        if piece.name and piece.name != self.name:
            in_pieces = self.name and self.name not in offered and piece.name not in offered
            self.name = self.name + piece.name if in_pieces else piece.name
        if piece.arguments:
            self.arguments.append(piece.arguments)
        if piece.opaque:
            self.opaque |= piece.opaque

    def whole(self) -> list[ToolCall]:
        texts = sensible(self.arguments)
        ids = [self.call_id, *[""] * (len(texts) - 1)]  # the turn names those that have none
        return [
            ToolCall(call_id, self.name, text, {"call": self.opaque} if self.opaque else None)
            for call_id, text in zip(ids, texts, strict=True)
        ]


def sensible(pieces: list[str]) -> list[str]:
    """The arguments that these pieces mean: of one call, as nearly always, or of several that were glued together.

    A service may send an empty object first, or the whole once more behind its pieces, or an object as a string.
    """
    joined = well_formed("".join(pieces))
    text = FENCE.sub("", joined).strip()
    if not text or text == "null":
        return ["{}"]
    if _object(text) is not None:
        return [text]
    objects = _objects(text)
    if objects is None:
        return [joined]
    told = [each for each in objects if each] or [{}]
    merged: list[dict[str, Any]] = []
    for each in told:
        if merged and all(merged[-1].get(name, value) == value for name, value in each.items()):
            merged[-1] = merged[-1] | each
        else:
            merged.append(each)
    return [json.dumps(each, ensure_ascii=False, separators=(",", ":")) for each in merged]


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _objects(text: str) -> list[dict[str, Any]] | None:
    """The JSON objects that follow each other in the text, or stand as a string in it; None if it is anything else."""
    decoder, objects, at = json.JSONDecoder(), [], 0
    try:
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            if isinstance(value, str):
                value = json.loads(value)
            if not isinstance(value, dict):
                return None
            objects.append(value)
            while at < len(text) and text[at] in " \t\r\n,":
                at += 1
    except (ValueError, RecursionError):
        return None
    return objects
