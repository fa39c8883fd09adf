"""The way in, for sockets: where a caller comes from, and who it is. After it, the session is asked for."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope

from chat.protocol.codec import ProtocolError, encode, parse
from chat.protocol.frames import Auth, CloseCode, ErrorCode
from chat.sessions.door import Refused
from chat.sessions.outbox import Outbox
from chat.sessions.registry import Sessions
from chat.web.identity import Identities, Identity, Unauthorized
from chat.web.identity.base import is_user_id
from chat.web.limits import Limits, address_of
from chat.web.origins import Origins
from chat.web.quota import Quota
from chat.web.standing import Standing, welcome

AUTH_SECONDS = 5.0
"""How long a client may take for its first frame, if that must say who it is."""
ANYBODY = "anonymous"


class Left(Exception):
    """The client went away before it said who it is; `code` is what it closed with."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


class Admission:
    """Lets callers in, or says why not."""

    def __init__(
        self, identities: Identities, origins: Origins, limits: Limits, quota: Quota, sessions: Sessions
    ) -> None:
        self.limits = limits
        self.quota = quota
        self._identities = identities
        self._origins = origins
        self._sessions = sessions

    def may_knock(self, scope: Scope) -> bool:
        """Whether the page that the socket is opened from may do that."""
        return self._origins.allows(scope)

    async def admit(self, scope: Scope, token: str | None, receive: Receive, outbox: Outbox) -> Standing:
        """Who it is, by the token it came with, by its first frame, or, under AUTH=none, by what it says.

        Raises:
            Refused: that cannot be told, or too many come from where it does.
            Left: it went away before.
        """
        address = address_of(scope)
        self.limits.connection(address)
        if not self._identities.are_asked_for:
            return Standing(_whoever(scope), self._identities, outbox)
        first = token is None
        if token is None:
            with self.limits.waiting(address):
                token = await _first_frame(receive)
        try:
            identity = await self._identities.of(token)
        except Unauthorized as error:
            raise refusal(error) from error
        if first:
            outbox.put(encode(welcome(identity)))
        return Standing(identity, self._identities, outbox)

    @contextmanager
    def take_place(self, scope: Scope, user_id: str, session_id: str) -> Iterator[None]:
        """The user's place in this session, while there is one.

        Raises:
            TooMuch: the user, or where they come from, has what one may have.
        """
        with self.limits.socket(user_id, session_id):
            if not self._sessions.is_live(session_id):
                self.limits.live_sessions(self._sessions.live_of(user_id))
                self.limits.opening(address_of(scope))
            yield


def refusal(error: Unauthorized) -> Refused:
    """The refusal of somebody whose token is not good, or cannot be checked now."""
    close = CloseCode.UNAUTHORIZED if error.retry_after is None else CloseCode.STORE_UNAVAILABLE
    return Refused(close, error.code, str(error), error.retry_after)


def _whoever(scope: Scope) -> Identity:
    user_id = QueryParams(scope["query_string"]).get("user_id") or ANYBODY
    if not is_user_id(user_id):
        message = "The user id must have 1 to 128 printable characters."
        raise Refused(CloseCode.BAD_REQUEST, ErrorCode.BAD_USER_ID, message)
    return Identity(user_id, "open")


async def _first_frame(receive: Receive) -> str:
    """The token in the first frame, which must be `auth`."""
    needed = "Send a token first: as a header, as a subprotocol, or in an `auth` frame."
    try:
        async with asyncio.timeout(AUTH_SECONDS):
            message = await receive()
    except TimeoutError:
        raise Refused(CloseCode.UNAUTHORIZED, ErrorCode.UNAUTHORIZED, f"{needed} None came in time.") from None
    if message["type"] == "websocket.disconnect":
        raise Left(message.get("code", 0))
    try:
        frame = parse(message.get("text") or "", 1)
    except ProtocolError:
        frame = None
    if not isinstance(frame, Auth):
        raise Refused(CloseCode.UNAUTHORIZED, ErrorCode.UNAUTHORIZED, needed)
    return frame.token
