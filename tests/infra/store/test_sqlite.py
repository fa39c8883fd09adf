"""The embedded store's own: its file, its schema, and what happens when the file cannot be had."""

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.records import Event
from infra.sqlite import connect
from infra.store import StoreMisconfigured, StoreUnavailable, open_store
from infra.store.sqlite import MIGRATIONS, SqliteStore
from tests.conftest import make_settings

ROOT = Path(__file__).resolve().parents[3]
DAWN = datetime(2025, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
MODES = ("journal_mode", "synchronous")
OPEN_AND_APPEND = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
from infra.records import Event
from infra.store.sqlite import SqliteStore

async def main():
    sys.stdin.readline()
    store = await SqliteStore.open(Path(sys.argv[1]))
    when = datetime.now(UTC)
    opened = await store.open_session("s", "u", at=when, container_id=sys.argv[2])
    await store.append([Event(event_id=sys.argv[2], session_id="s", turn_id="t", role="user", content=sys.argv[2],
                              timestamp=when)])
    await store.close()

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is not there yet, in a folder that is not there yet."""
    return tmp_path / "deep" / "down" / "realtime.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    """A store with session s open."""
    opened = await SqliteStore.open(path)
    await opened.open_session("s", "u", at=DAWN, container_id="box")
    yield opened
    await opened.close()


def event(content: str) -> Event:
    return Event(event_id=content, session_id="s", turn_id="t", role="user", content=content, timestamp=DAWN)


OLD_MODES = {"one": "analytical", "two": "casual", "none": None}


def contents(db: sqlite3.Connection) -> list[Any]:
    """Every row with its columns by name, and every index, of sessions and events."""
    rows = [dict(row) for table in ("sessions", "events") for row in db.execute(f"SELECT * FROM {table}")]
    query = "SELECT name, sql FROM sqlite_schema WHERE type = 'index' ORDER BY name"
    return [*rows, *(tuple(row) for row in db.execute(query))]


def columns(path: Path, table: str) -> list[tuple[str, str, bool]]:
    with closing(sqlite3.connect(path)) as db:
        return [(name, kind, bool(key)) for _, name, kind, _, _, key in db.execute(f"PRAGMA table_info({table})")]


async def test_what_was_written_survives(path: Path) -> None:
    """A store that is closed and opened again knows everything, and goes on from there."""
    store = await SqliteStore.open(path)
    await store.open_session("s", "u", at=DAWN, container_id="box")
    await store.append([event("one"), event("two")])
    row, events = await store.session("s"), await store.events("s", limit=9)
    await store.close()
    again = await SqliteStore.open(path)
    assert (await again.session("s"), await again.events("s", limit=9)) == (row, events)
    await again.append([event("one"), event("three")])
    (three,) = await again.events("s", after=events[-1].id, limit=9)
    assert three.content == "three"
    await again.close()


async def test_the_settings_name_the_folder(tmp_path: Path) -> None:
    """The file is made under DATA_DIR, and the folder with it."""
    store = await open_store(make_settings(tmp_path / "data"))
    await store.ping()
    await store.close()
    assert (tmp_path / "data" / "realtime.db").is_file()


async def test_a_second_instance_sees_what_the_first_committed(store: SqliteStore, path: Path) -> None:
    """The function reads and ends what the container wrote, and the container sees the end."""
    other = await SqliteStore.open(path)
    await store.append([event("hello")])
    assert [each.content for each in await other.events("s", limit=9)] == ["hello"]
    assert await other.finish_session("s", 1, ended_at=DAWN + timedelta(seconds=9), summary="All said.")
    row = await store.session("s")
    assert row
    assert (row.duration, row.final_summary) == (9, "All said.")
    await other.close()


async def test_many_instances_at_once_make_one_file(path: Path) -> None:
    """Whoever comes first applies the migrations, once; the others wait and find them applied."""
    stores = await asyncio.gather(*(SqliteStore.open(path) for _ in range(8)))
    opened = await asyncio.gather(
        *(each.open_session("s", "u", at=DAWN, container_id=str(n)) for n, each in enumerate(stores))
    )
    assert sorted(session.epoch for session in opened) == list(range(1, 9))
    for each in stores:
        await each.close()


async def test_an_opening_waits_for_another_that_is_half_way(path: Path) -> None:
    """Whoever meets a new file while its maker writes to it waits, as for any other transaction."""
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as maker:
        maker.execute("BEGIN IMMEDIATE")
        opening = asyncio.create_task(SqliteStore.open(path))
        await asyncio.wait([opening], timeout=0.1)
        maker.execute("COMMIT")
        store = await opening
    await store.ping()
    await store.close()


def test_two_processes_at_once_make_one_file(path: Path) -> None:
    """A container and a function that start together on an empty folder both work, and both are heard."""
    command = [sys.executable, "-W", "error", "-c", OPEN_AND_APPEND, str(path)]
    processes = [
        subprocess.Popen([*command, name], cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=30)[1] for process in processes] == ["", ""]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT epoch FROM sessions").fetchall() == [(2,)]
        assert sorted(db.execute("SELECT content FROM events")) == [("one",), ("two",)]


def _a_file_in_the_way(path: Path) -> None:
    path.parent.parent.mkdir()
    path.parent.write_text("I am a file.")


def _a_folder_in_the_way(path: Path) -> None:
    path.mkdir(parents=True)


def _not_a_database(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("I am no database. " * 100)


def _somebody_elses_tables(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE sessions (theirs TEXT)")


@pytest.mark.parametrize("spoil", [_a_file_in_the_way, _a_folder_in_the_way, _not_a_database, _somebody_elses_tables])
async def test_a_place_that_cannot_be_used_is_named(path: Path, spoil: Callable[[Path], None]) -> None:
    """The message names DATA_DIR and the file, so that somebody can act."""
    spoil(path)
    with pytest.raises(StoreMisconfigured) as raised:
        await SqliteStore.open(path)
    assert str(raised.value).startswith(f"DATA_DIR: cannot use {path}: ")


async def test_an_unwritable_folder_is_named() -> None:
    """As a container with a read-only volume would meet it; in /proc not even root can make a folder."""
    with pytest.raises(StoreMisconfigured, match="DATA_DIR: cannot use "):
        await SqliteStore.open(Path("/proc/data/realtime.db"))


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.store.sqlite.BUSY_SECONDS", 0.02)


@pytest.mark.usefixtures("_impatient")
async def test_a_locked_file_is_unavailable_and_comes_back(path: Path) -> None:
    """Writing fails as worth a retry, reading goes on, and the retry stores what it should, once."""
    store = await SqliteStore.open(path)
    await store.open_session("s", "u", at=DAWN, container_id="box")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            await store.append([event("hello")])
        assert await store.events("s", limit=9) == []
        await store.ping()
        other.execute("ROLLBACK")
    await store.append([event("hello")])
    assert [each.content for each in await store.events("s", limit=9)] == ["hello"]
    await store.close()


async def test_a_lock_that_is_let_go_is_waited_for(store: SqliteStore, path: Path) -> None:
    """Another process's short transaction is no failure."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(store.append([event("hello")]))
        await asyncio.sleep(0.05)
        assert not writing.done()
        other.execute("COMMIT")
        await writing
    assert len(await store.events("s", limit=9)) == 1


async def test_a_long_reading_holds_up_no_opening(store: SqliteStore) -> None:
    """What a tool or a page reads takes its time beside openings and writes, not before them."""
    for_ever = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n) SELECT max(n) FROM n"
    reading = asyncio.create_task(store._read(for_ever))
    figures = asyncio.create_task(store.user_stats("u"))
    await store.open_session("another", "u", at=DAWN, container_id="box")
    await store.append([event("said")])
    assert not reading.done()
    assert not figures.done()
    store._database._reader.interrupt()
    with pytest.raises(StoreUnavailable, match="interrupted"):
        await reading
    assert (await figures).sessions == 2


