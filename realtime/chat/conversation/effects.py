"""What a conversation wants done. Imperatives: the session performs them, in order, none awaiting."""

from typing import Any

import msgspec

from chat.protocol.frames import ServerFrame, StreamFrame
from infra.records import Event, Mode


class Send(msgspec.Struct, frozen=True, gc=False):
    """Send the frame to every connection of the session."""

    frame: StreamFrame


class Reply(msgspec.Struct, frozen=True):
    """Send the frame to the connection `to` alone."""

    to: Any
    frame: ServerFrame


class Aside(msgspec.Struct, frozen=True):
    """Send the frame to those connections that asked for its kind. It is not part of the stream."""

    frame: ServerFrame


class Record(msgspec.Struct, frozen=True):
    """Store the event; it is what clients were told of up to the frame with seq `through`."""

    event: Event
    through: int


class RecordMode(msgspec.Struct, frozen=True):
    """Store the session's mode."""

    mode: Mode


class StartTurn(msgspec.Struct, frozen=True):
    """Run this turn. What to tell the model is `Conversation.messages()`, asked anew for every round."""

    turn_id: str


class StopTurn(msgspec.Struct, frozen=True):
    """Cancel this turn's task, and with it the model's call and the tools."""

    turn_id: str


Effect = Send | Reply | Aside | Record | RecordMode | StartTurn | StopTurn
