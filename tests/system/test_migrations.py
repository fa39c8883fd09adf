"""The migrations on a real PostgreSQL: pushed, pasted, twice, and on the plain tables that people have already."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from infra.local.postgres import Postgres
from infra.local.server import CannotStart
from infra.local.supabase import ROOT, push_migrations
from infra.records import Event
from infra.store.supabase import SupabaseStore
from tests.conftest import make_settings
from tests.support.plain import DAWN, ENDED, EVENTS, KINDS, RUNNING, SECOND, SESSIONS, USER, Plain
from tests.support.supabase import a_lite, fresh_database

MIGRATIONS = sorted((ROOT / "infra" / "supabase" / "migrations").glob("*.sql"))
SHAPE = """
    select 'column', table_name || '.' || column_name, data_type || ', null: ' || is_nullable
    from information_schema.columns where table_schema = 'public'
    union all select 'index', indexname, indexdef from pg_indexes where schemaname = 'public'
    union all select 'constraint', conrelid::regclass || '.' || conname, pg_get_constraintdef(oid)
    from pg_constraint where connamespace = 'public'::regnamespace and contype in ('c', 'f', 'p', 'u')
    union all select 'policy', tablename || '.' || policyname, concat_ws(' ', cmd, roles, qual, with_check)
    from pg_policies where schemaname = 'public'
    union all select 'security', oid::regclass::text, relrowsecurity::text
    from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'
    union all select 'right', c.oid::regclass::text, a.grantee::regrole || ' ' || a.privilege_type
    from pg_class c, aclexplode(c.relacl) a
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'S') and a.grantee <> 0
    union all select 'function', p.oid::regprocedure::text, coalesce(p.proacl::text, 'default') || md5(p.prosrc)
    from pg_proc p where p.pronamespace = 'public'::regnamespace
