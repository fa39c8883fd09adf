"""The server on Supabase: what it survives while it runs, and what it holds."""

import asyncio
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import httpx
import psycopg
import pytest
from structlog.testing import capture_logs

import chat.durability.courier
from functions.summary.summarize import Outcome, Summarizer
from infra.local.postgres import Postgres
from infra.records import Event, SessionEnded, utc_now
from infra.store.supabase import SupabaseStore
from tests.conftest import Serve
from tests.support.client import ChatClient
from tests.support.gateway import BAD_GATEWAY, Answer, Cut, Gateway, a_gateway, too_many
from tests.support.supabase import Supabase, a_lite, fresh, fresh_database, open_store


async def contents(store: SupabaseStore, session_id: str) -> list[str]:
    return [event.content for event in await store.events(session_id, limit=10_000)]


# While it runs


@pytest.mark.parametrize(
    "weather",
    [
        pytest.param([Answer(BAD_GATEWAY)], id="502 with a page"),
        pytest.param([Answer(b"")], id="hung up before the request was done"),
        pytest.param([Cut(0)], id="hung up after it was done"),
        pytest.param([Cut(40)], id="cut mid-way in the head, after it was done"),
        pytest.param([Answer(BAD_GATEWAY), Cut(0), Cut(100)], id="one after the other"),
    ],
)
async def test_a_broken_answer_loses_and_doubles_nothing(
    serve: Serve, supabase: Supabase, gateway: Gateway, weather: list[Answer | Cut]
) -> None:
    """The journal tries again, whether the insert was done or not: everything is there once, and then `saved`."""
    gateway.only = "/rest/v1/events?on_conflict"
    gateway.weather.extend(weather)
    session_id = fresh("broken")
    async with serve(**supabase.names() | {"supabase_url": gateway.url}) as server:
        async with await ChatClient.connect(server.url, session_id, user_id="u1") as client:
            await client.say("hello there")
            done = await client.until("done")
            while (await client.until("saved"))["through"] < done["seq"]:
                pass
        assert not gateway.weather
        async with httpx.AsyncClient() as http:
            events = (await http.get(f"{server.http}/sessions/{session_id}/events")).json()
    assert [event["role"] for event in events] == ["user", "assistant"]
    assert events[1]["content"] == client.text()


async def test_too_many_requests_are_not_repeated_too_early(supabase: Supabase, gateway: Gateway, serve: Serve) -> None:
    """After HTTP 429 the journal stays away for as long as `Retry-After` asks."""
    gateway.only = "/rest/v1/events?on_conflict"
    gateway.weather.append(too_many("1"))
    session_id = fresh("limited")
    named = supabase.names() | {"supabase_url": gateway.url}
    async with serve(**named) as server, await ChatClient.connect(server.url, session_id) as client:
        await client.say("hello there")
        await client.until("saved")
    refused, repeated, *_ = (at for at, what in gateway.seen if "on_conflict" in what)
    assert repeated - refused >= 1.0


async def test_a_refused_row_does_not_block_those_around_it(supabase: Supabase, serve: Serve) -> None:
    """It is set aside with a line in the log and a count in the metrics; the events before and after it are stored."""
    async with serve(**supabase.names()) as server, httpx.AsyncClient() as http:
        session_id = fresh("poison")
        store = await open_store(supabase.url, supabase.service_key)
        with capture_logs() as logs:
            async with await ChatClient.connect(server.url, session_id) as client:
                await client.until("ready")
                await client.say("one")
                await client.until("saved")
                # The database's own rule, which no other of this suite's sessions can meet.
                deleted = await store._http.delete(
                    f"{supabase.url}/rest/v1/sessions?session_id=eq.{session_id}",
                    headers={"apikey": supabase.service_key, "Authorization": f"Bearer {supabase.service_key}"},
                )
                assert deleted.is_success
                await client.say("lost with its session")
                await client.until("saved")
                async with await ChatClient.connect(server.url, f"{session_id}-b") as neighbour:
                    await neighbour.say("hello")
                    await neighbour.until("saved")
        counted = (await http.get(f"{server.http}/metrics")).text
        assert await contents(store, f"{session_id}-b") != []
        await store.close()
    aside = [line for line in logs if line["event"] == "event set aside"]
    assert [line["session_id"] for line in aside] == [session_id] * len(aside)
    assert len(aside) >= 1
    assert f"realtime_events_set_aside_total {len(aside)}.0" in counted
    assert not [line for line in logs if "lost with its session" in str(line)]


