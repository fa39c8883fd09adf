"""The embedded store: one SQLite file, no account, no network.

One connection on one thread of its own, so the event loop never waits for the disk and every verb is a
transaction by construction. The write-ahead log lets the function's process read and write the same file.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from infra.records import Event, Mode, Session, UserStats
from infra.store.base import NotYours, StoreMisconfigured, StoreRefused, StoreUnavailable, storable

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 5.0
"""How long a write waits for another process's transaction before it counts as unavailable."""

T = TypeVar("T")


class SqliteStore:
    """A `Store` in one file. Open it with `SqliteStore.open`."""

    def __init__(self, connection: sqlite3.Connection, thread: ThreadPoolExecutor) -> None:
        self._connection = connection
        self._thread = thread

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open the file, made if missing, and bring its schema up to date.

        Raises:
            StoreMisconfigured: the folder or file cannot be written, or is not ours to use.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")
        try:
            connection = await asyncio.get_running_loop().run_in_executor(thread, _connect, path)
        except (OSError, sqlite3.Error) as error:
            thread.shutdown(wait=False)
            raise StoreMisconfigured(f"DATA_DIR: cannot use {path}: {error}") from error
        return cls(connection, thread)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def in_one_transaction() -> T:
            with self._connection:
                return work(self._connection)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, in_one_transaction)
        except (sqlite3.IntegrityError, sqlite3.DataError, UnicodeEncodeError) as error:
            raise StoreRefused(str(error)) from error
        except sqlite3.Error as error:
            raise StoreUnavailable(f"SQLite: {error}") from error

    async def ping(self) -> None:
        """See `Store.ping`. Reads a table: an open handle on a deleted schema must not pass for health."""
        await self._run(lambda db: db.execute("SELECT 1 FROM sessions LIMIT 1").fetchone())

    async def open_session(self, session_id: str, user_id: str, *, at: datetime, container_id: str) -> Session:
        """See `Store.open_session`."""
        row = await self._run(
            lambda db: db.execute(
                """
                INSERT INTO sessions (session_id, user_id, start_time, container_id) VALUES (?, ?, ?, ?)
                ON CONFLICT (session_id) DO UPDATE SET
                    epoch = epoch + 1, container_id = excluded.container_id,
                    end_time = NULL, duration = NULL, final_summary = NULL
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

    async def set_modes(self, modes: Mapping[str, Mode]) -> None:
        """See `Store.set_modes`."""
        rows = [(mode, session_id) for session_id, mode in modes.items()]
        await self._run(lambda db: db.executemany("UPDATE sessions SET mode = ? WHERE session_id = ?", rows))

    async def append(self, events: Sequence[Event]) -> None:
        """See `Store.append`."""
        await self._run(
            lambda db: db.executemany(
                """
                INSERT INTO events (event_id, session_id, turn_id, role, content, timestamp, metadata)
                VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING
                """,
                [
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
                ],
            )
        )

    async def events(self, session_id: str, *, after: int = 0, limit: int) -> list[Event]:
        """See `Store.events`."""
        rows = await self._run(
            lambda db: db.execute(
                "SELECT * FROM events WHERE session_id = ? AND id > ? ORDER BY id LIMIT ?", (session_id, after, limit)
            ).fetchall()
        )
        return [_event(row) for row in rows]

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
                        duration = max(0, CAST(round((julianday(?) - julianday(start_time)) * 86400) AS INTEGER))
                    WHERE session_id = ? AND epoch = ? AND end_time IS NULL
                    """,
                    (end, storable(summary), end, session_id, epoch),
                ).rowcount
                == 1
            )
        )

    async def user_stats(self, user_id: str) -> UserStats:
        """See `Store.user_stats`."""
        row = await self._run(
            lambda db: db.execute(
                """
                WITH seen AS (
                    SELECT s.start_time,
                        (SELECT count(*) FROM events e WHERE e.session_id = s.session_id AND e.role = 'user') AS said,
                        coalesce(s.end_time, (SELECT max(e.timestamp) FROM events e WHERE e.session_id = s.session_id),
                                 s.start_time) AS last_time
                    FROM sessions s WHERE s.user_id = ?
                )
                SELECT count(*) AS sessions, coalesce(sum(said), 0) AS messages, max(last_time) AS last_seen,
                    coalesce(sum(max(0, julianday(last_time) - julianday(start_time))), 0.0) * 1440 AS minutes
                FROM seen
                """,
                (user_id,),
            ).fetchone()
        )
        return UserStats(
            sessions=row["sessions"],
            messages=row["messages"],
            minutes=round(row["minutes"], 1),
            last_seen=row["last_seen"] and datetime.fromisoformat(row["last_seen"]),
        )

    async def close(self) -> None:
        """See `Store.close`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown(wait=False)


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
    db.row_factory = sqlite3.Row
    _write_ahead(db)
    # FULL: a commit is on the disk before `saved` is told; one fsync a batch, not one an event.
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    _migrate(db)
    return db


def _write_ahead(db: sqlite3.Connection) -> None:
    """Turn the write-ahead log on. SQLite does not wait for a lock here, so that two first openings would collide."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _migrate(db: sqlite3.Connection) -> None:
    """Apply, in order, the numbered files this database has not seen; `user_version` is the last one applied."""
    db.execute("BEGIN IMMEDIATE")  # before the look: two processes starting at once must not apply a file twice
    with db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        for file in sorted(MIGRATIONS.glob("*.sql")):
            number = int(file.name.split("_")[0])
            if number > version:
                for statement in _statements(file.read_text()):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {number}")


def _statements(script: str) -> Iterator[str]:
    """Cut a script into statements. `executescript` would commit the transaction we hold."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _json(value: dict[str, Any]) -> str:
    return msgspec.json.encode(value).decode()


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _session(row: sqlite3.Row) -> Session:
    fields = {name: row[name] for name in row.keys()}  # noqa: SIM118 - a Row iterates its values
    return Session(
        **fields | {"start_time": datetime.fromisoformat(row["start_time"]), "end_time": _moment(row["end_time"])}
    )


def _event(row: sqlite3.Row) -> Event:
    fields = {name: row[name] for name in row.keys()}  # noqa: SIM118 - a Row iterates its values
    return Event(
        **fields
        | {"timestamp": datetime.fromisoformat(row["timestamp"]), "metadata": msgspec.json.decode(row["metadata"])}
    )
