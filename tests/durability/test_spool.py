"""The spool and its shelves: what is kept is on the disk, for the next process and for nobody else."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from chat.durability.shelf import Shelf
from chat.durability.spool import Spool
from chat.metrics import Metrics
from infra.settings import SettingsError
from tests.support.spooled import spooled, until

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import asyncio, sys
from pathlib import Path
from chat.durability.spool import Spool

async def main():
    spool = await Spool.open(Path(sys.argv[1]))
    spool.change("c", [(1, b"one")], [])
    print("held", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def _no_time_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter waits for a disk that does not let us."""
    monkeypatch.setattr("chat.durability.spool.BUSY_SECONDS", 0.01)
    monkeypatch.setattr("chat.durability.shelf.RETRY_SECONDS", 0.01)


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    """A new one, in a folder that is not there yet."""
    opened = await Spool.open(tmp_path / "data")
    yield opened
    await opened.close()


@pytest.fixture
def folder(spool: Spool, tmp_path: Path) -> Path:
    """Where it is."""
    return tmp_path / "data"


def text(value: str) -> bytes:
    """Refuses half of a surrogate pair."""
    return value.encode()


def known(payload: bytes) -> str:
    """What this version can read."""
    if payload.startswith(b"v2"):
        raise ValueError("of a later version")
    return payload.decode()


def shelf_in(spool: Spool, metrics: Metrics | None = None) -> Shelf[str]:
    return Shelf(spool, "c", encode=text, decode=known, metrics=metrics or Metrics())


@pytest.fixture
async def shelf(spool: Spool) -> AsyncIterator[Shelf[str]]:
    """A shelf of texts, opened."""
    made = shelf_in(spool)
    await made.open()
    yield made
    await made.close()


