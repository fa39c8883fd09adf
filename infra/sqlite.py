"""An SQLite file: opened, migrated, and used without the event loop ever waiting for the disk."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

T = TypeVar("T")


class Database:
    """A connection on a thread of its own, and one for long readings. Every piece of work is one transaction.

    Failures are raised as the `sqlite3.Error` they are: only the caller knows what they mean.
    """

    def __init__(self, connection: sqlite3.Connection, thread: ThreadPoolExecutor, reader: sqlite3.Connection) -> None:
        self._connection = connection
        self._thread = thread
        self._reader = reader
        self._reading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite-reader")

    @classmethod
    async def open(cls, path: Path, schema: Sequence[str], *, busy_seconds: float) -> Self:
        """Open the file, create it if it is missing, and bring its schema up to date.

        `schema` holds the migration scripts in order; the file remembers how many it has had. A transaction waits up
        to `busy_seconds` for one of another process.

        Raises:
            OSError, sqlite3.Error: the folder or file cannot be used.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")
        try:
            connection = await asyncio.get_running_loop().run_in_executor(thread, connect, path, schema, busy_seconds)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(connection, thread, _read_only(path, busy_seconds))

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do this work on the thread, in one transaction: all of it is committed, or none."""

        def in_one_transaction() -> T:
            with self._connection:
                return work(self._connection)

        return await asyncio.get_running_loop().run_in_executor(self._thread, in_one_transaction)

    async def read(self, query: str, values: Sequence[object]) -> list[sqlite3.Row]:
        """The query's rows, read beside what `run` does: however long that takes, only other readings wait for it.

        It sees everything that was committed before it began.
        """

        def rows() -> list[sqlite3.Row]:
            return self._reader.execute(query, values).fetchall()

        return await asyncio.get_running_loop().run_in_executor(self._reading, rows)

    async def close(self) -> None:
        """Finish the work that has been given, then close the file and stop the threads."""
        await asyncio.get_running_loop().run_in_executor(self._reading, self._reader.close)
        self._reading.shutdown(wait=False)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown(wait=False)


def connect(path: Path, schema: Sequence[str], busy_seconds: float) -> sqlite3.Connection:
    """Open the file on this thread; see `Database.open`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)  # what users said is nobody else's to read; SQLite gives its other files the same mode
    db = sqlite3.connect(path, timeout=busy_seconds, check_same_thread=False)
    try:
        db.row_factory = sqlite3.Row
        _write_ahead(db, busy_seconds)
        # FULL: a commit is on disk before anybody hears of it. That is one fsync per transaction, not per row.
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        _migrate(db, schema)
    except BaseException:
        db.close()
        raise
    return db


def _read_only(path: Path, busy_seconds: float) -> sqlite3.Connection:
    reader = sqlite3.connect(path, timeout=busy_seconds, check_same_thread=False)
    reader.row_factory = sqlite3.Row
    reader.execute("PRAGMA query_only = ON")
    return reader


def _write_ahead(db: sqlite3.Connection, busy_seconds: float) -> None:
    """Turn on the write-ahead log. SQLite does not wait for its lock: two first openings at once would collide."""
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _migrate(db: sqlite3.Connection, schema: Sequence[str]) -> None:
    """Apply the scripts that this database has not had, in order; `user_version` is the number of the last one."""
    db.execute("BEGIN IMMEDIATE")  # first: of two processes that start at once, only one may apply a script
    with db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        for number, script in enumerate(schema, 1):
            if number > version:
                for statement in _statements(script):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {number}")


def _statements(script: str) -> Iterator[str]:
    """Cut a script into statements. `executescript` would commit our transaction first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
