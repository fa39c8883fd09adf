"""Time that goes by between two announcements of a session's end."""

import sqlite3
from contextlib import closing
from pathlib import Path


def long_ago(database: Path) -> None:
    """Have all that was announced been announced long ago."""
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("UPDATE sessions SET announced_at = '2020-01-01T00:00:00.000000+00:00' WHERE announced > 0")
