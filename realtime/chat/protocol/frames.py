"""Wire protocol, version 1: the frames, and every error and close code. `codec.py` reads and writes them.

Frames are JSON objects in text frames, `type` first. They are `msgspec` structs because a frame is made for
every token: encoding one costs a third of a microsecond, and a client's frame is checked while it is parsed. What is
made per token is `gc=False`: it cannot be part of a cycle, and the collector need not look at it.
"""

from enum import Enum
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from infra.records import Event, Mode

VERSION = 1

DoneReason = Literal["complete", "cancelled", "error", "length", "cut"]


class Usage(msgspec.Struct, frozen=True):
    """What a turn took, in tokens as the model's provider counts them: the last two are part of the first two.

    `cost` is there where the operator's prices name the model, in the currency of the prices.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float | UnsetType = UNSET


# Server to client. Every frame of the stream carries `seq`, which rises within an epoch.


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The connection is attached.

    `seq` is where its stream goes on from, `history` what came before, and `active_turn_id` the turn that is being
    answered now, if any: its frames follow. With `resumed`, `seq` is the position that the client named, `history` is
    empty, and the frames that it missed follow.

    `unsaved` has a number for each of the last events of `history` that are not in the store yet. An event is stored
    once `saved` has come with a `through` of at least its number. With `more`, the conversation began
    before `history` does; the earlier events are read over HTTP.
    """

    seq: int
    session_id: str
    epoch: int
    resumed: bool
    mode: Mode | None
    history: list[Event]
    active_turn_id: str | None = None
    protocol: int = VERSION
    unsaved: list[int] = []
    more: bool = False


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
    """The message is taken and will be answered by this turn. `content` is for the session's other connections."""

    seq: int
    message_id: str
    turn_id: str
    content: str


class ModeChosen(msgspec.Struct, frozen=True, tag="mode"):
    """How the assistant will answer in this session: one of the modes that its prompts define."""

    seq: int
    mode: Mode


class Token(msgspec.Struct, frozen=True, tag="token", gc=False):
    """The next piece of the answer. Adjacent tokens may arrive joined; `seq` is then the last one's."""

    seq: int
    turn_id: str
    content: str


class ToolCalled(msgspec.Struct, frozen=True, tag="tool_call"):
    """The assistant uses a tool. `arguments` is an object, or the text the model wrote where it is not JSON."""

    seq: int
    turn_id: str
    call_id: str
    name: str
    arguments: Any


class ToolResult(msgspec.Struct, frozen=True, tag="tool_result", omit_defaults=True):
    """What the tool gave: `result`, or `error` in words."""

    seq: int
    turn_id: str
    call_id: str
    name: str
    result: Any = None
    error: str | None = None


class Reasoning(msgspec.Struct, frozen=True, tag="reasoning"):
    """A piece of what the model thinks before it answers, for clients that asked for it.

    It is told as it comes, outside the stream, and kept nowhere.
    """

    turn_id: str
    content: str


class Done(msgspec.Struct, frozen=True, tag="done", omit_defaults=True):
    """The turn is over; no more of its frames will come.

    With reason `cut` the reply is not whole: `why` is the word of the model's provider for it. `model` is the name of
    the one that answered.
    """

    seq: int
    turn_id: str
    reason: DoneReason
    usage: Usage
    why: str | None = None
    model: str | None = None


class Saved(msgspec.Struct, frozen=True, tag="saved"):
    """Every event told of up to the frame with seq `through` is in the store."""

    seq: int
    through: int


class Error(msgspec.Struct, frozen=True, tag="error", omit_defaults=True):
    """Something could not be done; `code` is one of `ErrorCode`, `retry_after` seconds."""

    seq: int
    code: str
    message: str
    turn_id: str | None = None
    message_id: str | None = None
    retry_after: float | None = None


class Goodbye(msgspec.Struct, frozen=True, tag="goodbye"):
    """The server is about to close; come back after this many milliseconds."""

    seq: int
    reason: str
    reconnect_in_ms: int


class Authenticated(msgspec.Struct, frozen=True, tag="authenticated", omit_defaults=True):
    """An `auth` frame was taken: the client is this user, for so many seconds or for good."""

    user_id: str
    expires_in: int | None = None


