"""One socket's caller: who it is, how long that is good for, and how it is made to last longer."""

import asyncio
import time

from chat.protocol.codec import encode
from chat.protocol.frames import Authenticated, AuthExpiring, CloseCode, Error, ErrorCode
from chat.sessions.outbox import Outbox
from chat.web.identity import Identities, Identity, Unauthorized

WARN_SECONDS = 60.0
"""How long before the end the client is asked for a new token."""
GRACE_SECONDS = 25.0
"""How long after the end it may still bring one: a sleeping tab needs a moment."""
LEAST_RENEWAL_SECONDS = 1.0
"""How often a token is looked at on one socket: each costs more than a message."""


class Standing:
    """The identity behind a socket, while it lasts. Leave it with `over`."""

    def __init__(self, identity: Identity, identities: Identities, outbox: Outbox) -> None:
        self.identity = identity
        self._identities = identities
        self._outbox = outbox
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._renewed = float("-inf")
        self._watch()

    def renew(self, token: str) -> None:
        """Look at a token that came on the socket: it is answered by a frame, or by the close."""
        now = self._loop.time()
        if self._renewing or now - self._renewed < LEAST_RENEWAL_SECONDS:
            wait = Error(0, ErrorCode.RATE_LIMITED, "One token a second is enough.", retry_after=LEAST_RENEWAL_SECONDS)
            self._outbox.put(encode(wait))
            return
        self._renewed = now
        self._renewing = asyncio.create_task(self._renew(token))

    def over(self) -> None:
        """The socket is gone."""
        if self._timer:
            self._timer.cancel()
        if self._renewing:
            self._renewing.cancel()

    async def _renew(self, token: str) -> None:
        try:
            identity = self.identity
            if self._identities.are_asked_for:
                identity = await self._identities.of(token)
        except Unauthorized as error:
            self._outbox.put(encode(Error(0, error.code, str(error), retry_after=error.retry_after)))
            return
        finally:
            self._renewing = None
        if identity.user_id != self.identity.user_id:
            self._outbox.put(encode(Error(0, ErrorCode.NOT_YOUR_SESSION, "The new token is another user's.")))
            self._outbox.close(CloseCode.NOT_YOURS)
            return
        self.identity = identity
        self._outbox.put(encode(welcome(identity)))
        self._watch()

    def _watch(self) -> None:
        """Set the clock for the next thing to say about the token's end."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self.identity.expires_at is not None:
            left = self.identity.expires_at - time.time()
            self._timer = self._loop.call_later(max(0.0, left - WARN_SECONDS), self._warn)

    def _warn(self) -> None:
        assert self.identity.expires_at is not None
        left = self.identity.expires_at - time.time()
        self._outbox.put(encode(AuthExpiring(max(0, round(left)))))
        self._timer = self._loop.call_later(max(0.0, left) + GRACE_SECONDS, self._expire)

    def _expire(self) -> None:
        self._outbox.put(encode(Error(0, ErrorCode.UNAUTHORIZED, "The token has expired.")))
        self._outbox.close(CloseCode.UNAUTHORIZED)


def welcome(identity: Identity) -> Authenticated:
    """The frame that tells a client who it is taken for."""
    left = None if identity.expires_at is None else max(0, round(identity.expires_at - time.time()))
    return Authenticated(identity.user_id, left)