"""
POLICIES = "select oid from pg_policy order by oid"

Connection = psycopg.Connection[dict[str, Any]]


def connect(url: str) -> Connection:
    return psycopg.connect(url, autocommit=True, row_factory=dict_row)


def paste(url: str) -> None:
    """What the SQL editor does: each file whole, in one request."""
    with connect(url) as connection:
        for file in MIGRATIONS:
            connection.execute(file.read_text())


def shape(connection: Connection) -> set[tuple[str, ...]]:
    return {tuple(row.values()) for row in connection.execute(SHAPE)}


def all_of(connection: Connection, table: str, order: str) -> list[dict[str, Any]]:
    return connection.execute(f"select * from {table} order by {order}").fetchall()


@pytest.fixture
def database(postgres: Postgres) -> Iterator[tuple[str, Connection]]:
    """The URL of a database without our tables, and a connection to it."""
    url = fresh_database(postgres, migrated=False)
    with connect(url) as connection:
        yield url, connection


@pytest.fixture(scope="module")
def wanted(postgres: Postgres) -> set[tuple[str, ...]]:
    """The shape of a database that was made by one paste."""
    url = fresh_database(postgres, migrated=False)
    paste(url)
    with connect(url) as connection:
        return shape(connection)


# Ways to apply them


def test_pushed_is_as_pasted(database: tuple[str, Connection], wanted: set[tuple[str, ...]]) -> None:
    """`supabase db push` and the SQL editor make the same tables, rights and functions; a second push does nothing."""
    url, connection = database
    push_migrations(url)
    assert shape(connection) == wanted
    policies = connection.execute(POLICIES).fetchall()
    assert policies
    push_migrations(url)
    assert connection.execute(POLICIES).fetchall() == policies, "the second push made the policies anew"
    versions = connection.execute("select version from supabase_migrations.schema_migrations order by 1").fetchall()
    assert [row["version"] for row in versions] == [file.name.split("_")[0] for file in MIGRATIONS]


def test_pasted_twice(database: tuple[str, Connection], wanted: set[tuple[str, ...]]) -> None:
    """The second time changes no row, and takes away nothing that somebody decided in between."""
    url, connection = database
    KINDS["usual"].make(connection)
    paste(url)
    connection.execute("""
        create policy "auditors read" on events for select to service_role using (true);
        alter table sessions add constraint "no blank user" check (user_id <> '');
        alter table events add constraint "short role" check (length(role) < 20);
    """)
    before = shape(connection), all_of(connection, "sessions", "session_id"), all_of(connection, "events", "id")
    paste(url)
    after = shape(connection), all_of(connection, "sessions", "session_id"), all_of(connection, "events", "id")
    assert after == before
    assert after[0] > wanted


def test_modes_of_any_name(database: tuple[str, Connection], wanted: set[tuple[str, ...]]) -> None:
    """A database from before takes them, and one that holds them can be pasted into again."""
    url, connection = database
    paste(url)
    connection.execute(
        "alter table sessions add constraint sessions_mode_check check (mode in ('analytical', 'casual'))"
    )
    connection.execute("insert into sessions (session_id, mode) values ('old', 'casual')")
    paste(url)
    connection.execute("insert into sessions (session_id, mode) values ('new', 'support')")
    connection.execute("select set_modes('old', 'out_of_hours')")
    paste(url)
    modes = {row["session_id"]: row["mode"] for row in all_of(connection, "sessions", "session_id")}
    assert modes == {"new": "support", "old": "out_of_hours"}
    assert shape(connection) == wanted


@pytest.mark.parametrize("apply", [paste, push_migrations])
def test_what_cannot_be_adopted_is_left_as_it_was(database: tuple[str, Connection], apply: Any) -> None:
    """It says what it stumbles over, and no half of the work is done."""
    url, connection = database
    kind = Plain(sessions={"duration": "text"}, written={"duration": "{} || ' or so'"})
    kind.make(connection)
    before = shape(connection), all_of(connection, "sessions", "session_id"), all_of(connection, "events", "id")
    with pytest.raises((psycopg.Error, CannotStart), match="90 or so"):
        apply(url)
    after = shape(connection), all_of(connection, "sessions", "session_id"), all_of(connection, "events", "id")
    assert after == before


# Adoption


def check_adopted(connection: Connection, wanted: set[tuple[str, ...]]) -> None:
    """Every row and value of `tests.support.plain` is there, in the shape of a database that was always ours."""
    assert wanted - shape(connection) == set()
    sessions, events = all_of(connection, "sessions", "session_id"), all_of(connection, "events", "id")
    names = ("session_id", "user_id", "start_time", "end_time", "duration", "final_summary")
    assert [tuple(row[name] for name in names) for row in sessions] == SESSIONS
    assert {(row["epoch"], row["mode"], row["container_id"]) for row in sessions} == {(1, None, None)}
    assert sorted((row["session_id"], row["role"], row["content"], row["timestamp"]) for row in events) == sorted(
        EVENTS
    )
    for session_id in (ENDED, RUNNING):
        order = [row["content"] for row in events if row["session_id"] == session_id]
        assert order == [row[2] for row in EVENTS if row[0] == session_id]
    turns = [e["turn_id"] for e in events if e["session_id"] == ENDED]
    assert turns[0] == turns[1] != turns[2], "a turn is a message and its answer"
    assert len({e["event_id"] for e in events}) == len(EVENTS)


@pytest.mark.parametrize("name", KINDS)
def test_adoption(database: tuple[str, Connection], wanted: set[tuple[str, ...]], name: str) -> None:
    """Nothing is lost, nothing is open that should not be, and the server's functions work on what was there."""
    url, connection = database
    KINDS[name].make(connection)
    paste(url)
    check_adopted(connection, wanted)
    assert connection.execute("select count(*) from pg_policies where schemaname = 'public'").fetchone() == {"count": 2}
    connection.execute("set role service_role")
    opened = connection.execute("select * from open_session(%s, %s, %s, 'box')", (ENDED, USER, DAWN)).fetchone()
    assert opened
    assert (opened["epoch"], opened["start_time"], opened["end_time"]) == (2, DAWN, None)
    last = max(row["id"] for row in all_of(connection, "events", "id"))
    added = connection.execute(
        "insert into events (session_id, turn_id, role, content) values (%s, 't', 'tool', '') returning id", (ENDED,)
    ).fetchone()
    assert added
    assert added["id"] > last
    ended = connection.execute("select finish_session(%s, 2, now(), '')", (ENDED,)).fetchone()
    assert ended == {"finish_session": True}
    before = all_of(connection, "sessions", "session_id"), all_of(connection, "events", "id")
    connection.execute("reset role")
    paste(url)
    assert (all_of(connection, "sessions", "session_id"), all_of(connection, "events", "id")) == before