class AuthExpiring(msgspec.Struct, frozen=True, tag="auth_expiring"):
    """The client's token ends in so many seconds: it should send a new one in an `auth` frame, and is closed if not."""

    in_seconds: int


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """The answer to `ping`."""


StreamFrame = Accepted | ModeChosen | Token | ToolCalled | ToolResult | Done | Saved | Error | Goodbye
"""A frame of the session's stream: every connection gets it, and may ask for it again by its `seq`."""

ServerFrame = Ready | StreamFrame | Reasoning | Authenticated | AuthExpiring | Pong


# Client to server. Unknown fields are passed over, so that an older server serves a newer client.


class Message(msgspec.Struct, frozen=True, tag="message"):
    """The user said something. `message_id` makes sending it again harmless."""

    content: str
    message_id: str | None = None


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Stop this turn, or whichever is running."""

    turn_id: str | None = None


class Auth(msgspec.Struct, frozen=True, tag="auth"):
    """Who the client is: as its first frame, or at any time with a newer token."""

    token: str


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """A question whether the server is there."""


ClientFrame = Message | Cancel | Auth | Ping


class ErrorCode(str, Enum):
    """The `code` of an `error` frame; PROTOCOL.md says what each means."""

    BAD_JSON = "bad_json"
    UNKNOWN_TYPE = "unknown_type"
    BAD_FIELD = "bad_field"
    EMPTY_MESSAGE = "empty_message"
    MESSAGE_TOO_LONG = "message_too_long"
    MESSAGE_ID_USED = "message_id_used"
    BAD_SESSION_ID = "bad_session_id"
    BAD_USER_ID = "bad_user_id"
    UNAUTHORIZED = "unauthorized"
    AUTH_UNAVAILABLE = "auth_unavailable"
    RATE_LIMITED = "rate_limited"
    QUOTA_EXCEEDED = "quota_exceeded"
    NOT_YOUR_SESSION = "not_your_session"
    AT_CAPACITY = "at_capacity"
    RESTARTING = "restarting"
    BUSY = "busy"
    STORE_UNAVAILABLE = "store_unavailable"
    MODEL_UNAVAILABLE = "model_unavailable"
    MODEL_RATE_LIMITED = "model_rate_limited"
    MODEL_REFUSED = "model_refused"
    MODEL_KEY = "model_key"
    MODEL_UNKNOWN = "model_unknown"
    MODEL_BAD_REQUEST = "model_bad_request"
    MODEL_QUOTA = "model_quota"
    MODEL_TIMEOUT = "model_timeout"
    INTERNAL = "internal"


class CloseCode(Enum):
    """Every code this server closes a socket with, whether to reconnect, and why.

    1000 to 1013 are RFC 6455's and IANA's; 4000 and up are ours, the range the RFC leaves to applications. 1007, 1009,
    1011 and 1012 are sent by uvicorn itself, which states no reason.
    """

    NORMAL = (1000, False, "closed by the client")
    BINARY_FRAME = (1003, False, "this server takes text frames only")
    BAD_UTF8 = (1007, False, "a text frame must be UTF-8")
    FRAME_TOO_BIG = (1009, False, "the frame is over MAX_FRAME_BYTES")
    KEEPALIVE = (1011, True, "no pong came back in time")
    RESTARTING = (1012, True, "the server is restarting")
    AT_CAPACITY = (1013, True, "the server is full, try again later")
    BAD_REQUEST = (4400, False, "the session or user id is not acceptable")
    UNAUTHORIZED = (4401, True, "a good token is needed; reconnect with a new one")
    NOT_YOURS = (4403, False, "the session belongs to another user")
    GONE = (4404, False, "the conversation was removed")
    SLOW_READER = (4408, True, "the client did not read fast enough")
    TOO_FAST = (4429, True, "more than one visitor may have or send; come back later")
    INTERNAL = (4500, True, "something went wrong on our side")
    STORE_UNAVAILABLE = (4503, True, "the session cannot be opened now")

    def __init__(self, code: int, reconnect: bool, reason: str) -> None:
        self.code = code
        self.reconnect = reconnect
        self.reason = reason
