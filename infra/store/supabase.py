"""The product's store: a Supabase project, through its REST interface and the official client.

What must be one step is one request: a table operation, or a function of `infra/supabase/migrations`.
"""

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Self

import httpx
import msgspec
from postgrest.exceptions import APIError
from postgrest.types import ReturnMethod
from supabase import AsyncClient, AsyncClientOptions, acreate_client

from infra.records import Event, Mode, Orphan, Session, SessionListed, UserStats
from infra.settings import Settings
from infra.store.base import NotYours, StoreError, StoreMisconfigured, StoreRefused, StoreUnavailable, storable
from infra.store.supabase_errors import MIGRATE, check
from infra.store.supabase_http import ReconnectingClient
from infra.telemetry import get_logger

SCHEMA_VERSION = 9
"""What `schema_version()` must answer at least: raised with a migration that this file needs."""
TIMEOUT = httpx.Timeout(10.0, connect=3.0)
LIMITS = httpx.Limits(max_connections=20, max_keepalive_connections=20, keepalive_expiry=60.0)
"""HTTP/1.1, by measurement: a batch of 500 rows over TLS took 2.3 ms of CPU, and 5.0 ms over HTTP/2."""
AT_ONCE = 16
"""Requests under way at the same time, but for the journal's, which find a connection free even while a thousand
clients come back. The queue is ours because httpx walks its own with every request: 3 ms of CPU each, not 1."""
START_SECONDS = 10.0
"""How long the start keeps asking a Supabase that does not answer."""
RETRY_SECONDS = 0.5
LEAST_ROW_CAP = 100
"""A page shorter than this is the last: no server is set to send fewer rows at once. Supabase's own cap is 1000."""

EVENTS = "events!events_session_id_fkey"
"""The events of a session, by the name of the relationship: a table of the user's own that references both would make
`events` alone ambiguous."""

log = get_logger("store")