@pytest.mark.parametrize("name", ["uuids of signed-in users", "uuids of events"])
async def test_the_store_on_adopted_tables(
    database: tuple[str, Connection], wanted: set[tuple[str, ...]], tmp_path: Path, name: str
) -> None:
    """A session from before is opened, read, continued and ended as any other."""
    url, connection = database
    KINDS[name].make(connection)
    paste(url)
    check_adopted(connection, wanted)
    with ExitStack() as ending:
        lite = a_lite(url, ending)
        store = await SupabaseStore.open(make_settings(tmp_path, supabase_url=lite.url, supabase_key=lite.service_key))
        try:
            opened = await store.open_session(RUNNING, USER, at=DAWN, container_id="box")
            assert (opened.epoch, opened.start_time) == (2, DAWN + 100 * SECOND)
            old = await store.events(RUNNING, limit=100)
            assert [(event.role, event.content) for event in old] == [row[1:3] for row in EVENTS if row[0] == RUNNING]
            event = Event(
                event_id="0b5b1d9e-0000-4000-8000-00000000000e",
                session_id=RUNNING,
                turn_id="next",
                role="user",
                content="And now?",
                timestamp=DAWN + 103 * SECOND,
            )
            await store.append([event])
            latest = await store.latest_events(RUNNING, limit=3)
            assert [event.content for event in latest] == ["Are you there?", "I am.", "And now?"]
            assert latest[-1].id > max(row["id"] for row in all_of(connection, "events", "id")[:-1])
            assert await store.finish_session(RUNNING, 2, ended_at=DAWN + 110 * SECOND, summary="Done.")
            ended = await store.session(RUNNING)
            assert ended
            assert (ended.duration, ended.final_summary) == (10, "Done.")
            assert (await store.user_stats(USER)).sessions == 2
        finally:
            await store.close()


def test_gaps_are_filled(database: tuple[str, Connection]) -> None:
    """NULL in every column that may have it: a user, times and a text are found, and what was known stays."""
    url, connection = database
    Plain(events={"session_id": "text"}).make(connection, rows=False)
    connection.execute(
        "insert into sessions (session_id, start_time, end_time)"
        " values ('empty', null, null), ('started', %s, %s), ('said', null, null)",
        (DAWN, DAWN + 9.6 * SECOND),
    )
    connection.execute(
        "insert into events (session_id, role, content, timestamp) values"
        " (null, null, null, null), ('said', 'user', null, %s), ('said', 'user', 'x', null), ('lost', 'user', 'y', %s)",
        (DAWN, DAWN),
    )
    paste(url)
    sessions = {row.pop("session_id"): row for row in all_of(connection, "sessions", "session_id")}
    assert set(sessions) == {"empty", "started", "said", "lost", "adopted"}, "orphans got a session, and no more"
    assert {row["user_id"] for row in sessions.values()} == {"anonymous"}
    assert (sessions["started"]["start_time"], sessions["started"]["duration"]) == (DAWN, 10)
    assert sessions["said"]["start_time"] == sessions["lost"]["start_time"] == DAWN
    assert sessions["empty"]["start_time"]
    events = all_of(connection, "events", "id")
    assert [(e["session_id"], e["role"], e["content"]) for e in events] == [
        ("adopted", "assistant", ""),
        ("said", "user", ""),
        ("said", "user", "x"),
        ("lost", "user", "y"),
    ]
    assert [e["timestamp"] for e in events[1:]] == [DAWN] * 3
    assert events[0]["timestamp"]


