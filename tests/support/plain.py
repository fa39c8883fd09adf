"""The two plain tables people have from tutorials, in the kinds they have them, each with the same rows in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

DAWN = datetime(2025, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
SECOND = timedelta(seconds=1)
ENDED, RUNNING = "0b5b1d9e-0000-4000-8000-000000000001", "0b5b1d9e-0000-4000-8000-000000000002"
USER = "5e7f0d2a-0000-4000-8000-000000000009"
"""UUIDs, so that they fit every kind of column."""

SESSIONS: list[tuple[Any, ...]] = [
    (ENDED, USER, DAWN, DAWN + 90 * SECOND, 90, "All said."),
    (RUNNING, USER, DAWN + 100 * SECOND, None, None, None),
]
EVENTS: list[tuple[Any, ...]] = [
    (ENDED, "user", 'Say "hello", 你好\n', DAWN + SECOND),
    (ENDED, "assistant", "hello", DAWN + 2 * SECOND),
    (RUNNING, "user", "Are you there?", DAWN + 101 * SECOND),
    (ENDED, "user", "{}", DAWN + 3 * SECOND),
    (RUNNING, "assistant", "I am.", DAWN + 102 * SECOND),
]
USUAL = {
    "sessions": {
        "session_id": "text primary key",
        "user_id": "text",
        "start_time": "timestamptz",
        "end_time": "timestamptz",
        "duration": "integer",
        "final_summary": "text",
    },
    "events": {
        "id": "bigserial primary key",
        "session_id": "text references sessions(session_id)",
        "role": "text",
        "content": "text",
        "timestamp": "timestamptz default now()",
    },
}


@dataclass(frozen=True)
class Plain:
    """One kind: columns that are not as usual, how their values are written ({} is the value), and what comes after."""

    sessions: Mapping[str, str] = field(default_factory=dict)
    events: Mapping[str, str] = field(default_factory=dict)
    written: Mapping[str, str] = field(default_factory=dict)
    before: str = ""
    after: str = ""

    def make(self, connection: "psycopg.Connection[Any]", *, rows: bool = True) -> None:
        """Make the tables, and fill them."""
        if self.before:
            connection.execute(self.before)
        for table, changed in (("sessions", self.sessions), ("events", self.events)):
            columns = ", ".join(f"{name} {what}" for name, what in (USUAL[table] | dict(changed)).items())
            connection.execute(f"create table {table} ({columns})")
        if self.after:
            connection.execute(self.after)
        if not rows:
            return
        for values in SESSIONS:
            self.insert(connection, "sessions", dict(zip(USUAL["sessions"], values, strict=True)))
        for number, values in enumerate(EVENTS):
            row = {"id": 7 * number + 1} if "id" in self.written else {}
            self.insert(connection, "events", row | dict(zip(list(USUAL["events"])[1:], values, strict=True)))

    def insert(self, connection: "psycopg.Connection[Any]", table: str, row: Mapping[str, object]) -> None:
        """Insert one row, written as this kind needs it."""
        values = ", ".join(
            "default" if value is None else self.written.get(name, "{}").format(psycopg.sql.quote(value))
            for name, value in row.items()
        )
        connection.execute(f"insert into {table} ({', '.join(row)}) values ({values})")


_MOMENTS = dict.fromkeys(("start_time", "end_time", "timestamp"), "extract(epoch from {}::timestamptz) * 1000")

KINDS = {
    "usual": Plain(),
    "uuids of signed-in users": Plain(
        before=f"create table auth.users (id uuid primary key); insert into auth.users values ('{USER}')",
        sessions={
            "session_id": "uuid primary key default gen_random_uuid()",
            "user_id": "uuid default auth.uid() references auth.users(id)",
        },
        events={"session_id": "uuid references sessions(session_id) on delete cascade"},
        after="""
            alter table sessions enable row level security;
            alter table events enable row level security;
            create policy "own" on sessions for all to authenticated using (auth.uid() = user_id);
            create policy "own" on events for select using (
                exists (select from sessions s where s.session_id = events.session_id and s.user_id = auth.uid()));
        """,
    ),
    "times without a zone": Plain(
        sessions={"start_time": "timestamp default now()", "end_time": "timestamp"},
        events={"timestamp": "timestamp default current_timestamp"},
    ),
    "times as milliseconds": Plain(
        sessions={"start_time": "bigint", "end_time": "numeric"},
        events={"timestamp": "double precision"},
        written=_MOMENTS,
    ),
    "times as text": Plain(sessions={"start_time": "text", "end_time": "text"}, events={"timestamp": "text"}),
    "varchar": Plain(
        sessions={"session_id": "varchar(64) primary key", "user_id": "varchar", "final_summary": "varchar(500)"},
        events={"session_id": "varchar(64)", "role": "varchar(20) not null", "content": "varchar"},
    ),
    "duration as a float": Plain(sessions={"duration": "double precision"}, written={"duration": "{} + 0.4"}),
    "duration as an interval": Plain(sessions={"duration": "interval"}, written={"duration": "{} * interval '1 s'"}),
    "duration as a numeric": Plain(sessions={"duration": "numeric(10, 2)"}, written={"duration": "{} - 0.25"}),
    "duration as text": Plain(sessions={"duration": "text"}, written={"duration": "'00:01:' || {} - 60"}),
    "duration as it is computed": Plain(
        sessions={"duration": "interval generated always as (end_time - start_time) stored"},
        written={"duration": "default"},
    ),
    "content as jsonb": Plain(events={"content": "jsonb"}, written={"content": "to_jsonb({}::text)"}),
    "uuids of events": Plain(events={"id": "uuid primary key default gen_random_uuid()"}),
    "four-byte serial": Plain(events={"id": "serial primary key"}),
    "four-byte identity": Plain(events={"id": "int generated always as identity primary key"}),
    "ids from the writer": Plain(events={"id": "bigint primary key"}, written={"id": "{}"}),
    "ids that the counter does not know": Plain(written={"id": "{}"}),
    "no keys": Plain(
        sessions={"session_id": "text not null"}, events={"id": "bigint", "session_id": "text"}, written={"id": "{}"}
    ),
    "an enum, and checks": Plain(
        before="create type speaker as enum ('user', 'assistant')",
        sessions={
            "duration": "interval check (duration > interval '0')",
            "user_id": """text constraint "Who's ""there""?" check (user_id <> '')""",
        },
        events={"role": "speaker not null default 'user'", "content": "text check (length(content) between 1 and 500)"},
        written={"duration": "{} * interval '1 s'"},
    ),
    "open to all": Plain(
        after="""
            alter table sessions enable row level security;
            alter table events enable row level security;
            create policy "Allow all" on sessions for all using (true) with check (true);
            create policy "Allow ""all"" events" on events to anon, authenticated using (true) with check (true);
            grant all on sessions, events to public;
            grant select (content) on events to anon;
        """
    ),
}
