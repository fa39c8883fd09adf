"""The spool: a file in DATA_DIR that keeps what waits for a store or queue that is down, should the process die.

Each courier has a `Shelf` in it. In good weather nothing is written here.
"""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from infra.settings import SettingsError
from infra.sqlite import Database

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
BUSY_SECONDS = 1.0
"""How long a write waits for somebody who looks into the file with a tool of their own."""


class Spool:
    """Rows by courier and number, in one file that one process has to itself. Open it with `Spool.open`.

    A write that returns is on the disk: it survives the process, and a power cut.
    """

    def __init__(self, database: Database, lock: int) -> None:
        self._database = database
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
            return cls(await Database.open(path, SCHEMA, busy_seconds=BUSY_SECONDS), lock)
        except (OSError, sqlite3.Error) as error:
            os.close(lock)
            raise SettingsError(f"DATA_DIR: cannot use {path}: {error}") from error

    async def load(self, courier: str) -> list[tuple[int, bytes]]:
        """The courier's rows in the order of their numbers.

        Raises:
            sqlite3.Error: they cannot be read.
        """
        query = "SELECT number, payload FROM spool WHERE courier = ? ORDER BY number"
        return await self._database.run(lambda db: [(row[0], row[1]) for row in db.execute(query, (courier,))])

    async def change(self, courier: str, add: Iterable[tuple[int, bytes]], drop: Sequence[int]) -> None:
        """Write some of the courier's rows and delete others, in one step. What is so already is passed over.

        `add` is walked through on the database's thread.

        Raises:
            sqlite3.Error: nothing was changed.
        """

        def work(db: sqlite3.Connection) -> None:
            db.executemany("INSERT OR IGNORE INTO spool VALUES (?, ?, ?)", ((courier, *row) for row in add))
            db.executemany("DELETE FROM spool WHERE courier = ? AND number = ?", ((courier, n) for n in drop))

        await self._database.run(work)

    async def close(self) -> None:
        """Let go of the file: the next process may have it."""
        await self._database.close()
        os.close(self._lock)


def _claim(path: Path) -> int:
    """Make the file, for its owner's eyes only, and take the lock beside it, which ends with the process.

    Not on the file itself: SQLite's own locks would get lost with a handle of ours.
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