def test_other_words_for_the_roles(database: tuple[str, Connection]) -> None:
    """They become the three of the protocol, and what they were is kept."""
    url, connection = database
    words = ["system", "human", "ai", "function", "User", "assistant", "Function"]
    listed = ", ".join(f"'{word}'" for word in words)
    Plain(events={"role": f"text check (role in ({listed}))"}).make(connection, rows=False)
    connection.execute("insert into sessions values ('s')")
    for word in words:
        connection.execute("insert into events (session_id, role, content) values ('s', %s, '')", (word,))
    paste(url)
    events = all_of(connection, "events", "id")
    assert [(e["role"], e["metadata"].get("adopted_role")) for e in events] == [
        ("assistant", "system"),
        ("user", "human"),
        ("assistant", "ai"),
        ("tool", "function"),
        ("user", "User"),
        ("assistant", None),
        ("tool", "Function"),
    ]


def test_old_ids_are_kept(database: tuple[str, Connection]) -> None:
    """Ids that are no rising numbers stay beside the new ones, which follow the time."""
    url, connection = database
    kind = KINDS["uuids of events"]
    kind.make(connection)
    kind.insert(connection, "events", {"session_id": ENDED, "role": "user", "content": "first", "timestamp": DAWN})
    before = {row["id"]: row["content"] for row in all_of(connection, "events", "id")}
    paste(url)
    events = all_of(connection, "events", "id")
    assert {row["old_id"]: row["content"] for row in events} == before
    assert events[0]["content"] == "first"
    assert [row["timestamp"] for row in events] == sorted(row["timestamp"] for row in events)


def test_what_was_dropped_can_be_restored(database: tuple[str, Connection]) -> None:
    """Dropped policies can be restored from the table's comment: `db push` shows no notices."""
    url, connection = database
    KINDS["usual"].make(connection)
    connection.execute("""
        alter table sessions add constraint "not root" check (user_id <> 'root');
        comment on table sessions is 'ours';
        alter table sessions enable row level security;
        create policy "allow all" on sessions for all to public using (true) with check (user_id is not null);
        create policy "read" on sessions for select to authenticated using (user_id = 'me');
    """)
    wanted = "select policyname, permissive, roles, cmd, qual, with_check from pg_policies where tablename = 'sessions'"
    before = connection.execute(f"{wanted} order by 1").fetchall()
    push_migrations(url)
    comment = connection.execute("select obj_description('sessions'::regclass) as text").fetchone()
    assert comment
    first, *statements = comment["text"].split("\n")
    assert first == "ours"
    for statement in statements:
        connection.execute(statement)
    restored = connection.execute(f"{wanted} and policyname in ('allow all', 'read') order by 1").fetchall()
    assert restored == before
    with pytest.raises(psycopg.errors.CheckViolation):
        connection.execute("insert into sessions (session_id, user_id) values ('s', 'root')")


@pytest.mark.parametrize("apply", [paste, push_migrations])
def test_a_column_that_nobody_fills_is_named(database: tuple[str, Connection], apply: Any) -> None:
    """A NOT NULL column of one's own without a default is refused at the push, not at every session."""
    url, connection = database
    KINDS["usual"].make(connection)
    connection.execute("alter table sessions add tenant text; update sessions set tenant = 'x'")
    connection.execute("alter table sessions alter tenant set not null")
    with pytest.raises((psycopg.Error, CannotStart), match=r"sessions\.tenant"):
        apply(url)
    connection.execute("alter table sessions alter column tenant set default 'none'")
    apply(url)
    connection.execute("select * from open_session('s', 'u', now(), 'box')")
