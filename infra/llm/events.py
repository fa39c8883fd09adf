"""What the replies of the typed APIs share: an event as a struct, and texts that arrive together as one."""

import json
from typing import TypeVar

import msgspec

from infra.llm.base import Chunk, TextDelta, well_formed

T = TypeVar("T")


def read(decoder: msgspec.json.Decoder[T], data: bytes) -> T | None:
    """The event, with U+FFFD in place of what is no Unicode; None if it is nothing that can be read."""
    try:
        return decoder.decode(data)
    except (ValueError, RecursionError):  # msgspec's own are ValueErrors, and bytes in a text are UnicodeDecodeErrors
        pass
    try:
        mended = json.dumps(json.loads(data.decode("utf-8", "replace")), ensure_ascii=False)
        return decoder.decode(well_formed(mended))
    except (ValueError, RecursionError):
        return None


def tell(text: str, chunks: list[Chunk]) -> None:
    """Add a text to what is to be told: to the text before it, if it follows one."""
    last = chunks[-1] if chunks else None
    if type(last) is TextDelta:
        chunks[-1] = TextDelta(last.text + text, last.pieces + 1)
    elif text:
        chunks.append(TextDelta(text))
