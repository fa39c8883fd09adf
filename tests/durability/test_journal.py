"""The journal: every event reaches the store once and in order, whatever the store goes through meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import pytest
from structlog.testing import capture_logs

from chat.durability.journal import Journal
from chat.durability.spool import Spool
from chat.metrics import Metrics
from infra.records import Event
from infra.store import Store, StoreUnavailable
from infra.store.sqlite import SqliteStore
from tests.support.flaky import FlakyStore
from tests.support.spooled import die, spooled, until

DAWN = datetime(2025, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
DOWN = StoreUnavailable("it rains")
PATIENCE = 5.0
"""Seconds a test waits for what should happen at once before it fails."""


@pytest.fixture(autouse=True)
def _no_time_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real waits, a thousand times as fast."""
    monkeypatch.setattr("chat.durability.courier.FIRST_RETRY_SECONDS", 0.0001)
    monkeypatch.setattr("chat.durability.courier.MOST_RETRY_SECONDS", 0.005)
    monkeypatch.setattr("chat.durability.journal.GATHER_SECONDS", 0.0005)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FlakyStore]:
    """A real store behind bad weather, with two sessions open."""
    sqlite = await SqliteStore.open(tmp_path / "journal.db")
    for session_id in ("s", "s2"):
        await sqlite.open_session(session_id, "u", at=DAWN, container_id="box")
    flaky = FlakyStore(sqlite)
    yield flaky
    await flaky.close()


@pytest.fixture
async def journal(store: FlakyStore) -> AsyncIterator[Journal]:
    """A journal that writes to it."""
    opened = Journal(store, Metrics(), max_events=3)
    opened.start()
    yield opened
    await opened.close(within=0)


class Told:
    """Whom `saved` is told to."""

    def __init__(self) -> None:
        self.through: list[int] = []

    def __call__(self, through: int) -> None:
        """Keep it."""
        self.through.append(through)


def event(content: str, session_id: str = "s", event_id: str | None = None) -> Event:
    return Event(
        event_id=event_id or f"{session_id}/{content}",
        session_id=session_id,
        turn_id="t",
        role="user",
        content=content,
        timestamp=DAWN,
    )


async def settle(journal: Journal) -> None:
    async with asyncio.timeout(PATIENCE):
        await journal.settled()


async def stored(store: Store, session_id: str = "s") -> list[str]:
    return [each.content for each in await store.events(session_id, limit=2000)]


async def test_saved_is_told_after_the_commit(store: FlakyStore, journal: Journal) -> None:
    """While the store is writing nothing is announced; then the batch's highest position, once."""
    told, gate = Told(), asyncio.Event()
    store.weather.append(gate)
    for n in (1, 2, 3):
        journal.record(event(str(n)), 10 * n, told)
    await asyncio.wait_for(store.reached.wait(), PATIENCE)
    assert told.through == []
    gate.set()
    await settle(journal)
    assert told.through == [30]
    assert await stored(store) == ["1", "2", "3"]
    assert len(store.appended) == 1


async def test_nothing_is_told_while_the_store_is_down(store: FlakyStore, journal: Journal) -> None:
    """Only the attempt that succeeds is announced."""
    told, gate = Told(), asyncio.Event()
    store.weather.extend([DOWN, DOWN, gate])
    journal.record(event("1"), 1, told)
    while len(store.appended) < 3:
        store.reached.clear()
        await asyncio.wait_for(store.reached.wait(), PATIENCE)
    assert told.through == []
    gate.set()
    await settle(journal)
    assert told.through == [1]


async def test_each_session_is_told_its_own_position(store: FlakyStore, journal: Journal) -> None:
    """Two sessions in one batch hear of their own events alone."""
    one, two = Told(), Told()
    journal.record(event("1"), 7, one)
    journal.record(event("1", "s2"), 3, two)
    journal.record(event("2"), 8, one)
    await settle(journal)
    assert len(store.appended) == 1
    assert (one.through, two.through) == ([8], [3])


async def test_order_is_kept_over_failures(store: FlakyStore, journal: Journal) -> None:
    """What is recorded while earlier events are tried again and again comes after them, in both sessions."""
    store.weather.extend([DOWN, None, DOWN, DOWN, ValueError("a bug"), None, DOWN])
    for n in range(60):
        journal.record(event(f"{n:02}", "s" if n % 3 else "s2"), n, Told())
        if n % 20 == 19:  # the next ones come while these are being tried
            store.reached.clear()
            await asyncio.wait_for(store.reached.wait(), PATIENCE)
    await settle(journal)
    assert len(store.appended) > 4, "there was no bad weather"
    store.weather.clear()
    assert await stored(store) == [f"{n:02}" for n in range(60) if n % 3]
    assert await stored(store, "s2") == [f"{n:02}" for n in range(60) if not n % 3]


