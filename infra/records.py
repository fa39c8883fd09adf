"""The rows we store, and the one message that the two halves exchange.

These are `msgspec` structs: immutable, compared by value, and encoded to JSON by the same library that
encodes the wire frames, so a stored event looks the same in a frame, in an HTTP answer and on the queue.
"""

import re
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from msgspec import structs

Role = Literal["user", "assistant", "tool"]
Mode = str
"""The name of a mode. The container's prompts define it, or did when the row was stored."""
EndReason = Literal["closed", "dropped", "shutdown", "crashed"]

SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""What a session id may look like. Use it with `fullmatch`."""


def utc_now() -> datetime:
    """The present moment, timezone-aware, in UTC."""
    return datetime.now(UTC)


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """The row of one conversation.

    `epoch` counts how often the session was opened, from 1. `end_time`, `duration` (whole seconds from
    the first opening to the last end) and `final_summary` are None while the session is open. The tokens
    and the cost are those of all turns up to the last end; the cost is None where no price was known.
    """

    session_id: str
    user_id: str
    epoch: int
    start_time: datetime
    mode: Mode | None = None
    end_time: datetime | None = None
    duration: int | None = None
    final_summary: str | None = None
    container_id: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: float | None = None
    title: str | None = None


class SessionListed(msgspec.Struct, frozen=True, kw_only=True):
    """A session as its user's list has it: without its epoch and container, with the number of their messages."""

    session_id: str
    start_time: datetime
    end_time: datetime | None
    duration: int | None
    mode: Mode | None
    title: str | None
    final_summary: str | None
    messages: int


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing said or done in a session.

    `event_id` is made by the writer, so that writing an event twice stores it once. `id` is the store's
    own rising number, 0 until the event is stored. What `metadata` holds depends on the role:

    * user: `message_id`, the client's idempotency key
    * assistant: on a turn's last event `reason` and perhaps `why` (as in the `done` frame) and `usage`;
      `interrupted: true` if the turn was stopped or cut, and the text is what had been said by then
    * tool: `kind` ("call" or "result"), `call_id`, `name`, and `arguments` on a call or `ok` on a result
    * `opaque` on answers and calls: what the model's provider wants back as it is, and no client is shown
    """

    event_id: str
    session_id: str
    turn_id: str
    role: Role
    content: str
    timestamp: datetime
    metadata: dict[str, Any] = {}
    id: int = 0

    def shown(self) -> "Event":
        """The event as clients may see it."""
        if "opaque" not in self.metadata:
            return self
        return structs.replace(self, metadata={name: it for name, it in self.metadata.items() if name != "opaque"})


class UserStats(msgspec.Struct, frozen=True, kw_only=True):
    """What the store knows about one user's latest 1,000 sessions: how many, messages, minutes, and when last seen."""

    sessions: int
    messages: int
    minutes: float
    last_seen: datetime | None


class Orphan(msgspec.Struct, frozen=True, kw_only=True):
    """An open session that possibly no container is looking after.

    `last_time` is its last event's time, or its start if it has none.
    """

    session_id: str
    epoch: int
    last_time: datetime


class SessionEnded(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The message that wakes the summary function: which session ended, at which epoch, when and why."""

    session_id: str
    epoch: int
    ended_at: datetime
    reason: EndReason
    version: Literal[1] = 1
    traceparent: str | None = None
    """The session's trace, which goes on in the function; None where nothing is traced."""

    def to_json(self) -> str:
        """The message as it travels on the queue."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> "SessionEnded":
        """Read a message off the queue.

        Raises:
            ValueError: it is not JSON, its version is unknown, or a field is missing or wrong; the text says which.
        """
        try:
            ended = msgspec.json.decode(text, type=cls)
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8: {error}") from error
        if not SESSION_ID.fullmatch(ended.session_id):
            raise ValueError(f"session_id must match {SESSION_ID.pattern}")
        if ended.ended_at.tzinfo is None:
            raise ValueError("ended_at must carry a UTC offset")
        return ended
