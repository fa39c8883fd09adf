"""What can happen to a conversation. Past tense: by the time the machine hears of it, it is a fact."""

from collections.abc import Sequence
from typing import Any

import msgspec

from chat.protocol.frames import ErrorCode, Usage
from infra.llm import FinishReason, ToolCall
from infra.records import Event


class Opened(msgspec.Struct, frozen=True):
    """The session was read from the store. What its last container left unfinished will stay so."""


class Position(msgspec.Struct, frozen=True):
    """How far a client has read a session's stream: up to the frame with seq `after`, in this epoch."""

    epoch: int
    after: int


class Attached(msgspec.Struct, frozen=True):
    """A connection joined; `to` is how the effects name it, and `position` what it has seen before, if it has."""

    to: Any
    position: Position | None = None


class UserSaid(msgspec.Struct, frozen=True):
    """A message came from the connection `to`."""

    content: str
    message_id: str | None = None
    to: Any = None


class CancelAsked(msgspec.Struct, frozen=True):
    """A user pressed stop: for this turn, or for whichever is running."""

    turn_id: str | None = None


class FrameRefused(msgspec.Struct, frozen=True):
    """What the connection `to` sent was not acceptable."""

    to: Any
    code: ErrorCode
    message: str
    message_id: str | None = None
    retry_after: float | None = None


class ModeFound(msgspec.Struct, frozen=True):
    """The model was asked for the session's mode: its words, which are empty if it failed or took too long."""

    turn_id: str
    answer: str
    usage: Usage = Usage()


class TokenCame(msgspec.Struct, frozen=True, gc=False):
    """The model said a little more."""

    turn_id: str
    text: str


class ThoughtCame(msgspec.Struct, frozen=True, gc=False):
    """The model thought a little more, before it answers."""

    turn_id: str
    text: str


class ToolsAsked(msgspec.Struct, frozen=True):
    """The model ended its round by asking for these tools."""

    turn_id: str
    calls: tuple[ToolCall, ...]
    usage: Usage


class ToolAnswered(msgspec.Struct, frozen=True):
    """A tool finished: with a result any JSON encoder takes, or with an error in words."""

    turn_id: str
    call_id: str
    result: Any = None
    error: str | None = None


class End(msgspec.Struct, frozen=True):
    """What else is known of how a reply ended: see `infra.llm.Finished`."""

    why: str = ""
    opaque: dict[str, Any] | None = None
    model: str = ""


class ReplyFinished(msgspec.Struct, frozen=True):
    """The model ended its round with an answer."""

    turn_id: str
    reason: FinishReason
    usage: Usage
    end: End = End()


class TurnFailed(msgspec.Struct, frozen=True):
    """The turn cannot go on."""

    turn_id: str
    code: str
    message: str


class EventsSaved(msgspec.Struct, frozen=True):
    """The store has every event recorded up to the frame with seq `through`."""

    through: int


class Unloaded(msgspec.Struct, frozen=True):
    """Memory is short: what is stored is let go of. Only of a session in which nothing runs, waits or is unsaved."""


class Reloaded(msgspec.Struct, frozen=True):
    """The latest events were read again from the store, and something can be said again."""

    events: Sequence[Event]


class RestartAnnounced(msgspec.Struct, frozen=True):
    """The container is stopping: clients should come back after this many milliseconds, to whichever replaces it."""

    reconnect_in_ms: int


class EndAsked(msgspec.Struct, frozen=True):
    """The session is over: nobody is there any more, or the server is stopping."""


Input = (
    Opened
    | Attached
    | UserSaid
    | CancelAsked
    | FrameRefused
    | ModeFound
    | TokenCame
    | ThoughtCame
    | ToolsAsked
    | ToolAnswered
    | ReplyFinished
    | TurnFailed
    | EventsSaved
    | Unloaded
    | Reloaded
    | RestartAnnounced
    | EndAsked
)
