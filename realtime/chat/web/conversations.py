"""The routes over a caller's own conversations: list, read, name, remove. Somebody else's are not there."""

import asyncio
from collections.abc import Awaitable
from typing import Annotated, Any, TypeVar
from uuid import UUID

import msgspec
from fastapi import APIRouter, Depends, HTTPException, Query, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel, StringConstraints

from chat.sessions.registry import Sessions
from chat.web.answers import COMMON, UNKNOWN, EventAnswers, SessionAnswer, SessionsAnswer
from chat.web.callers import NO_SESSION, Callers, may_see
from chat.web.identity import Identity
from chat.web.pages import page_after, page_before
from infra.records import SESSION_ID, Session
from infra.store import Store, StoreError
from infra.telemetry import get_logger

MOST_EVENTS = 1000
MOST_SESSIONS = 100
PAGES_AT_ONCE = 4
"""How many pages are read from the store side by side: whoever reads back must not hold up who wants to talk."""

PRINTABLE = r"^[^\x00-\x1f\x7f]+$"

SessionId = Annotated[str, PathParameter(pattern=f"^{SESSION_ID.pattern}$")]

T = TypeVar("T")

log = get_logger("api")


class Changes(BaseModel):
    """What may be changed of a session."""

    title: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=PRINTABLE)]


def create_conversations(store: Store, sessions: Sessions, callers: Callers) -> APIRouter:
    """The routes."""
    router = APIRouter()
    reading = asyncio.Semaphore(PAGES_AT_ONCE)
    Caller = Annotated[Identity, Depends(callers.caller)]  # noqa: N806 - a type

    @router.get("/sessions", responses=COMMON | {200: {"model": SessionsAnswer}})
    async def mine(
        caller: Caller,
        before: Annotated[str | None, Query(pattern=f"^{SESSION_ID.pattern}$")] = None,
        limit: Annotated[int, Query(ge=1, le=MOST_SESSIONS)] = 30,
    ) -> Response:
        """The caller's sessions, newest first; ask again with the last `session_id` as `before` for the next page."""
        async with reading:
            listed = await _of(store.list_sessions(caller.user_id, before=before, limit=limit))
        return _json([msgspec.structs.asdict(each) | {"live": sessions.is_live(each.session_id)} for each in listed])

    @router.get("/sessions/{session_id}", responses=UNKNOWN | {200: {"model": SessionAnswer}})
    async def session(session_id: SessionId, caller: Caller) -> Response:
        """The session's row; `end_time`, `duration` and `final_summary` are null until it is summarised.

        `live` says whether somebody is in it, or may come back to it, in this container; `summarised`, whether this
        container announces the ends of its sessions, so that a summary can be expected.
        """
        row = msgspec.structs.asdict(await _existing(session_id, caller))
        return _json(row | {"live": sessions.is_live(session_id), "summarised": sessions.has_summaries()})

    @router.get("/sessions/{session_id}/events", responses=UNKNOWN | {200: {"model": EventAnswers}})
    async def events(
        session_id: SessionId,
        caller: Caller,
        after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
        limit: Annotated[int, Query(ge=1, le=MOST_EVENTS)] = 200,
        before: UUID | None = None,
    ) -> Response:
        """The stored events after the given `id`, oldest first; ask again with the last `id` for the next page.

        With `before`, an `event_id`, those just before that event, oldest first; ask again with the first `event_id`.
        A page ends early where it would be larger than 1 MiB; an empty one is the last.
        """
        await _existing(session_id, caller)
        async with reading:
            if before:
                return await _of(page_before(store, session_id, str(before), limit))
            return await _of(page_after(store, session_id, after, limit))

    @router.patch("/sessions/{session_id}", status_code=204, responses=UNKNOWN)
    async def change(session_id: SessionId, changes: Changes, caller: Caller) -> None:
        """Name the session."""
        row = await _existing(session_id, caller)
        if not await _of(store.set_title(session_id, row.user_id, changes.title)):
            raise HTTPException(404, NO_SESSION)

    @router.delete("/sessions/{session_id}", status_code=204, responses=UNKNOWN)
    async def remove(session_id: SessionId, caller: Caller) -> None:
        """End the session if it is live, and remove all that is stored of it. There is no way back, and no summary."""
        row = await _existing(session_id, caller)
        await sessions.remove(session_id)
        if not await _of(store.delete_session(session_id, row.user_id)):
            raise HTTPException(404, NO_SESSION)
        log.info("session removed", session_id=session_id)

    async def _existing(session_id: str, caller: Identity) -> Session:
        row = await _of(store.session(session_id))
        if row is None or not may_see(caller, row):
            raise HTTPException(404, NO_SESSION)
        return row

    return router


async def _of(asked: Awaitable[T]) -> T:
    """What the store answers, or 503."""
    try:
        return await asked
    except StoreError as error:
        log.warning("store unavailable", cause=str(error))
        unavailable = "The store cannot be reached at the moment."
        raise HTTPException(503, unavailable, headers={"Retry-After": "2"}) from error


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
