"""The spool: a file in DATA_DIR that keeps what waits for the store or the queue, should the process die.

Each courier has a `Shelf` in it.
"""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from infra.settings import SettingsError
from infra.sqlite import connect

SCHEMA = (
    """
    CREATE TABLE spool (
        courier TEXT NOT NULL,
        number INTEGER NOT NULL,
        payload BLOB NOT NULL,
        PRIMARY KEY (courier, number)
    ) WITHOUT ROWID;
    """,
)
MOST_FREE_BYTES = 8 * 1024 * 1024
"""How much of the file may be empty before it is made smaller, at the next start."""
BUSY_SECONDS = 0.1
"""How long a write, and with it the event loop, waits for another program that has the file open."""


class Spool:
    """Rows by courier and number, in one file that one process has to itself. Open it with `Spool.open`.

    A write that has returned survives the process, however it dies. It takes about ten microseconds, so it may run on
    the event loop: the operating system has the data and writes it to the disk later. A power cut can lose the last
    writes.
    """

    def __init__(self, connection: sqlite3.Connection, lock: int) -> None:
        self._connection = connection
        self._lock = lock

    @classmethod
    async def open(cls, folder: Path) -> Self:
        """Open the file in this folder, made if missing, for this process alone.

        Raises:
            SettingsError: the folder or file cannot be used, or another process that lives does.
        """
        path = folder / "spool.db"
        try:
            lock = await asyncio.to_thread(_claim, path)
        except BlockingIOError:
            raise SettingsError(f"DATA_DIR: {folder} is in use by another container; give each its own") from None
        except OSError as error:
            raise SettingsError(f"DATA_DIR: cannot use {path}: {error}") from error
        try:
            connection = await asyncio.to_thread(connect, path, SCHEMA, BUSY_SECONDS)
            connection.execute("PRAGMA synchronous = OFF")
            _shrink(connection)
            return cls(connection, lock)
        except (OSError, sqlite3.Error) as error:
            os.close(lock)
            raise SettingsError(f"DATA_DIR: cannot use {path}: {error}") from error

    def load(self, courier: str, after: int = 0, limit: int = -1) -> list[tuple[int, bytes]]:
        """The courier's rows with a number above `after`, in order, and at most `limit` of them if it is given.

        Raises:
            sqlite3.Error: they cannot be read.
        """
        query = "SELECT number, payload FROM spool WHERE courier = ? AND number > ? ORDER BY number LIMIT ?"
        return [(row[0], row[1]) for row in self._connection.execute(query, (courier, after, limit))]

    def change(self, courier: str, add: Iterable[tuple[int, bytes]], drop: Sequence[int]) -> None:
        """Write some of the courier's rows and delete others, in one step. What is so already is passed over.

        Raises:
            sqlite3.Error: nothing was changed.
        """
        with self._connection as db:
            db.executemany("INSERT OR IGNORE INTO spool VALUES (?, ?, ?)", ((courier, *row) for row in add))
            first, last = min(drop, default=0), max(drop, default=0)
            if drop and last - first == len(drop) - 1:  # they follow each other, as those of a batch mostly do
                query = "DELETE FROM spool WHERE courier = ? AND number BETWEEN ? AND ?"
                db.execute(query, (courier, first, last))
            else:
                db.executemany("DELETE FROM spool WHERE courier = ? AND number = ?", ((courier, n) for n in drop))

    async def close(self) -> None:
        """Let go of the file: the next process may have it."""
        self._connection.close()
        os.close(self._lock)


def _shrink(connection: sqlite3.Connection) -> None:
    """Give back what an earlier trouble took of the disk: SQLite keeps the pages of rows that are gone."""
    (free,), (size,) = (connection.execute(f"PRAGMA {it}").fetchone() for it in ("freelist_count", "page_size"))
    if free * size > MOST_FREE_BYTES:
        connection.execute("VACUUM")


def _claim(path: Path) -> int:
    """Create the file, readable by its owner alone, and take the lock beside it, which ends with the process.

    The lock is not on the file itself: closing our handle would release SQLite's own locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.touch(mode=0o600)
        path.chmod(0o600)
    except BaseException:
        os.close(lock)
        raise
    return lock
