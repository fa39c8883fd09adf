"""The embedded store: one SQLite file, no account, no network.

Every verb is one transaction of a `Database`. Its write-ahead log lets the function's process read and write the
same file.
"""

import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from infra.records import Event, Mode, Orphan, Session, SessionListed, UserStats, utc_now
from infra.sqlite import Database
from infra.store.base import (
    MOST_ANNOUNCEMENTS,
    MOST_COUNTED,
    NotYours,
    StoreMisconfigured,
    StoreRefused,
    StoreUnavailable,
    storable,
)

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 5.0
"""How long a write waits for another process's transaction before it counts as unavailable."""

T = TypeVar("T")


class SqliteStore:
    """A `Store` in one file. Open it with `SqliteStore.open`."""

    def __init__(self, database: Database, path: Path) -> None:
        self._database = database
        self._path = path
        self._file = _identity(path)

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open the file, made if missing, and bring its schema up to date.

        Raises:
            StoreMisconfigured: the folder or file cannot be written, or is not ours to use.
        """
        schema = [file.read_text() for file in sorted(MIGRATIONS.glob("*.sql"))]
        try:
            return cls(await Database.open(path, schema, busy_seconds=BUSY_SECONDS), path)
        except (OSError, sqlite3.Error) as error:
            raise StoreMisconfigured(f"DATA_DIR: cannot use {path}: {error}") from error

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._told(self._database.run(work))

    async def _read(self, query: str, *values: object) -> list[sqlite3.Row]:
        """Rows that somebody asked for and that may be many: openings and writes do not wait for them."""
        return await self._told(self._database.read(query, values))

    async def _told(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except (sqlite3.IntegrityError, sqlite3.DataError, UnicodeEncodeError) as error:
            raise StoreRefused(str(error)) from error
        except sqlite3.Error as error:
            raise StoreUnavailable(f"SQLite: {error}") from error

    async def ping(self) -> None:
        """See `Store.ping`. An open file that was moved away or deleted, or has lost its tables, is no store."""
        if _identity(self._path) != self._file:
            raise StoreUnavailable(f"SQLite: {self._path} was moved or deleted")
        await self._run(lambda db: db.execute("SELECT 1 FROM sessions LIMIT 1").fetchone())

    async def open_session(self, session_id: str, user_id: str, *, at: datetime, container_id: str) -> Session:
        """See `Store.open_session`."""
        row = await self._run(
            lambda db: db.execute(
                """
                INSERT INTO sessions (session_id, user_id, start_time, container_id) VALUES (?, ?, ?, ?)
                ON CONFLICT (session_id) DO UPDATE SET
                    epoch = epoch + 1, container_id = excluded.container_id,
                    end_time = NULL, duration = NULL, final_summary = NULL, announced = 0, announced_at = NULL
                WHERE user_id = excluded.user_id
                RETURNING *
                """,
                (session_id, user_id, _text(at), container_id),
            ).fetchone()
        )
        if row is None:
            raise NotYours(session_id)
        return _session(row)

    async def session(self, session_id: str) -> Session | None:
        """See `Store.session`."""
        row = await self._run(
            lambda db: db.execute("SELECT * FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
        )
        return None if row is None else _session(row)

    async def transcript(self, session_id: str, *, limit: int) -> tuple[Session, list[Event]] | None:
        """See `Store.transcript`."""
        session = await self.session(session_id)
        return None if session is None else (session, await self.events(session_id, limit=limit))

    async def set_modes(self, modes: Mapping[str, Mode]) -> None:
        """See `Store.set_modes`."""
        rows = [(mode, session_id) for session_id, mode in modes.items()]
        await self._run(lambda db: db.executemany("UPDATE sessions SET mode = ? WHERE session_id = ?", rows))

    async def append(self, events: Sequence[Event]) -> None:
        """See `Store.append`."""
        rows = [
            (
                e.event_id,
                e.session_id,
                e.turn_id,
                e.role,
                storable(e.content),
                _text(e.timestamp),
                _json(storable(e.metadata)),
            )
            for e in events
        ]
        await self._run(lambda db: _append(db, rows))

    async def events(self, session_id: str, *, after: int = 0, limit: int) -> list[Event]:
        """See `Store.events`."""
        query = "SELECT * FROM events WHERE session_id = ? AND id > ? ORDER BY id LIMIT ?"
        rows = await self._read(query, session_id, after, limit)
        return [_event(row) for row in rows]

    async def events_before(self, session_id: str, event_id: str, *, limit: int) -> list[Event]:
        """See `Store.events_before`."""
        query = """
            SELECT * FROM events WHERE session_id = ?
                AND id < (SELECT id FROM events WHERE event_id = ? AND session_id = ?)
            ORDER BY id DESC LIMIT ?
            """
        rows = await self._read(query, session_id, event_id, session_id, limit)
        return [_event(row) for row in reversed(rows)]

    async def latest_events(self, session_id: str, *, limit: int) -> list[Event]:
        """See `Store.latest_events`."""
        rows = await self._run(
            lambda db: db.execute(
                "SELECT * FROM events WHERE session_id = ? ORDER BY id DESC LIMIT ?", (session_id, limit)
            ).fetchall()
        )
        return [_event(row) for row in reversed(rows)]

    async def finish_session(self, session_id: str, epoch: int, *, ended_at: datetime, summary: str) -> bool:
        """See `Store.finish_session`."""
        end = _text(ended_at)
        return await self._run(
            lambda db: (
                db.execute(
                    """
                    UPDATE sessions SET end_time = ?, final_summary = ?,
                        input_tokens = (SELECT coalesce(sum(json_extract(metadata, '$.usage.input_tokens')), 0)
                                        FROM events e WHERE e.session_id = sessions.session_id),
                        output_tokens = (SELECT coalesce(sum(json_extract(metadata, '$.usage.output_tokens')), 0)
                                         FROM events e WHERE e.session_id = sessions.session_id),
                        cost = (SELECT sum(json_extract(metadata, '$.usage.cost'))
                                FROM events e WHERE e.session_id = sessions.session_id),
                        duration = max(0, CAST(round((julianday(?) - julianday(start_time)) * 86400) AS INTEGER))
                    WHERE session_id = ? AND epoch = ? AND end_time IS NULL
                        AND NOT EXISTS (SELECT 1 FROM events WHERE session_id = ? AND timestamp > ?)
                    """,
                    (end, storable(summary), end, session_id, epoch, session_id, end),
                ).rowcount
                == 1
            )
        )

    async def improve_summary(self, session_id: str, epoch: int, *, old: str, new: str) -> bool:
        """See `Store.improve_summary`."""
        query = """
            UPDATE sessions SET final_summary = ?
            WHERE session_id = ? AND epoch = ? AND end_time IS NOT NULL AND final_summary = ?
            """
        values = (storable(new), session_id, epoch, storable(old))
        return await self._run(lambda db: db.execute(query, values).rowcount == 1)

    async def user_stats(self, user_id: str) -> UserStats:
        """See `Store.user_stats`."""
        query = """
            WITH seen AS (
                SELECT s.start_time,
                    (SELECT count(*) FROM events e WHERE e.session_id = s.session_id AND e.role = 'user') AS said,
                    coalesce(s.end_time, (SELECT max(e.timestamp) FROM events e WHERE e.session_id = s.session_id),
                             s.start_time) AS last_time
                FROM (SELECT * FROM sessions WHERE user_id = ? ORDER BY start_time DESC LIMIT ?) s
            )
            SELECT count(*) AS sessions, coalesce(sum(said), 0) AS messages, max(last_time) AS last_seen,
                coalesce(sum(max(0, julianday(last_time) - julianday(start_time))), 0.0) * 1440 AS minutes
            FROM seen
            """
        (row,) = await self._read(query, user_id, MOST_COUNTED)
        return UserStats(
            sessions=row["sessions"],
            messages=row["messages"],
            minutes=round(row["minutes"], 1),
            last_seen=row["last_seen"] and datetime.fromisoformat(row["last_seen"]),
        )

    async def user_tokens(self, user_id: str, *, since: datetime) -> int:
        """See `Store.user_tokens`."""
        query = """
            SELECT coalesce(sum(json_extract(e.metadata, '$.usage.input_tokens')
                                + json_extract(e.metadata, '$.usage.output_tokens')), 0) AS tokens
            FROM (SELECT session_id FROM sessions WHERE user_id = ? AND (end_time IS NULL OR end_time >= ?)
                  ORDER BY start_time DESC LIMIT ?) s
            JOIN events e ON e.session_id = s.session_id WHERE e.timestamp >= ?
            """
        (row,) = await self._read(query, user_id, _text(since), MOST_COUNTED, _text(since))
        return int(row["tokens"])

    async def list_sessions(self, user_id: str, *, before: str | None, limit: int) -> list[SessionListed]:
        """See `Store.list_sessions`."""
        query = """
            SELECT s.*,
                (SELECT count(*) FROM events e WHERE e.session_id = s.session_id AND e.role = 'user') AS messages
            FROM sessions s
            WHERE s.user_id = ?1 AND (?2 IS NULL OR (s.start_time, s.session_id) <
                (SELECT start_time, session_id FROM sessions WHERE session_id = ?2 AND user_id = ?1))
            ORDER BY s.start_time DESC, s.session_id DESC LIMIT ?3
            """
        return [_listed(row) for row in await self._read(query, user_id, before, limit)]

    async def set_title(self, session_id: str, user_id: str, title: str) -> bool:
        """See `Store.set_title`."""
        query = "UPDATE sessions SET title = ? WHERE session_id = ? AND user_id = ?"
        values = (storable(title), session_id, user_id)
        return await self._run(lambda db: db.execute(query, values).rowcount == 1)

    async def delete_session(self, session_id: str, user_id: str) -> bool:
        """See `Store.delete_session`."""
        query = "DELETE FROM sessions WHERE session_id = ? AND user_id = ?"
        return await self._run(lambda db: db.execute(query, (session_id, user_id)).rowcount == 1)

    async def delete_before(self, moment: datetime, *, limit: int) -> int:
        """See `Store.delete_before`."""
        query = """
            DELETE FROM sessions WHERE session_id IN
                (SELECT session_id FROM sessions WHERE end_time < ? ORDER BY end_time LIMIT ?)
            """
        return await self._run(lambda db: db.execute(query, (_text(moment), limit)).rowcount)

    async def beat(self, container_id: str, *, at: datetime) -> None:
        """See `Store.beat`."""
        await self._run(
            lambda db: db.execute(
                """
                INSERT INTO containers (container_id, seen_at) VALUES (?, ?)
                ON CONFLICT (container_id) DO UPDATE SET seen_at = excluded.seen_at
                """,
                (container_id, _text(at)),
            )
        )

    async def depart(self, container_id: str) -> None:
        """See `Store.depart`."""
        await self._run(lambda db: db.execute("DELETE FROM containers WHERE container_id = ?", (container_id,)))

    async def orphans(self, *, seen_before: datetime, limit: int) -> list[Orphan]:
        """See `Store.orphans`."""
        dead = """s.container_id IS NOT NULL AND NOT EXISTS
            (SELECT 1 FROM containers c WHERE c.container_id = s.container_id AND c.seen_at >= ?)"""
        return await self._open(dead, _text(seen_before), limit)

    async def open_sessions(self, container_id: str, *, limit: int) -> list[Orphan]:
        """See `Store.open_sessions`."""
        return await self._open("s.container_id = ?", container_id, limit)

    async def _open(self, condition: str, value: str, limit: int) -> list[Orphan]:
        query = f"""
            SELECT s.session_id, s.epoch, coalesce(
                (SELECT e.timestamp FROM events e WHERE e.session_id = s.session_id ORDER BY e.id DESC LIMIT 1),
                s.start_time) AS last_time
            FROM sessions s WHERE s.end_time IS NULL AND {condition}
                AND (s.announced = 0 OR (s.announced < {MOST_ANNOUNCEMENTS}
                    AND julianday(s.announced_at) + 30.0 / 86400 * (1 << (2 * s.announced - 2)) < julianday('now')))
            ORDER BY last_time, s.session_id LIMIT ?
            """
        rows = await self._run(lambda db: db.execute(query, (value, limit)).fetchall())
        return [
            Orphan(
                session_id=row["session_id"],
                epoch=row["epoch"],
                last_time=datetime.fromisoformat(row["last_time"]),
            )
            for row in rows
        ]

    async def note_announced(self, announced: Sequence[Orphan]) -> list[str]:
        """See `Store.note_announced`."""
        now = _text(utc_now())
        query = """
            UPDATE sessions SET announced = announced + 1, announced_at = ?
            WHERE session_id = ? AND epoch = ? AND end_time IS NULL RETURNING session_id, announced
            """

        def note(db: sqlite3.Connection) -> list[str]:
            rows = [db.execute(query, (now, it.session_id, it.epoch)).fetchone() for it in announced]
            return [row["session_id"] for row in rows if row and row["announced"] >= MOST_ANNOUNCEMENTS]

        return await self._run(note)

    async def close(self) -> None:
        """See `Store.close`."""
        await self._database.close()


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file this is, on which device; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _json(value: dict[str, Any]) -> str:
    return msgspec.json.encode(value).decode()


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _append(db: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert the events, and take their end from the sessions for which they come late."""
    db.executemany(
        """
        INSERT INTO events (event_id, session_id, turn_id, role, content, timestamp, metadata)
        VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING
        """,
        rows,
    )
    db.executemany(
        """
        UPDATE sessions
        SET end_time = NULL, duration = NULL, final_summary = NULL, announced = 0, announced_at = NULL
        WHERE session_id = ? AND end_time < ?
        """,
        [(session_id, moment) for _, session_id, _, _, _, moment, _ in rows],
    )


def _session(row: sqlite3.Row) -> Session:
    fields = {name: row[name] for name in Session.__struct_fields__}
    return Session(
        **fields | {"start_time": datetime.fromisoformat(row["start_time"]), "end_time": _moment(row["end_time"])}
    )


def _listed(row: sqlite3.Row) -> SessionListed:
    fields = {name: row[name] for name in SessionListed.__struct_fields__}
    return SessionListed(
        **fields | {"start_time": datetime.fromisoformat(row["start_time"]), "end_time": _moment(row["end_time"])}
    )


def _event(row: sqlite3.Row) -> Event:
    fields = {name: row[name] for name in row.keys()}  # noqa: SIM118 - a Row iterates its values
    return Event(
        **fields
        | {"timestamp": datetime.fromisoformat(row["timestamp"]), "metadata": msgspec.json.decode(row["metadata"])}
    )
