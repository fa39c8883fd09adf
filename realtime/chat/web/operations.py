"""The metrics on a port of their own, where the network and not a token says who may read them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from chat.metrics import CONTENT_TYPE, Metrics


@asynccontextmanager
async def metrics_at(host: str, port: int | None, metrics: Metrics) -> AsyncIterator[None]:
    """Serve `/metrics` there until the block is left; nothing without a port."""
    if port is None:
        yield
        return

    async def numbers(request: Request) -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE)

    app = Starlette(routes=[Route("/metrics", numbers)])
    config = uvicorn.Config(app, host=host, port=port, lifespan="off", log_config=None, access_log=False, ws="none")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  # the chat's server has them
    serving = asyncio.create_task(server._serve())
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.wait([serving], timeout=2)