async def test_lost_tables_are_no_health(store: SqliteStore, path: Path) -> None:
    """An open handle on a schema that somebody dropped does not answer as if nothing were wrong."""
    await store.ping()
    with closing(sqlite3.connect(path)) as db:
        db.executescript("DROP TABLE events; DROP TABLE sessions;")
    with pytest.raises(StoreUnavailable):
        await store.ping()


def take_away(path: Path, how: str) -> None:
    """Move the file's folder, delete the file, or put another in its place."""
    if how == "moved":
        path.parent.rename(path.parent.with_name("elsewhere"))
    else:
        path.unlink()
    if how == "replaced":
        path.touch()


@pytest.mark.parametrize("how", ["moved", "deleted", "replaced"])
async def test_a_file_that_is_gone_is_not_healthy(store: SqliteStore, path: Path, how: str) -> None:
    """What is still open could be written to, and nobody would ever read it."""
    await store.ping()
    take_away(path, how)
    with pytest.raises(StoreUnavailable, match="was moved or deleted"):
        await store.ping()


async def test_the_schema_has_the_columns_that_were_promised(store: SqliteStore, path: Path) -> None:
    """Whoever reads the file with a tool of their own finds them by these names."""
    assert columns(path, "sessions") == [
        ("session_id", "TEXT", True),
        ("user_id", "TEXT", False),
        ("start_time", "TEXT", False),
        ("end_time", "TEXT", False),
        ("duration", "INTEGER", False),
        ("final_summary", "TEXT", False),
        ("epoch", "INTEGER", False),
        ("container_id", "TEXT", False),
        ("announced", "INTEGER", False),
        ("announced_at", "TEXT", False),
        ("mode", "TEXT", False),
        ("input_tokens", "INTEGER", False),
        ("output_tokens", "INTEGER", False),
        ("cost", "REAL", False),
        ("title", "TEXT", False),
    ]
    assert columns(path, "events") == [
        ("id", "INTEGER", True),
        ("event_id", "TEXT", False),
        ("session_id", "TEXT", False),
        ("turn_id", "TEXT", False),
        ("role", "TEXT", False),
        ("content", "TEXT", False),
        ("timestamp", "TEXT", False),
        ("metadata", "TEXT", False),
    ]


