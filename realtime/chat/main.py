"""The composition root: settings in, a running backend out. Everything is built here, and closed in reverse."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

import msgspec
from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.routing import WebSocketRoute

from chat.durability.courier import Courier
from chat.durability.drafts import Drafts
from chat.durability.heartbeat import Heartbeat
from chat.durability.journal import Journal
from chat.durability.reconciler import Reconciler
from chat.durability.shelf import Shelf
from chat.durability.spool import Spool
from chat.metrics import Metrics
from chat.prompts import load_prompts
from chat.sessions.kit import TurnKit
from chat.sessions.registry import Sessions
from chat.tools import standard_tools
from chat.tools.registry import Registry
from chat.web.admission import Admission
from chat.web.answers import not_acceptable
from chat.web.api import FRONTEND, VERSION, create_router
from chat.web.callers import Callers
from chat.web.conversations import create_conversations
from chat.web.endpoint import SessionSocket
from chat.web.head import HeadAsGet
from chat.web.headers import SafeHeaders
from chat.web.identity import Identities, open_identities
from chat.web.limits import Limits
from chat.web.origins import KnownHosts, Origins
from chat.web.quota import Quota
from chat.web.sign_in import create_sign_in
from infra.handoff import SQS_BATCH, Handoff, HandoffUnavailable, open_handoff
from infra.llm import Model, open_model
from infra.llm.prices import load_prices
from infra.port import SERVICE
from infra.records import SessionEnded
from infra.settings import Settings
from infra.store import Store, open_store
from infra.telemetry import get_logger
from infra.tracing import start_tracing, stop_tracing

SESSIONS_SECONDS, JOURNAL_SECONDS, ENDINGS_SECONDS = 1.0, 0.3, 0.7
"""How long the last steps may take at the end, in their order. With uvicorn's one second before them it is three in
all, so that the local stack is gone within five."""

TRACES_SECONDS = 1.0
"""How long a collector may take for the last spans."""

log = get_logger("main")


class Backend(msgspec.Struct, frozen=True):
    """The container: an ASGI application, and the sessions to drain before it is left."""

    app: FastAPI
    sessions: Sessions


@asynccontextmanager
async def open_backend(
    settings: Settings,
    *,
    store: Store | None = None,
    model: Model | None = None,
    tools: Registry | None = None,
    handoff: Handoff | None = None,
) -> AsyncIterator[Backend]:
    """The whole container, ready to serve until the block is left.

    Each part may be given in place of the one that the settings name.

    Raises:
        StoreMisconfigured: the store cannot be used.
        SettingsError: DATA_DIR cannot be used, or is another container's; or the prompts cannot be used.
    """
    prompts = load_prompts(settings)
    prices = load_prices(settings.prices_file)
    async with AsyncExitStack() as closing:
        store = store or await open_store(settings)
        closing.push_async_callback(store.close)
        container_id = _life_of(settings.container_id)
        start_tracing(settings, "container", container_id)
        closing.push_async_callback(asyncio.to_thread, stop_tracing, TRACES_SECONDS)
        heartbeat = Heartbeat(store, container_id, settings.heartbeat_seconds)
        closing.push_async_callback(heartbeat.close)
        await heartbeat.start()
        model = model or open_model(settings)
        closing.push_async_callback(model.close)
        handoff = handoff or await open_handoff(settings)
        if handoff:
            closing.push_async_callback(handoff.close)
        else:
            log.warning("no summaries: neither DISCONNECT_QUEUE_URL nor HANDOFF_URL is set")
        metrics = Metrics()
        spool = await Spool.open(settings.data_dir)
        closing.push_async_callback(spool.close)
        endings: Courier[SessionEnded] | None = None
        if handoff:
            endings = Courier("endings", handoff.send, batch_size=SQS_BATCH, ordered=False, expected=HandoffUnavailable)
            closing.push_async_callback(endings.close, ENDINGS_SECONDS)
            await endings.recover(
                Shelf(spool, "endings", encode=_encode, decode=SessionEnded.from_json, metrics=metrics)
            )
            endings.start()
        drafts = Drafts(spool, metrics)
        await drafts.recover()
        journal = Journal(store, metrics, max_events=settings.journal_max_events, drafts=drafts)
        closing.push_async_callback(journal.close, JOURNAL_SECONDS)
        if settings.supabase_url:  # SQLite is on the same disk: what it cannot store, the spool could not either
            await journal.recover(spool)
        journal.start()
        quota = Quota(store, metrics, 0 if settings.auth_kind == "none" else settings.limit_user_tokens)
        kit = TurnKit(
            model=model,
            tools=tools or standard_tools(),
            stall_seconds=settings.llm_timeout_seconds,
            tool_seconds=settings.tool_timeout_seconds,
            max_tool_rounds=settings.max_tool_rounds,
            metrics=metrics,
            prices=prices,
            spend=quota.spend,
        )
        sessions = Sessions(store, journal, kit, prompts, endings, settings, container_id)
        sessions.start()
        closing.push_async_callback(sessions.close, SESSIONS_SECONDS)
        if endings:
            reconciler = Reconciler(store, container_id, sessions.is_known, endings, settings.reconcile_seconds)
            closing.push_async_callback(reconciler.close)
            reconciler.start()
        identities = open_identities(settings)
        closing.push_async_callback(identities.close)
        yield Backend(_create_app(store, sessions, journal, identities, quota, settings), sessions)


def _encode(ended: SessionEnded) -> bytes:
    return ended.to_json().encode()


def _life_of(name: str | None) -> str:
    """An id of its own for each start: under its old name, a container would keep its dead sessions alive."""
    return f"{name}-{uuid4().hex[:8]}" if name else uuid4().hex


def _create_app(
    store: Store, sessions: Sessions, journal: Journal, identities: Identities, quota: Quota, settings: Settings
) -> FastAPI:
    # No pages of documentation: FastAPI's load their scripts from elsewhere. /openapi.json is ours.
    app = FastAPI(title=SERVICE, version=VERSION, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(RequestValidationError, not_acceptable)
    app.add_middleware(HeadAsGet)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.origins,
        allow_methods=["GET", "POST", "PATCH", "DELETE"],
        allow_headers=["Authorization", "Content-Type"],
    )
    app.add_middleware(SafeHeaders, settings=settings)
    app.add_middleware(KnownHosts, settings=settings)
    limits = Limits(settings, sessions.metrics)
    callers = Callers(identities, limits)
    admission = Admission(identities, Origins(settings.origins), limits, quota, sessions)
    socket = SessionSocket(sessions, journal, admission, settings.max_message_chars)
    app.router.routes.append(WebSocketRoute("/ws/session/{session_id:path}", socket))
    app.include_router(create_router(store, sessions, journal, callers))
    app.include_router(create_sign_in(identities, callers, limits, settings))
    app.include_router(create_conversations(store, sessions, callers))

    @app.get("/openapi.json", include_in_schema=False, dependencies=[Depends(callers.operator)])
    async def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    app.mount("/", StaticFiles(directory=FRONTEND, html=True))
    return app
