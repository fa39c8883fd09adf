"""The routes for whoever runs the server: health, and the metrics."""

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Response

from chat.durability.journal import Journal
from chat.metrics import CONTENT_TYPE
from chat.sessions.registry import Sessions
from chat.web.answers import OPERATORS, Health, Liveness
from chat.web.callers import Callers
from infra.port import SERVICE
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
MOST_LAG_SECONDS = 15.0
"""How old an event may be that waits for the store before the container calls itself unhealthy."""
PING_SECONDS = 2.0
"""How long the store may take to answer before the container calls itself unhealthy."""

log = get_logger("api")


def create_router(store: Store, sessions: Sessions, journal: Journal, callers: Callers) -> APIRouter:
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

    @router.get(
        "/metrics",
        response_class=Response,
        dependencies=[Depends(callers.operator)],
        responses=OPERATORS | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def numbers() -> Response:
        """The container's metrics, for Prometheus; where people sign in, for the operator alone."""
        return Response(sessions.metrics.exposition(), media_type=CONTENT_TYPE)

    return router
