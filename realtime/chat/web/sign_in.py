"""The routes by which a page learns how to sign in, and a guest gets a token."""

from datetime import UTC, datetime
from typing import Literal

from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel

from chat.web.answers import Problem
from chat.web.callers import Callers, too_many
from chat.web.identity import Identities
from chat.web.limits import Limits, TooMuch, address_of
from chat.web.tokens import bearer
from infra.settings import Settings


class SignIn(BaseModel):
    """How callers say who they are here. The key is the one that is meant for pages."""

    auth: Literal["supabase", "jwt", "guest", "none"]
    supabase_url: str | None = None
    supabase_publishable_key: str | None = None
    providers: list[str] = []


class GuestToken(BaseModel):
    """A guest's token: good until then, and exchanged for a new one by the same call."""

    token: str
    user_id: str
    expires_at: datetime


def create_sign_in(identities: Identities, callers: Callers, limits: Limits, settings: Settings) -> APIRouter:
    """The routes. They are open to all."""
    router = APIRouter()

    @router.get("/auth", response_model_exclude_unset=True, responses={429: {"model": Problem}})
    async def how(request: Request) -> SignIn:
        """How to sign in."""
        callers.counted(request)
        if settings.auth_kind != "supabase":
            return SignIn(auth=settings.auth_kind)
        return SignIn(
            auth="supabase",
            supabase_url=settings.supabase_url,
            supabase_publishable_key=settings.supabase_publishable_key,
            providers=settings.providers,
        )

    @router.post("/auth/guest", responses={404: {"model": Problem}, 429: {"model": Problem}})
    async def guest(request: Request) -> GuestToken:
        """A token for a new guest; or, with a guest's token in `Authorization`, a new one for the same guest.

        A token that has expired is exchanged, too, for a month.
        """
        callers.counted(request)
        signed_in = identities.sign_in_guest(bearer(request.scope))
        if signed_in is None:
            raise HTTPException(404, "There are no guests here; see GET /auth.")
        token, identity, is_new = signed_in
        if is_new:
            try:
                limits.guest(address_of(request.scope))
            except TooMuch as too_much:
                raise too_many(too_much) from too_much
        assert identity.expires_at is not None
        expires_at = datetime.fromtimestamp(identity.expires_at, UTC)
        return GuestToken(token=token, user_id=identity.user_id, expires_at=expires_at)

    return router