@contextmanager
def in_somebody_elses_hands(folder: Path) -> Iterator[None]:
    """Another connection writes to the file: no write of ours gets through."""
    with closing(sqlite3.connect(folder / "spool.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.rollback()


async def test_rows_survive_in_order_and_apart(spool: Spool, tmp_path: Path) -> None:
    """Each courier finds its own rows, by number, whenever they were written; what was dropped is gone."""
    spool.change("a", [(2, b"two"), (10, b"ten")], [])
    spool.change("b", [(2, b"other")], [])
    spool.change("a", [(1, b"one"), (3, b"three")], [2])
    await spool.close()
    again = await Spool.open(tmp_path / "data")
    assert again.load("a") == [(1, b"one"), (3, b"three"), (10, b"ten")]
    assert again.load("b") == [(2, b"other")]
    assert again.load("c") == []
    spool._connection, spool._lock = again._connection, again._lock  # for the fixture to close


async def test_a_change_made_twice_is_made_once(spool: Spool) -> None:
    """Writing the same thing twice is harmless: the writer may not know whether the first attempt succeeded."""
    for _ in range(2):
        spool.change("a", [(1, b"one"), (2, b"two")], [1])
    assert spool.load("a") == [(2, b"two")]


def modes_in(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}


@pytest.mark.parametrize("gone", [[2, 3], [1, 3], [1, 2, 5], [1, 2, 4, 6], [1, 6], [1, 5, 3], [3, 1, 2]])
async def test_only_what_is_dropped_goes(spool: Spool, gone: list[int]) -> None:
    """Whether or not its numbers follow each other, and in whatever order they come."""
    spool.change("c", [(number, b"") for number in range(1, 7)], [])
    spool.change("c", [], gone)
    assert [number for number, _ in spool.load("c")] == [number for number in range(1, 7) if number not in gone]


async def test_nobody_else_may_read_it(spool: Spool, folder: Path) -> None:
    """It holds what people said: every file of it is its owner's alone, whatever the mask, and stays so."""
    spool.change("a", [(1, b"one")], [])
    modes = modes_in(folder)
    assert modes.keys() >= {"spool.db", "spool.lock", "spool.db-wal"}
    assert set(modes.values()) == {0o600}


@pytest.mark.usefixtures("spool")
async def test_a_second_owner_is_refused(tmp_path: Path) -> None:
    """In one line that names the setting and the folder."""
    with pytest.raises(SettingsError) as refused:
        await Spool.open(tmp_path / "data")
    assert str(refused.value) == f"DATA_DIR: {tmp_path / 'data'} is in use by another container; give each its own"


@contextmanager
def a_process_that_holds_it(folder: Path) -> Iterator[None]:
    """Another process opens the spool and writes a row; it is killed when the block is left."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'realtime'}{os.pathsep}{ROOT}"}
    with subprocess.Popen([sys.executable, "-c", HOLD, folder], env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"held\n"
            yield
        finally:
            process.send_signal(signal.SIGKILL)


async def test_a_killed_process_leaves_the_file_free(tmp_path: Path) -> None:
    """While it lives nobody else gets in; after its kill -9 anybody does, and finds what it wrote."""
    with a_process_that_holds_it(tmp_path), pytest.raises(SettingsError):
        await Spool.open(tmp_path)
    spool = await Spool.open(tmp_path)
    assert spool.load("c") == [(1, b"one")]
    await spool.close()


def _a_file_in_the_way(folder: Path) -> None:
    folder.write_text("I am a file.")


def _a_folder_in_the_way(folder: Path) -> None:
    (folder / "spool.db").mkdir(parents=True)


def _not_a_database(folder: Path) -> None:
    folder.mkdir()
    (folder / "spool.db").write_text("I am no database. " * 100)


def _clear_the_way(folder: Path) -> None:
    if folder.is_file():
        folder.unlink()
    elif (path := folder / "spool.db").is_dir():
        path.rmdir()
    else:
        path.unlink()


@pytest.mark.parametrize("spoil", [_a_file_in_the_way, _a_folder_in_the_way, _not_a_database])
async def test_a_place_that_cannot_be_used_is_named(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    """The message names the setting and the file; and once it is mended nothing is in the way."""
    folder = tmp_path / "data"
    spoil(folder)
    with pytest.raises(SettingsError) as refused:
        await Spool.open(folder)
    assert str(refused.value).startswith(f"DATA_DIR: cannot use {folder / 'spool.db'}: ")
    _clear_the_way(folder)
    await (await Spool.open(folder)).close()


async def test_what_is_kept_is_on_the_disk_and_what_is_forgotten_is_not(shelf: Shelf[str], folder: Path) -> None:
    """Both at once; and the depth says how many there are."""
    shelf.keep([(1, "one"), (2, "two"), (3, "three")])
    assert spooled(folder, "c") == [b"one", b"two", b"three"]
    shelf.forget([1, 3, 99])
    assert spooled(folder, "c") == [b"two"]
    assert shelf.depth() == 1


async def test_a_disk_that_lets_us_not_is_told_of_once(spool: Spool, folder: Path) -> None:
    """One line and a count; it is asked again until it lets us, and then all is there but what was forgotten."""
    metrics = Metrics()
    shelf = shelf_in(spool, metrics)
    await shelf.open()

    def failures() -> float:
        return float(metrics.exposition().decode().split("\nrealtime_spool_failures_total ")[1].split()[0])

    shelf.keep([(0, "zero")])
    await until(lambda: spooled(folder, "c") == [b"zero"])
    with capture_logs() as logs:
        with in_somebody_elses_hands(folder):
            shelf.forget([0])
            shelf.keep([(1, "one"), (2, "two")])
            await until(lambda: failures() >= 3)
            shelf.forget([1])
            shelf.keep([(3, "three")])
        await until(lambda: spooled(folder, "c") == [b"two", b"three"])
        shelf.keep([(4, "four")])
        assert spooled(folder, "c")[2:] == [b"four"], "the disk is trusted again"
        await shelf.close()
    assert [(line["log_level"], line["event"]) for line in logs] == [
        ("error", "cannot be written, carrying on from memory")
    ]


async def test_a_full_disk_keeps_what_was_there(shelf: Shelf[str], spool: Spool, folder: Path) -> None:
    """What does not fit is told of by the close, and what was written before stays whole."""
    shelf.keep([(1, "one")])
    await until(lambda: spooled(folder, "c") == [b"one"])
    spool._connection.execute("PRAGMA max_page_count = 1").fetchone()
    shelf.keep([(2, "x" * 100_000)])
    assert await shelf.close() == 1
    assert spooled(folder, "c") == [b"one"]


async def test_a_close_writes_what_the_disk_did_not_take_before(
    shelf: Shelf[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for its next try: the next process finds everything."""
    monkeypatch.setattr("chat.durability.shelf.RETRY_SECONDS", 3600)
    with in_somebody_elses_hands(folder):
        shelf.keep([(1, "one")])
    assert spooled(folder, "c") == []
    assert await shelf.close() == 0
    assert spooled(folder, "c") == [b"one"]


async def test_what_cannot_be_encoded_holds_up_nothing(shelf: Shelf[str], folder: Path) -> None:
    """A row that cannot be written is reported, and the others are written."""
    with capture_logs() as logs:
        shelf.keep([(1, "one"), (2, "\ud83d"), (3, "three")])
        await until(lambda: spooled(folder, "c") == [b"one", b"three"])
    assert [(line["event"], line["number"]) for line in logs] == [("cannot be encoded, not in the spool", 2)]


async def test_the_next_process_is_given_what_was_left(spool: Spool, folder: Path) -> None:
    """Rows are read in order; those it does not understand stay, and are reported."""
    spool.change("c", [(4, b"four"), (7, b"v2"), (5, b"five"), (9, b"v2")], [])
    shelf = shelf_in(spool)
    with capture_logs() as logs:
        assert await shelf.open() == ([(4, "four"), (5, "five")], 9)
    assert [(line["event"], line["number"]) for line in logs] == [
        ("not understood, left in the spool", 7),
        ("not understood, left in the spool", 9),
    ]
    shelf.forget([4, 5])
    await shelf.close()
    assert spooled(folder, "c") == [b"v2", b"v2"]


async def test_the_file_shrinks_again(tmp_path: Path) -> None:
    """What a long outage took of the disk is given back at the next start, and what was left is still there."""
    spool = await Spool.open(tmp_path)
    spool.change("journal", ((number, b"x" * 100_000) for number in range(1, 101)), ())
    spool.change("journal", (), range(1, 100))
    await spool.close()
    large = (tmp_path / "spool.db").stat().st_size
    again = await Spool.open(tmp_path)
    assert again.load("journal") == [(100, b"x" * 100_000)]
    await again.close()
    assert (tmp_path / "spool.db").stat().st_size < large / 10
