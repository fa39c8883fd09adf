"""The indexes serve the queries: what PostgreSQL plans for them, with as many rows as a busy project has."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
import pytest

from infra.local.postgres import Postgres
from infra.local.supabase import ROOT
from tests.support.supabase import fresh_database

ROWS = """
    set local session_replication_role = replica;  -- 200,000 lookups of the foreign key less
    insert into sessions (session_id, user_id, start_time, end_time, container_id)
    select 's' || n, 'u' || n % 500, now() - n * interval '1 minute', now(), 'box' from generate_series(1, 2000) n;
    update sessions set end_time = null where session_id = 's1234';
    insert into events (session_id, turn_id, role, content)
    select 's' || 1 + n % 2000, 't' || n / 2, (array['user', 'assistant'])[1 + n / 2000 % 2], repeat('word ', 20)
    from generate_series(1, 200000) n;
    insert into events (session_id, turn_id, role, content)
    select 's1', 't' || n, 'user', repeat('word ', 20) from generate_series(1, 1000) n;
    set local session_replication_role = origin;
    analyze;
"""
QUERIES = {
    "the session": "select * from sessions where session_id = 's1234'",
    "its events after one": "select * from events where session_id = 's1234' and id > 100000 order by id limit 100",
    "its latest events": "select * from events where session_id = 's1234' order by id desc limit 100",
    "its latest events before one": (
        "select * from events where session_id = 's1234' and id < 100000 order by id desc limit 100"
    ),
    "an event appended again": (
        "insert into events (event_id, session_id, turn_id, role, content) values (gen_random_uuid(), 's1234', 't',"
        " 'user', '') on conflict (event_id) do nothing"
    ),
    "the events that go with a session": "delete from events where session_id = 's1234'",
}
OF_A_LONG_SESSION = {
    "its events after one": "select * from events where session_id = 's1' and id > 1000 order by id limit 100",
    "its latest events": "select * from events where session_id = 's1' order by id desc limit 100",
}
FUNCTIONS: dict[str, Mapping[str, str]] = {
    "open_session": {"p_session_id": "'s1234'", "p_user_id": "'u234'", "p_at": "now()", "p_container_id": "'box'"},
    "finish_session": {"p_session_id": "'s1234'", "p_epoch": "1", "p_ended_at": "now()", "p_summary": "''"},
    "set_modes": {"p_session_ids": "'s1,s2,s1234'", "p_mode": "'casual'"},
    "user_stats": {"p_user_id": "'u234'"},
}
OF_A_USER = {
    "their sessions": "select * from sessions",
    "all their events": "select * from events order by id limit 1000",
    "events of a session of theirs": "select * from events where session_id = 's1234' order by id limit 100",
    "a session of somebody else": "select * from events where session_id = 's1235' order by id limit 100",
}

Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture(scope="module")
def connection(postgres: Postgres) -> Iterator[Connection]:
    """A connection to a full database. What a test plans or does there is rolled back."""
    url = fresh_database(postgres, migrated=False)
    with psycopg.connect(url) as connection:
        for file in sorted((ROOT / "infra" / "supabase" / "migrations").glob("*.sql")):
            connection.execute(file.read_text())
        connection.execute(ROWS)
        connection.commit()
        yield connection


@pytest.fixture(autouse=True)
def _rollback(connection: Connection) -> Iterator[None]:
    yield
    connection.rollback()


def plan(connection: Connection, query: str) -> str:
    """The plan as text."""
    return "\n".join(row[0] for row in connection.execute("explain (costs off) " + query))


@pytest.mark.parametrize("name", QUERIES)
def test_no_query_reads_a_whole_table(connection: Connection, name: str) -> None:
    """What the store asks of the tables is answered by an index."""
    planned = plan(connection, QUERIES[name])
    assert "Seq Scan" not in planned, planned
    assert "Index" in planned, planned


@pytest.mark.parametrize("name", OF_A_LONG_SESSION)
def test_a_page_of_a_long_session_is_read_in_its_order(connection: Connection, name: str) -> None:
    """Of its 1,000 events no more are read than asked for: nothing is sorted."""
    planned = plan(connection, OF_A_LONG_SESSION[name])
    assert "using events_by_session" in planned, planned
    assert "Sort" not in planned, planned


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_function_reads_a_whole_table(connection: Connection, name: str) -> None:
    """The body of each, as it is in the database, is answered by an index."""
    (body,) = connection.execute("select prosrc from pg_proc where proname = %s", (name,)).fetchone() or ("",)
    planned = plan(connection, re.sub(r"\bp_\w+", lambda found: FUNCTIONS[name][found[0]], body))
    assert "Seq Scan" not in planned, planned
    assert "Index" in planned, planned


@pytest.mark.parametrize("name", OF_A_USER)
def test_no_user_reads_a_whole_table(connection: Connection, name: str) -> None:
    """Row-level security finds a user's rows by an index; it does not look at every row there is."""
    connection.execute("set local role authenticated")
    connection.execute("select set_config('request.jwt.claims', %s, true)", (json.dumps({"sub": "u234"}),))
    planned = plan(connection, OF_A_USER[name])
    assert "Seq Scan" not in planned, planned
    assert "events_pkey" not in planned, planned  # all events, one after the other
    assert "sessions_by_user" in planned, planned
    owners = {row[0] for row in connection.execute(OF_A_USER["their sessions"].replace("*", "user_id"))}
    assert owners == {"u234"}