async def test_chat_goes_on_while_supabase_is_down(
    postgres: Postgres, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies stream, `saved` waits; when it is back everything arrives once, in order, and `saved` comes."""
    monkeypatch.setattr(chat.durability.courier, "MOST_RETRY_SECONDS", 0.2)
    with ExitStack() as ending:
        lite = a_lite(fresh_database(postgres), ending)
        async with serve(supabase_url=lite.url, supabase_key=lite.service_key) as server:
            clients = [await ChatClient.connect(server.url, f"s{number}") for number in range(10)]
            for client in clients:
                await client.until("ready")
            await asyncio.to_thread(lite.stop)
            await asyncio.gather(*(_chat(client, turns=30) for client in clients))
            assert not [frame for client in clients for frame in client.frames if frame["type"] == "saved"]
            await asyncio.to_thread(lite.start)
            await asyncio.gather(*(_until_saved(client) for client in clients))
            store = await open_store(lite.url, lite.service_key)
            for number, client in enumerate(clients):
                stored = await store.events(f"s{number}", limit=1000)
                assert [event.content for event in stored if event.role == "user"] == [f"turn {n}" for n in range(30)]
                assert "".join(event.content for event in stored if event.role == "assistant") == client.text()
                await client.websocket.close()
            await store.close()


async def _chat(client: ChatClient, turns: int) -> None:
    for number in range(turns):
        await client.say(f"turn {number}")
        await client.until("done")


async def _until_saved(client: ChatClient) -> None:
    last = max(frame["seq"] for frame in client.frames if frame["type"] == "done")
    while (await client.until("saved"))["through"] < last:
        pass


async def test_health_names_the_store_that_is_down(postgres: Postgres, serve: Serve) -> None:
    """503 while it is down, with the failing part; new sessions are told to come back; 200 when it is up again."""
    with ExitStack() as ending:
        lite = a_lite(fresh_database(postgres), ending)
        async with serve(supabase_url=lite.url, supabase_key=lite.service_key) as server, httpx.AsyncClient() as http:
            await asyncio.to_thread(lite.stop)
            unwell = await http.get(f"{server.http}/health")
            assert (unwell.status_code, unwell.json()["failing"]) == (503, ["store"])
            client = await ChatClient.connect(server.url)
            error = await client.next()
            assert (error["code"], error["retry_after"] > 0, await client.closed()) == ("store_unavailable", True, 4503)
            await asyncio.to_thread(lite.start)
            assert (await http.get(f"{server.http}/health")).status_code == 200


# What it holds


async def test_a_session_of_five_thousand_events(supabase: Supabase) -> None:
    """It is read whole, page by page, whatever the server's cap on rows, and its end from the end."""
    store = await open_store(supabase.url, supabase.service_key)
    session_id = fresh("long")
    await store.open_session(session_id, "u1", at=utc_now(), container_id="c")
    texts = [str(number) for number in range(5000)]
    for start in range(0, 5000, 500):
        await store.append([_event(session_id, text) for text in texts[start : start + 500]])
    assert await contents(store, session_id) == texts
    assert [event.content for event in await store.latest_events(session_id, limit=2500)] == texts[2500:]
    transcript = await store.transcript(session_id, limit=2500)
    assert transcript
    assert [event.content for event in transcript[1]] == texts[:2500]
    await store.close()


def _event(session_id: str, content: str, **changed: Any) -> Event:
    fields: dict[str, Any] = {"event_id": str(uuid4()), "turn_id": "t", "role": "user", "timestamp": utc_now()}
    return Event(session_id=session_id, content=content, **fields | changed)


async def test_the_databases_clock_counts_for_nothing(supabase: Supabase) -> None:
    """Every stored time is the container's own: a database whose clock is years off changes no duration."""
    store = await open_store(supabase.url, supabase.service_key)
    session_id = fresh("clock")
    then = datetime(2031, 1, 1, tzinfo=UTC)
    opened = await store.open_session(session_id, "u1", at=then, container_id="c")
    await store.append([_event(session_id, "x", timestamp=then + timedelta(seconds=10))])
    await store.finish_session(session_id, 1, ended_at=then + timedelta(seconds=30), summary="s")
    row = await store.session(session_id)
    assert row
    assert (opened.start_time, row.end_time, row.duration) == (then, then + timedelta(seconds=30), 30)
    assert [event.timestamp for event in await store.events(session_id, limit=1)] == [then + timedelta(seconds=10)]
    await store.close()


# How often it is asked


async def test_a_summary_takes_one_read_and_one_write(supabase: Supabase, gateway: Gateway) -> None:
    """A batch of ten sessions of fifty events: one request to read each, one to end it, and all sessions at once."""
    store = await open_store(gateway.url, supabase.service_key)
    session_ids = [fresh("batch") for _ in range(10)]
    for session_id in session_ids:
        await store.open_session(session_id, "u1", at=utc_now(), container_id="c")
    await store.append([_event(session_id, str(number)) for session_id in session_ids for number in range(50)])
    gateway.seen.clear()
    summarizer = Summarizer(store, None)
    ends = [SessionEnded(session_id=each, epoch=1, ended_at=utc_now(), reason="closed") for each in session_ids]
    outcomes = await asyncio.gather(*(summarizer.summarize(ended) for ended in ends))
    await store.close()
    assert set(outcomes) == {Outcome.WRITTEN}
    assert Counter(what.split("?")[0].split("&")[0] for _, what in gateway.seen) == {
        "GET /rest/v1/sessions": 10,
        "POST /rest/v1/rpc/finish_session": 10,
    }
    assert all(what.startswith("GET") for _, what in gateway.seen[:5]), "one after the other"


async def test_a_table_of_ones_own_makes_no_relationship_ambiguous(postgres: Postgres) -> None:
    """Where it references both sessions and events, PostgREST asks which is meant: the request names it.

    `@supabase/lite` does not ask, so it is the request that is looked at, and the constraint in the database.
    """
    url = fresh_database(postgres)
    with psycopg.connect(url, autocommit=True) as database, ExitStack() as ending:
        database.execute(
            "CREATE TABLE feedback (session_id text REFERENCES sessions, event_id uuid REFERENCES events (event_id))"
        )
        of_events = "SELECT conname FROM pg_constraint WHERE conrelid = 'events'::regclass AND contype = 'f'"
        named = database.execute(of_events)
        (constraint,) = (name for (name,) in named)
        lite = a_lite(url, ending)
        async with a_gateway(lite.url) as gateway:
            store = await open_store(gateway.url, lite.service_key)
            await store.open_session("s", "u", at=utc_now(), container_id="box")
            found = await store.transcript("s", limit=10)
            await store.close()
    assert found
    assert found[0].session_id == "s"
    asked = [unquote(path) for _, path in gateway.seen if "select=" in path and "session_id=eq.s" in path]
    assert [f"events!{constraint}(" in path for path in asked] == [True]
