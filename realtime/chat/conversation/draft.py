"""What a reply has said so far, kept while it is being said, and what becomes of it when its container dies. Pure."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import msgspec

from chat.conversation.history import History
from chat.protocol import frames as wire
from infra.records import Event


class Draft(msgspec.Struct, frozen=True):
    """A piece of a reply that is not recorded yet.

    A turn with tools has several texts, each recorded when the next round begins; `part` counts them from 0.
    """

    session_id: str
    turn_id: str
    part: int
    text: str
    at: datetime


def stable_id(session_id: str, name: str) -> str:
    """An event id, a UUID, that is the same whenever it is made from the same session and name."""
    return str(uuid5(NAMESPACE_URL, f"{session_id}/{name}"))


def interruption(session_id: str, turn_id: str, at: datetime, text: str = "") -> Event:
    """The last event of a turn that died with its container. Whoever makes it makes the same one: it is stored once."""
    metadata: dict[str, Any] = {"reason": "error", "usage": msgspec.to_builtins(wire.Usage()), "interrupted": True}
    return Event(
        event_id=stable_id(session_id, f"{turn_id}/interrupted"),
        session_id=session_id,
        turn_id=turn_id,
        role="assistant",
        content=text,
        timestamp=at,
        metadata=metadata,
    )


def interruptions(drafts: Iterable[Draft], stored: Sequence[Event]) -> list[Event]:
    """The ends to store for one session's turns that were left unfinished, with the words that were kept of them.

    Args:
        drafts: the session's pieces, in the order in which they were said.
        stored: its latest events.
    """
    unfinished = set(History(stored, len(stored) or 1).unfinished())
    kept: dict[str, list[Draft]] = {}
    for draft in drafts:
        recorded = sum(event.turn_id == draft.turn_id and event.role == "assistant" for event in stored)
        if draft.turn_id in unfinished and draft.part >= recorded:
            kept.setdefault(draft.turn_id, []).append(draft)
    return [
        interruption(pieces[0].session_id, turn_id, pieces[-1].at, "".join(piece.text for piece in pieces))
        for turn_id, pieces in kept.items()
    ]
