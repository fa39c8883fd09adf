"""A crash, as it is: the whole stack killed in the middle of a session, and started again on the same data."""

import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from infra.records import utc_now
from tests.support.client import ChatClient
from tests.support.supabase import Supabase, free_port, open_store
from tests.system.test_http import get
from tests.system.test_local import children, local_stack, summarised

COUNT_SUMMARIES = """
    CREATE TABLE written (session_id TEXT);
    CREATE TRIGGER count_summaries AFTER UPDATE OF final_summary ON sessions WHEN new.final_summary IS NOT NULL
    BEGIN INSERT INTO written VALUES (new.session_id); END;
"""
ORPHAN = """
    INSERT INTO sessions (session_id, start_time, container_id)
    VALUES ('orphan', '2026-01-02T03:04:05.678901+00:00', 'never there')
"""


@contextmanager
def database(data_dir: Path) -> Iterator[sqlite3.Connection]:
    """The stack's file, in one transaction."""
    with closing(sqlite3.connect(data_dir / "realtime.db")) as db, db:
        yield db


async def chat(url: str, session_id: str) -> ChatClient:
    """A client that has said something, and has its answer saved."""
    client = await ChatClient.connect(url, session_id)
    await client.say("hello there")
    done = await client.until("done")
    while (await client.until("saved"))["through"] < done["seq"]:
        pass
    return client


async def last_time(http: str, session_id: str) -> datetime:
    """When the session's last event was."""
    _, events = await get(f"{http}/sessions/{session_id}/events")
    return datetime.fromisoformat(events[-1]["timestamp"])


async def test_a_killed_stack_is_swept_up_by_the_next(tmp_path: Path) -> None:
    """The session that was open ends with its last event and is summarised once; who lives now is left alone."""
    port = free_port()
    url, http = f"ws://127.0.0.1:{port}", f"http://127.0.0.1:{port}"
    with local_stack(tmp_path, port) as process:
        cut_off = await chat(url, "killed")
        pids = [process.pid, *children(process.pid)]
        assert len(pids) > 1
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await cut_off.closed()
    with database(tmp_path) as db:
        assert db.execute("SELECT session_id, end_time FROM sessions").fetchall() == [("killed", None)]
        db.executescript(COUNT_SUMMARIES)

    with local_stack(tmp_path, port):
        live = await chat(url, "live")
        with database(tmp_path) as db:
            db.execute(ORPHAN)  # when this one is swept, there was a sweep in which the live one was open
        rows: list[dict[str, Any]] = [await summarised(port, session_id) for session_id in ("killed", "orphan")]
        assert datetime.fromisoformat(rows[0]["end_time"]) == await last_time(http, "killed")
        assert rows[0]["final_summary"] == "A casual conversation of 1 message and 1 reply."
        assert rows[1]["end_time"] == rows[1]["start_time"]
        with database(tmp_path) as db:
            assert sorted(db.execute("SELECT session_id FROM written")) == [("killed",), ("orphan",)]
        await live.say("still here")
        await live.until("done")
        _, row = await get(f"{http}/sessions/live")
        assert (row["epoch"], row["end_time"]) == (1, None)
    with database(tmp_path) as db:
        assert sorted(db.execute("SELECT session_id FROM written")) == [("killed",), ("live",), ("orphan",)]


async def test_adopted_sessions_are_nobodys_orphans(supabase: Supabase) -> None:
    """In Supabase, too: of two open rows that are alike, the one that was in a container is found, the other is not."""
    adopted, ours = f"adopted-{uuid4().hex}", f"ours-{uuid4().hex}"
    headers = {"apikey": supabase.service_key, "Authorization": f"Bearer {supabase.service_key}"}
    async with httpx.AsyncClient(base_url=f"{supabase.url}/rest/v1", headers=headers) as http:
        for session_id, container_id in ((adopted, None), (ours, "never there")):
            row = {"session_id": session_id, "start_time": "1900-01-02T00:00:00Z", "container_id": container_id}
            assert (await http.post("/sessions", json=row)).is_success
        store = await open_store(supabase.url, supabase.service_key)
        found = {orphan.session_id for orphan in await store.orphans(seen_before=utc_now(), limit=100)}
        await store.close()
        await http.delete(f"/sessions?session_id=in.({adopted},{ours})")
    assert found & {adopted, ours} == {ours}
