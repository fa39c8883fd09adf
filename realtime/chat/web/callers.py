"""Who calls by HTTP, and what they may see. A route asks here, and reads no token itself."""

from typing import Annotated

from fastapi import Depends, HTTPException, Request

from chat.web.admission import ANYBODY
from chat.web.identity import Identities, Identity, Unauthorized
from chat.web.identity.base import is_user_id
from chat.web.limits import Limits, TooMuch, address_of
from chat.web.tokens import bearer
from infra.records import Session

NO_SESSION = "There is no such session."
"""The answer for one that is not there, and for somebody else's."""


class Callers:
    """Tells who a request is from."""

    def __init__(self, identities: Identities, limits: Limits) -> None:
        self._identities = identities
        self._limits = limits

    async def caller(self, request: Request) -> Identity:
        """Who it is; under AUTH=none whoever the query's `user_id` says.

        Raises:
            HTTPException: 401 without a good token, 503 where it cannot be checked now, 429 for too many requests.
        """
        self.counted(request)
        token = bearer(request.scope)
        if not self._identities.are_asked_for and token is None:
            user_id = request.query_params.get("user_id") or ANYBODY
            if not is_user_id(user_id):
                raise HTTPException(400, "The user id must have 1 to 128 printable characters.")
            return Identity(user_id, "open")
        try:
            return await self._identities.of(token or "")
        except Unauthorized as error:
            if error.retry_after is not None:
                raise HTTPException(503, str(error), headers={"Retry-After": f"{error.retry_after:.0f}"}) from error
            raise HTTPException(401, str(error), headers={"WWW-Authenticate": "Bearer"}) from error

    async def operator(self, request: Request) -> None:
        """Return if the operator asks, or anybody where AUTH is none.

        Raises:
            HTTPException: 403 for a user; and as `caller`.
        """
        if self._identities.are_asked_for and (await self.caller(request)).kind != "service":
            raise HTTPException(403, "This is for the operator: show ADMIN_TOKEN.")

    def counted(self, request: Request) -> None:
        """Return if where it comes from may ask again.

        Raises:
            HTTPException: 429.
        """
        try:
            self._limits.request(address_of(request.scope))
        except TooMuch as too_much:
            raise too_many(too_much) from too_much


def too_many(too_much: TooMuch) -> HTTPException:
    """The answer to somebody who asks too often."""
    seconds = max(1, round(too_much.retry_after or 1))
    return HTTPException(429, str(too_much), headers={"Retry-After": str(seconds)})


def may_see(identity: Identity, row: Session) -> bool:
    """Whether a session is the caller's, or the caller is one who may see all."""
    return identity.kind in ("service", "open") or row.user_id == identity.user_id


def the_caller(callers: Callers) -> object:
    """The type of a route's parameter that is its caller."""
    return Annotated[Identity, Depends(callers.caller)]