class SupabaseStore:
    """A `Store` in a Supabase project. Open it with `SupabaseStore.open`."""

    def __init__(self, client: AsyncClient, http: httpx.AsyncClient) -> None:
        self._client = client
        self._http = http
        self._longest_page = LEAST_ROW_CAP
        self._slots = asyncio.Semaphore(AT_ONCE)

    @classmethod
    async def open(cls, settings: Settings, *, within: float = START_SECONDS) -> Self:
        """Connect, and make sure that the project can be used; ask for so many seconds if it does not answer.

        Raises:
            StoreMisconfigured: it cannot be; the message names the setting, or what to run.
        """
        assert settings.supabase_url
        assert settings.supabase_key
        key = settings.supabase_key.get_secret_value()
        if not is_service_key(key):
            log.warning("SUPABASE_KEY is not a service key: row-level security will refuse what the server does")
        http = ReconnectingClient(timeout=TIMEOUT, limits=LIMITS, event_hooks={"response": [check]})
        options = AsyncClientOptions(
            httpx_client=http, auto_refresh_token=False, persist_session=False, postgrest_client_retry=False
        )
        store = cls(await acreate_client(settings.supabase_url, key, options), http)
        try:
            await store._wait_until_usable(within)
        except StoreError as error:
            await store.close()
            if isinstance(error, StoreMisconfigured):
                raise
            raise StoreMisconfigured(f"SUPABASE_URL: no answer within {within:g} s: {error}") from error
        return store

    async def _wait_until_usable(self, within: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        while True:
            try:
                version = await self._run(self._client.rpc("schema_version", {}))
                if not isinstance(version, int) or version < SCHEMA_VERSION:
                    raise StoreMisconfigured(f"the schema is version {version}, not {SCHEMA_VERSION}: {MIGRATE}")
                if unfilled := await self._run(self._client.rpc("unfilled_columns", {})):
                    raise StoreMisconfigured(
                        f"the server does not fill {unfilled}: give it a default, or let it be null"
                    )
                return
            except StoreUnavailable as error:
                if loop.time() + RETRY_SECONDS > deadline:
                    raise
                log.warning("Supabase does not answer, will ask again", cause=str(error))
            await asyncio.sleep(RETRY_SECONDS)

    async def _run_in_turn(self, query: Any) -> Any:
        """The same as `_run`, when it is its turn."""
        async with self._slots:
            return await self._run(query)

    async def _run(self, query: Any) -> Any:
        """The query's rows, or a function's result. Every failure leaves as a `StoreError`."""
        try:
            return (await query.execute()).data
        except httpx.HTTPError as error:
            raise StoreUnavailable(f"Supabase: {type(error).__name__}: {error}") from error
        except UnicodeEncodeError as error:
            raise StoreRefused("half of a surrogate pair, which is not Unicode") from error
        except (APIError, ValueError) as error:  # a good status, and no JSON behind it
            raise StoreUnavailable("Supabase: the answer is not what PostgREST sends") from error

    async def ping(self) -> None:
        """See `Store.ping`."""
        await self._run(self._client.table("sessions").select("session_id").limit(1))

    async def open_session(self, session_id: str, user_id: str, *, at: datetime, container_id: str) -> Session:
        """See `Store.open_session`."""
        parameters = {"p_session_id": session_id, "p_user_id": user_id}
        parameters |= {"p_at": at.isoformat(), "p_container_id": container_id}
        rows = await self._run_in_turn(self._client.rpc("open_session", parameters))
        if not rows:
            raise NotYours(session_id)
        return _session(rows[0])

    async def session(self, session_id: str) -> Session | None:
        """See `Store.session`."""
        rows = await self._run_in_turn(self._client.table("sessions").select("*").eq("session_id", session_id))
        return _session(rows[0]) if rows else None

    async def transcript(self, session_id: str, *, limit: int) -> tuple[Session, list[Event]] | None:
        """See `Store.transcript`. More requests follow only where the server's cap on rows cuts the first one."""
        session: Session | None = None

        async def page(last: int | None, size: int) -> list[Any]:
            nonlocal session
            if last is not None:
                return await self._events_after(session_id, last, size)
            query = self._client.table("sessions").select(f"*, {EVENTS}(*)").eq("session_id", session_id)
            of_events = query.order("id", foreign_table="events").limit(size, foreign_table="events")
            rows = await self._run_in_turn(of_events)
            if not rows:
                return []
            session = _session(rows[0])
            events: list[Any] = rows[0]["events"]
            return events

        events = await self._pages(page, limit)
        return None if session is None else (session, [_event(row) for row in events])

    async def set_modes(self, modes: Mapping[str, Mode]) -> None:
        """See `Store.set_modes`."""
        for mode in sorted(set(modes.values())):
            session_ids = ",".join(session_id for session_id, its in modes.items() if its == mode)
            await self._run(self._client.rpc("set_modes", {"p_session_ids": session_ids, "p_mode": mode}))

    async def append(self, events: Sequence[Event]) -> None:
        """See `Store.append`."""
        if not events:
            return
        rows = [
            {
                "event_id": event.event_id,
                "session_id": event.session_id,
                "turn_id": event.turn_id,
                "role": event.role,
                "content": storable(event.content),
                "timestamp": event.timestamp.isoformat(),
                "metadata": storable(event.metadata),
            }
            for event in events
        ]
        table = self._client.table("events")
        await self._run(
            table.upsert(rows, on_conflict="event_id", ignore_duplicates=True, returning=ReturnMethod.minimal)
        )

    async def events(self, session_id: str, *, after: int = 0, limit: int) -> list[Event]:
        """See `Store.events`."""

        async def page(last: int | None, size: int) -> list[Any]:
            return await self._events_after(session_id, after if last is None else last, size)

        return [_event(row) for row in await self._pages(page, limit)]

    async def _events_after(self, session_id: str, last: int, size: int) -> list[Any]:
        query = self._client.table("events").select("*").eq("session_id", session_id)
        rows: list[Any] = await self._run_in_turn(query.gt("id", last).order("id").limit(size))
        return rows

    async def events_before(self, session_id: str, event_id: str, *, limit: int) -> list[Event]:
        """See `Store.events_before`."""
        query = self._client.table("events").select("id").eq("session_id", session_id).eq("event_id", event_id)
        rows = await self._run_in_turn(query)
        return await self._latest(session_id, limit, before=rows[0]["id"]) if rows else []

    async def latest_events(self, session_id: str, *, limit: int) -> list[Event]:
        """See `Store.latest_events`."""
        return await self._latest(session_id, limit)

    async def _latest(self, session_id: str, limit: int, before: int | None = None) -> list[Event]:
        async def page(last: int | None, size: int) -> list[Any]:
            query = self._client.table("events").select("*").eq("session_id", session_id)
            end = before if last is None else last
            query = query if end is None else query.lt("id", end)
            rows: list[Any] = await self._run_in_turn(query.order("id", desc=True).limit(size))
            return rows

        return [_event(row) for row in reversed(await self._pages(page, limit))]

    async def _pages(self, page: Callable[[int | None, int], Awaitable[list[Any]]], limit: int) -> list[Any]:
        """Up to `limit` rows, however few the server sends at once.

        A server caps a page without saying so. A page that is shorter than asked for is the last one only if it is
        also shorter than the longest one seen.
        """
        rows: list[Any] = []
        while len(rows) < limit:
            size = limit - len(rows)
            got = await page(rows[-1]["id"] if rows else None, size)
            rows += got
            if not got or (len(got) < size and len(got) < self._longest_page):
                break
            self._longest_page = max(self._longest_page, len(got))
        return rows

    async def finish_session(self, session_id: str, epoch: int, *, ended_at: datetime, summary: str) -> bool:
        """See `Store.finish_session`."""
        parameters = {"p_session_id": session_id, "p_epoch": epoch}
        parameters |= {"p_ended_at": ended_at.isoformat(), "p_summary": storable(summary)}
        return bool(await self._run_in_turn(self._client.rpc("finish_session", parameters)))

    async def improve_summary(self, session_id: str, epoch: int, *, old: str, new: str) -> bool:
        """See `Store.improve_summary`."""
        parameters = {"p_session_id": session_id, "p_epoch": epoch, "p_old": storable(old), "p_new": storable(new)}
        return bool(await self._run_in_turn(self._client.rpc("improve_summary", parameters)))

    async def user_stats(self, user_id: str) -> UserStats:
        """See `Store.user_stats`."""
        (row,) = await self._run_in_turn(self._client.rpc("user_stats", {"p_user_id": user_id}))
        return UserStats(
            sessions=int(row["sessions"]),
            messages=int(row["messages"]),
            minutes=round(float(row["minutes"]), 1),
            last_seen=row["last_seen"] and datetime.fromisoformat(row["last_seen"]),
        )

    async def user_tokens(self, user_id: str, *, since: datetime) -> int:
        """See `Store.user_tokens`."""
        parameters = {"p_user_id": user_id, "p_since": since.isoformat()}
        return int(await self._run_in_turn(self._client.rpc("user_tokens", parameters)))

    async def list_sessions(self, user_id: str, *, before: str | None, limit: int) -> list[SessionListed]:
        """See `Store.list_sessions`."""
        parameters = {"p_user_id": user_id, "p_before": before, "p_limit": limit}
        return [_listed(row) for row in await self._run_in_turn(self._client.rpc("list_sessions", parameters))]

    async def set_title(self, session_id: str, user_id: str, title: str) -> bool:
        """See `Store.set_title`."""
        changed = self._client.table("sessions").update({"title": storable(title)})
        return bool(await self._run_in_turn(changed.eq("session_id", session_id).eq("user_id", user_id)))

    async def delete_session(self, session_id: str, user_id: str) -> bool:
        """See `Store.delete_session`."""
        deleted = self._client.table("sessions").delete()
        return bool(await self._run_in_turn(deleted.eq("session_id", session_id).eq("user_id", user_id)))

    async def delete_before(self, moment: datetime, *, limit: int) -> int:
        """See `Store.delete_before`."""
        parameters = {"p_before": moment.isoformat(), "p_limit": limit}
        return int(await self._run_in_turn(self._client.rpc("delete_before", parameters)))

    async def beat(self, container_id: str, *, at: datetime) -> None:
        """See `Store.beat`."""
        row = {"container_id": container_id, "seen_at": at.isoformat()}
        table = self._client.table("containers")
        await self._run(table.upsert(row, returning=ReturnMethod.minimal))

    async def depart(self, container_id: str) -> None:
        """See `Store.depart`."""
        table = self._client.table("containers")
        await self._run(table.delete(returning=ReturnMethod.minimal).eq("container_id", container_id))

    async def orphans(self, *, seen_before: datetime, limit: int) -> list[Orphan]:
        """See `Store.orphans`. Of many, the server's cap on rows may leave the youngest out."""
        parameters = {"p_seen_before": seen_before.isoformat(), "p_limit": limit}
        return [_orphan(row) for row in await self._run_in_turn(self._client.rpc("orphans", parameters))]

    async def open_sessions(self, container_id: str, *, limit: int) -> list[Orphan]:
        """See `Store.open_sessions`. Of many, the server's cap on rows may leave the youngest out."""
        parameters = {"p_container_id": container_id, "p_limit": limit}
        return [_orphan(row) for row in await self._run_in_turn(self._client.rpc("open_sessions", parameters))]

    async def note_announced(self, announced: Sequence[Orphan]) -> list[str]:
        """See `Store.note_announced`."""
        session_ids, epochs = ",".join(it.session_id for it in announced), ",".join(str(it.epoch) for it in announced)
        parameters = {"p_session_ids": session_ids, "p_epochs": epochs}
        given_up: list[str] = await self._run_in_turn(self._client.rpc("note_announced", parameters))
        return given_up

    async def close(self) -> None:
        """See `Store.close`."""
        await self._http.aclose()


def is_service_key(key: str) -> bool:
    """Whether a key is a secret one, `sb_secret_…`, or a token whose role is the service's."""
    if key.startswith("sb_"):
        return key.startswith("sb_secret_")
    try:
        payload = key.split(".")[1]
        claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return bool(claims["role"] == "service_role")
    except (IndexError, KeyError, TypeError, binascii.Error, UnicodeError, msgspec.DecodeError):
        return False


def _session(row: Mapping[str, Any]) -> Session:
    fields = {name: row[name] for name in Session.__struct_fields__}
    return Session(**fields | {name: _moment(row[name]) for name in ("start_time", "end_time")})


def _listed(row: Mapping[str, Any]) -> SessionListed:
    fields = {name: row[name] for name in SessionListed.__struct_fields__}
    return SessionListed(**fields | {name: _moment(row[name]) for name in ("start_time", "end_time")})


def _orphan(row: Mapping[str, Any]) -> Orphan:
    moment = datetime.fromisoformat(row["last_time"])
    return Orphan(session_id=row["session_id"], epoch=row["epoch"], last_time=moment)


def _event(row: Mapping[str, Any]) -> Event:
    fields = {name: row[name] for name in Event.__struct_fields__}
    return Event(**fields | {"timestamp": _moment(row["timestamp"])})


def _moment(text: str | None) -> datetime | None:
    """A time as PostgREST writes it, or as PostgreSQL does."""
    return None if text is None else datetime.fromisoformat(text)