async def test_a_batch_whose_answer_got_lost_is_stored_once(store: FlakyStore, journal: Journal) -> None:
    """An insert whose answer was lost is written again, which changes nothing, and announced once."""
    told = Told()
    store.lost_answers.extend([DOWN, DOWN])
    journal.record(event("1"), 1, told)
    journal.record(event("2"), 2, told)
    await settle(journal)
    assert len(store.appended) == 3
    assert await stored(store) == ["1", "2"]
    assert told.through == [2]


@pytest.mark.parametrize("bad", [{0}, {4}, {6}, {0, 6}, {2, 3}, {1, 3, 5}, set(range(7))])
async def test_a_refused_event_is_set_aside_alone(store: FlakyStore, journal: Journal, bad: set[int]) -> None:
    """The rest of its batch is stored in order, and one line says which was not, without its content."""
    told = Told()
    store.poison = {f"poison {n}" for n in bad}
    contents = [f"poison {n}" if n in bad else str(n) for n in range(7)]
    with capture_logs() as logs:
        for n, content in enumerate(contents):
            journal.record(event(content, event_id=f"e{n}"), n, told)
        await settle(journal)
    assert await stored(store) == [str(n) for n in range(7) if n not in bad]
    aside = [line["event_id"] for line in logs if line["event"] == "event set aside"]
    assert aside == [f"e{n}" for n in sorted(bad)]
    assert told.through == [6]


async def test_a_refusal_in_the_rain(store: FlakyStore, journal: Journal) -> None:
    """A store that goes down while a batch is being halved gets the whole of it again, and stores each once."""
    store.poison = {"poison"}
    store.weather.extend([None, None, DOWN])
    for content in ("1", "2", "poison", "3"):
        journal.record(event(content), 1, Told())
    await settle(journal)
    assert await stored(store) == ["1", "2", "3"]


async def test_a_listener_that_raises_stops_nothing(store: FlakyStore, journal: Journal) -> None:
    """The batch is stored, so it is not written again; the other listeners are told, and what follows is stored."""

    def trouble(through: int) -> NoReturn:
        raise RuntimeError(f"told {through}")

    told = Told()
    with capture_logs() as logs:
        journal.record(event("1"), 1, trouble)
        journal.record(event("2"), 2, told)
        await settle(journal)
    assert [line["event"] for line in logs] == ["saved, but could not be told"]
    journal.record(event("3"), 3, told)
    await settle(journal)
    assert told.through == [2, 3]
    assert [len(batch) for batch in store.appended] == [2, 1]


async def test_the_mode_is_stored(store: FlakyStore, journal: Journal) -> None:
    """A mode is written with its session's events and retried like them; the last one counts."""
    store.weather.extend([None, DOWN, None, None])
    journal.record(event("1"), 1, Told())
    journal.record_mode("s", "casual")
    journal.record_mode("s2", "casual")
    journal.record_mode("s", "analytical")
    await settle(journal)
    rows = [await store.session(session_id) for session_id in ("s", "s2")]
    assert [row and row.mode for row in rows] == ["analytical", "casual"]
    assert await stored(store) == ["1"]


async def test_a_mode_alone_is_stored(store: FlakyStore, journal: Journal) -> None:
    """A mode is written without any event."""
    journal.record_mode("s", "casual")
    await settle(journal)
    row = await store.session("s")
    assert row
    assert row.mode == "casual"
    assert store.appended == []


async def test_it_is_full_at_its_bound_and_takes_more(store: FlakyStore, journal: Journal) -> None:
    """A full journal says so, still loses nothing that is recorded, and has room again once the store is back."""
    gate = asyncio.Event()
    store.weather.append(gate)
    for n in range(2):
        journal.record(event(str(n)), n, Told())
    assert not journal.is_full()
    await asyncio.wait_for(store.reached.wait(), PATIENCE)
    journal.record(event("2"), 2, Told())
    assert journal.is_full()
    journal.record(event("3"), 3, Told())
    assert journal.is_full()
    gate.set()
    await settle(journal)
    assert not journal.is_full()
    assert await stored(store) == ["0", "1", "2", "3"]


async def test_settled_waits_for_what_was_recorded_before_it(store: FlakyStore, journal: Journal) -> None:
    """`settled` waits only for earlier events, and not at all where everything is stored."""
    await settle(journal)
    gate = asyncio.Event()
    store.weather.extend([None, gate])
    journal.record(event("1"), 1, Told())
    settled = asyncio.create_task(journal.settled())
    await asyncio.wait_for(store.reached.wait(), PATIENCE)
    journal.record(event("2"), 2, Told())
    await asyncio.wait_for(settled, PATIENCE)
    gate.set()
    await settle(journal)
    assert await stored(store) == ["1", "2"]


async def test_closing_writes_what_is_left(store: FlakyStore, journal: Journal) -> None:
    """A close that comes right after a record, in bad weather, still stores it and has lost nothing."""
    store.weather.append(DOWN)
    journal.record(event("1"), 1, Told())
    assert await journal.close(within=5) == 0
    assert await stored(store) == ["1"]


