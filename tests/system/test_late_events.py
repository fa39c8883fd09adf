"""Who was taken for dead and was not: what comes after its sessions' end is in their summaries in the end."""

import asyncio
from pathlib import Path

import psycopg

from functions.summary.summarize import Outcome, Summarizer
from functions.sweep.sweep import Sweeper
from infra.handoff import SqsHandoff
from infra.local.postgres import Postgres
from infra.store.sqlite import SqliteStore
from tests.conftest import Serve
from tests.support.client import ChatClient
from tests.support.queue import Queue
from tests.support.spooled import until
from tests.support.supabase import fresh_database
from tests.system.test_ending import announced, using

SESSION = "insert into sessions (session_id, user_id, start_time) values ('s', 'u', now() - interval '1 hour')"
EVENT = "insert into events (session_id, turn_id, role, content) values ('s', 't', 'user', 'late')"
FINISH = "select finish_session('s', 1, now() - interval '1 minute', 'Not whole.')"
WAITING = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like %s"


async def test_a_session_that_was_swept_alive_is_summarised_whole(serve: Serve, queue: Queue, tmp_path: Path) -> None:
    """The sweep takes its container for dead, the user goes on, and the real end has the summary made anew."""
    async with serve(**using(queue)) as server:
        client = await ChatClient.connect(server.url)
        await client.until("ready")
        store = await SqliteStore.open(tmp_path / "realtime.db")
        handoff = await SqsHandoff.connect(queue.settings.model_copy(update={"disconnect_queue_url": queue.url}))
        assert await Sweeper(store, handoff, dead_after_seconds=-60).sweep() == 1
        summarizer = Summarizer(store, None)
        (early,) = await announced(queue)
        assert (early.reason, await summarizer.summarize(early)) == ("crashed", Outcome.WRITTEN)
        await client.say("hello there")
        await client.until("done")
        await client.websocket.close(1000)
        (real,) = await announced(queue)
        assert (real.reason, await summarizer.summarize(real)) == ("closed", Outcome.WRITTEN)
        row = await store.session("s1")
        assert row
        assert row.final_summary == "A casual conversation of 1 message and 1 reply."
        assert await summarizer.summarize(early) is Outcome.REPEATED
        await handoff.close()
        await store.close()


async def test_an_end_waits_for_the_events_on_their_way(postgres: Postgres) -> None:
    """An insert that began before the end, and commits after it was asked for, is an event that the end sees."""
    url = fresh_database(postgres)
    with psycopg.connect(url) as inserting, psycopg.connect(url, autocommit=True) as watching:
        watching.execute(SESSION)
        inserting.execute(EVENT)

        def finish() -> object:
            with psycopg.connect(url, autocommit=True) as finishing:
                return finishing.execute(FINISH).fetchone()

        asked = asyncio.create_task(asyncio.to_thread(finish))
        await until(lambda: watching.execute(WAITING, ["select finish_session%"]).fetchone() == (1,))
        inserting.commit()
        assert await asked == (False,)
        assert watching.execute("select end_time from sessions").fetchone() == (None,)


async def test_an_event_waits_for_the_end_on_its_way(postgres: Postgres) -> None:
    """An end that began before the insert, and commits after it was asked for, is one that the event undoes."""
    url = fresh_database(postgres)
    with psycopg.connect(url) as finishing, psycopg.connect(url, autocommit=True) as watching:
        watching.execute(SESSION)
        assert finishing.execute(FINISH).fetchone() == (True,)

        def insert() -> None:
            with psycopg.connect(url, autocommit=True) as inserting:
                inserting.execute(EVENT)

        asked = asyncio.create_task(asyncio.to_thread(insert))
        await until(lambda: watching.execute(WAITING, ["insert into events%"]).fetchone() == (1,))
        finishing.commit()
        await asked
        assert watching.execute("select end_time, final_summary from sessions").fetchone() == (None, None)
