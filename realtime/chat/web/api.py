"""The HTTP side: health, reading sessions back, and the page."""

import asyncio
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import msgspec
from fastapi import APIRouter, HTTPException, Query, Response
from fastapi import Path as PathParameter
from fastapi.responses import PlainTextResponse

from chat.durability.journal import Journal
from chat.metrics import CONTENT_TYPE
from chat.sessions.registry import Sessions
from chat.web.answers import UNKNOWN, EventAnswers, Health, Liveness, SessionAnswer
from chat.web.pages import page_after, page_before
from infra.port import SERVICE
from infra.records import SESSION_ID
from infra.store import Store, StoreError
from infra.telemetry import get_logger

VERSION = "1.0.0"
FRONTEND = Path(__file__).resolve().parents[3] / "frontend"
FEATURES = {
    "websocket_streaming": True,
    "llm_interaction": True,
    "tool_calling": True,
    "database_persistence": True,
    "post_session_processing": True,
}
MOST_EVENTS = 1000
MOST_LAG_SECONDS = 15.0
"""How old an event may be that waits for the store before the container calls itself unhealthy."""
PAGES_AT_ONCE = 4
"""How many pages are read from the store side by side: whoever reads back must not hold up who wants to talk."""
PING_SECONDS = 2.0
"""How long the store may take to answer before the container calls itself unhealthy."""

SessionId = Annotated[str, PathParameter(pattern=f"^{SESSION_ID.pattern}$")]

log = get_logger("api")


def create_router(store: Store, sessions: Sessions, journal: Journal) -> APIRouter:
    """The routes over one store, what waits to be written to it, and this container's live sessions."""
    router = APIRouter()

    @router.get("/health", responses={200: {"model": Health}, 503: {"model": Health}}, response_model=None)
    async def health(response: Response) -> dict[str, Any]:
        """Whether this container can serve: 200, or 503 with the part that fails."""
        healthy = {"status": "healthy", "service": SERVICE, "version": VERSION, "features": FEATURES}
        if sessions.is_draining():
            response.status_code = 503
            return healthy | {"status": "unhealthy", "failing": ["draining"]}
        try:
            async with asyncio.timeout(PING_SECONDS):
                await store.ping()
        except (StoreError, TimeoutError) as error:
            log.warning("unhealthy", part="store", cause=str(error) or "no answer")
            response.status_code = 503
            return healthy | {"status": "unhealthy", "failing": ["store"]}
        if (lag := journal.lag()) > MOST_LAG_SECONDS:  # a full disk is read as before, and takes no write
            log.warning("unhealthy", part="journal", lag=round(lag, 1))
            response.status_code = 503
            return healthy | {"status": "unhealthy", "failing": ["journal"]}
        return healthy

    @router.get("/live", responses={200: {"model": Liveness}, 503: {"model": Liveness}}, response_model=None)
    async def live(response: Response) -> dict[str, Any]:
        """Whether this container should be sent clients: 200, or 503 while it drains. For what starts containers anew.

        The store is not asked: one that is down would be no reason to lose what waits for it on this container's disk.
        """
        response.status_code = 503 if sessions.is_draining() else 200
        return {"status": "draining" if sessions.is_draining() else "live"}

    @router.get("/metrics", response_class=PlainTextResponse)
    async def numbers() -> Response:
        """The container's metrics, for Prometheus."""
        return Response(sessions.metrics.exposition(), media_type=CONTENT_TYPE)

    _add_sessions(router, store, sessions)
    return router


def _add_sessions(router: APIRouter, store: Store, sessions: Sessions) -> None:
    """The routes that read conversations back."""
    reading = asyncio.Semaphore(PAGES_AT_ONCE)

    @router.get("/sessions/{session_id}", responses=UNKNOWN | {200: {"model": SessionAnswer}})
    async def session(session_id: SessionId) -> Response:
        """The session's row; `end_time`, `duration` and `final_summary` are null until it is summarised.

        `live` says whether somebody is in it, or may come back to it, in this container; `summarised`, whether this
        container announces the ends of its sessions, so that a summary can be expected.
        """
        row = msgspec.structs.asdict(await _existing(session_id))
        return _json(row | {"live": sessions.is_live(session_id), "summarised": sessions.has_summaries()})

    @router.get("/sessions/{session_id}/events", responses=UNKNOWN | {200: {"model": EventAnswers}})
    async def events(
        session_id: SessionId,
        after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
        limit: Annotated[int, Query(ge=1, le=MOST_EVENTS)] = 200,
        before: UUID | None = None,
    ) -> Response:
        """The stored events after the given `id`, oldest first; ask again with the last `id` for the next page.

        With `before`, an `event_id`, those just before that event, oldest first; ask again with the first `event_id`.
        A page ends early where it would be larger than 1 MiB; an empty one is the last.
        """
        await _existing(session_id)
        try:
            async with reading:
                if before:
                    return await page_before(store, session_id, str(before), limit)
                return await page_after(store, session_id, after, limit)
        except StoreError as error:
            raise _unavailable(error) from error

    async def _existing(session_id: str) -> msgspec.Struct:
        try:
            row = await store.session(session_id)
        except StoreError as error:
            raise _unavailable(error) from error
        if row is None:
            raise HTTPException(404, "There is no such session.")
        return row


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _unavailable(error: StoreError) -> HTTPException:
    log.warning("store unavailable", cause=str(error))
    return HTTPException(503, "The store cannot be reached at the moment.", headers={"Retry-After": "2"})