async def test_closing_says_what_is_lost(store: FlakyStore, journal: Journal) -> None:
    """Where the store stays away, the number of lost events is returned and logged, and the close ends in time."""
    store.weather.append(asyncio.Event())
    with capture_logs() as logs:
        for n in range(2):
            journal.record(event(str(n)), n, Told())
        async with asyncio.timeout(5):
            assert await journal.close(within=0.01) == 2
    assert [(line["event"], line["items"]) for line in logs] == [("not delivered before the end", 2)]
    assert await stored(store) == []


async def test_a_big_crowd_goes_in_bounded_batches(
    store: FlakyStore, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What piled up is written in batches of at most 500, all of it and in order."""
    for n in range(1201):
        journal.record(event(f"{n:04}"), n, Told())
    await settle(journal)
    assert [len(batch) for batch in store.appended] == [500, 500, 201]
    assert await stored(store) == [f"{n:04}" for n in range(1201)]


# With a spool


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    """What the journal before this one left: an event and the mode of session s, none of s2."""
    before = await Spool.open(tmp_path)
    offline = FlakyStore(await SqliteStore.open(tmp_path / "elsewhere.db"))
    offline.weather.extend([DOWN, asyncio.Event()])
    journal = Journal(offline, Metrics(), max_events=9)
    await journal.recover(before)
    journal.start()
    journal.record(LEFT, 1, Told())
    journal.record_mode("s", "analytical")
    await until(lambda: len(spooled(tmp_path, "journal")) == 2)
    await die(journal._courier, before)
    await offline.close()
    spool = await Spool.open(tmp_path)
    yield spool
    await spool.close()


LEFT = Event(
    event_id="left",
    session_id="s",
    turn_id="t",
    role="tool",
    content="Grüße, 世界 \0",
    timestamp=DAWN,
    metadata={"kind": "call", "arguments": {"n": 2**70, "x": [None, 1.5, True]}},
)


async def test_what_an_earlier_process_left_is_stored_as_it_was_recorded(
    store: FlakyStore, journal: Journal, spool: Spool
) -> None:
    """To the microsecond and the last character, before anything else, and nobody is told: who asked is gone."""
    gate = asyncio.Event()
    store.weather.append(gate)
    successor, told = Journal(store, Metrics(), max_events=3), Told()
    await successor.recover(spool)
    successor.start()
    successor.record(event("after"), 5, told)
    assert successor.is_full(), "what is left counts"
    await asyncio.wait_for(store.reached.wait(), PATIENCE)
    gate.set()
    await settle(successor)
    assert store.appended[0][0] == LEFT
    assert (await stored(store))[1:] == ["after"]
    row = await store.session("s")
    assert row
    assert row.mode == "analytical"
    assert told.through == [5]
    await successor.close(within=1)


async def test_only_a_session_that_was_left_something_waits_for_it(store: FlakyStore, spool: Spool) -> None:
    """`settled` waits neither for other sessions nor for later events."""
    gate, never = asyncio.Event(), asyncio.Event()
    store.weather.extend([gate, None, never])
    journal = Journal(store, Metrics(), max_events=3)
    await journal.recover(spool)
    journal.start()
    await asyncio.wait_for(journal.caught_up("s2"), PATIENCE)
    await asyncio.wait_for(store.reached.wait(), PATIENCE)
    journal.record(event("after"), 1, Told())
    caught_up = asyncio.create_task(journal.caught_up("s"))
    await asyncio.sleep(0)
    assert not caught_up.done()
    gate.set()
    await asyncio.wait_for(caught_up, PATIENCE)
    await until(lambda: len(store.appended) == 2)
    assert len(await stored(store)) == 1  # what came after is on its way, and never arrives
    await journal.close(within=0)


async def test_what_waits_is_counted(store: FlakyStore, spool: Spool) -> None:
    """The metrics say how much waits for the store, and how much of it is on the disk."""
    metrics = Metrics()
    store.weather.append(asyncio.Event())
    journal = Journal(store, metrics, max_events=3)
    await journal.recover(spool)
    journal.start()
    lines = metrics.exposition().decode().splitlines()
    assert "realtime_journal_depth 2.0" in lines
    assert 'realtime_spool_depth{courier="journal"} 2.0' in lines
    await journal.close(within=0)


async def test_one_session_does_not_take_the_room_of_all(
    store: FlakyStore, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past its share a session is refused but its neighbour is not; past the whole, in bytes, everybody is."""
    monkeypatch.setattr("chat.durability.journal.MOST_SESSION_BYTES", 5_000)
    monkeypatch.setattr("chat.durability.journal.MOST_BYTES", 9_000)
    gate = asyncio.Event()
    store.weather.append(gate)
    journal.record(event("x" * 5_000), 1, Told())
    assert [journal.is_full("s"), journal.is_full("s2"), journal.is_full()] == [True, False, False]
    journal.record(event("y" * 5_000, "s2"), 1, Told())
    assert journal.is_full("s3")
    gate.set()
    await settle(journal)
    assert [journal.is_full("s"), journal.is_full("s2"), journal.is_full()] == [False, False, False]
