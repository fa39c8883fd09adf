"""What a socket's request says besides who it is: which session, from where on, and what it is called in the logs."""

import re
from uuid import uuid4

from starlette.datastructures import QueryParams
from starlette.types import Scope

from chat.conversation.inputs import Position
from chat.protocol.frames import CloseCode, ErrorCode
from chat.sessions.door import Refused
from infra.records import SESSION_ID

WHOLE_NUMBER = re.compile(r"[0-9]{1,18}")
REQUEST_ID = re.compile(r"[A-Za-z0-9=;:,._/+-]{1,200}")


def request_id(scope: Scope) -> str:
    """What the load balancer or the client calls this connection, or a name of our own."""
    headers = dict(scope["headers"])
    given = (headers.get(b"x-request-id") or headers.get(b"x-amzn-trace-id") or b"").decode("latin-1")
    return given if REQUEST_ID.fullmatch(given) else uuid4().hex


def position(query: QueryParams) -> Position | None:
    """Where a client that comes back has stopped reading; None for one that is new.

    Raises:
        Refused: it is half said, or not in numbers.
    """
    epoch, after = query.get("epoch"), query.get("after")
    if epoch is None and after is None:
        return None
    if not (WHOLE_NUMBER.fullmatch(epoch or "") and WHOLE_NUMBER.fullmatch(after or "")):
        message = "`epoch` and `after` must be whole numbers, both or neither."
        raise Refused(CloseCode.BAD_REQUEST, ErrorCode.BAD_FIELD, message)
    return Position(int(epoch or ""), int(after or ""))


def check_id(session_id: str) -> None:
    """Return if a session may have this id.

    Raises:
        Refused: it may not.
    """
    if not SESSION_ID.fullmatch(session_id):
        message = f"The session id must match {SESSION_ID.pattern}."
        raise Refused(CloseCode.BAD_REQUEST, ErrorCode.BAD_SESSION_ID, message)