async def test_events_go_with_their_session(store: SqliteStore, path: Path) -> None:
    """Whoever deletes a session's row deletes what was said in it."""
    await store.append([event("hello")])
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("DELETE FROM sessions")
    assert await store.events("s", limit=9) == []


async def test_a_commit_is_on_the_disk(store: SqliteStore) -> None:
    """What `saved` tells of survives a power cut: the log is written through at every commit."""
    modes = await store._run(lambda db: [db.execute(f"PRAGMA {name}").fetchone()[0] for name in MODES])
    assert modes == ["wal", 2]


@pytest.mark.parametrize("added", [[], ["added_since TEXT", "added_too INTEGER NOT NULL DEFAULT 0"]])
async def test_a_file_from_before_modes_had_any_name_keeps_everything(path: Path, added: list[str]) -> None:
    """Every row, value, event and index is as before, whatever columns were added since, and any mode is taken."""
    before = [file.read_text() for file in sorted(MIGRATIONS.glob("*.sql")) if file.name < "0004"]
    with closing(connect(path, before, 1)) as db, db:
        for column in added:
            db.execute(f"ALTER TABLE sessions ADD COLUMN {column}")
        modes = [(name, mode, f"2025-01-0{day}") for day, (name, mode) in enumerate(OLD_MODES.items(), 1)]
        db.executemany("INSERT INTO sessions (session_id, mode, start_time) VALUES (?, ?, ?)", modes)
        db.execute(
            "UPDATE sessions SET end_time = '2025-02-01', duration = 9, final_summary = 'x', epoch = 3, user_id = 'u'"
        )
        db.executemany(
            """INSERT INTO events (event_id, session_id, turn_id, role, content, timestamp, metadata)
            VALUES (?, ?, 't', 'user', 'hello', '2025-01-01', '{}')""",
            [(f"e{name}", name) for name in OLD_MODES],
        )
        with pytest.raises(sqlite3.IntegrityError):
            db.execute("UPDATE sessions SET mode = 'support'")
        was = contents(db)
    store = await SqliteStore.open(path)
    await store.set_modes({"one": "support"})
    await store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.row_factory = sqlite3.Row
        changed = db.execute("UPDATE sessions SET mode = 'analytical' WHERE mode = 'support' RETURNING session_id")
        assert [row["session_id"] for row in changed] == ["one"]
        new = {"input_tokens": None, "output_tokens": None, "cost": None, "title": None}
        now = [
            {name: value for name, value in each.items() if (name, value) not in new.items()}
            if isinstance(each, dict)
            else each
            for each in contents(db)
        ]
        assert [each for each in now if "sessions_by_user" not in each] == [
            each for each in was if "sessions_by_user" not in each
        ]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("DELETE FROM sessions WHERE session_id = 'one'")
        assert [row["session_id"] for row in db.execute("SELECT session_id FROM events ORDER BY 1")] == ["none", "two"]


async def test_migrations_are_numbered_and_applied_to_the_last(store: SqliteStore, path: Path) -> None:
    """Without gaps, so that the number in the file says which it has seen."""
    numbers = sorted(int(file.name.split("_")[0]) for file in MIGRATIONS.glob("*.sql"))
    assert numbers == list(range(1, len(numbers) + 1))
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (numbers[-1],)


async def test_nobody_else_may_read_it(path: Path) -> None:
    """What users said is readable by its owner alone, in the write-ahead log as well."""
    store = await SqliteStore.open(path)
    await store.open_session("s", "u", at=DAWN, container_id="box")
    assert {file.name: file.stat().st_mode & 0o077 for file in path.parent.iterdir()} == dict.fromkeys(
        ("realtime.db", "realtime.db-shm", "realtime.db-wal"), 0
    )
    await store.close()
