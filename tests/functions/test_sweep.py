"""The sweep: what a dead container left open is handed off, as ended when it was last heard of; all else is not."""

import asyncio
import json
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

import functions.sweep.sweep
from functions.summary.summarize import Outcome, Summarizer
from functions.sweep import handler as module
from functions.sweep.sweep import Sweeper
from infra.handoff import SQS_BATCH, HandoffUnavailable
from infra.records import Event, Session, SessionEnded, utc_now
from infra.settings import SettingsError
from infra.store import StoreUnavailable
from infra.store.base import MOST_ANNOUNCEMENTS
from infra.store.sqlite import SqliteStore
from infra.telemetry import configure_logging
from tests.support.announced import long_ago
from tests.support.flaky import FlakyStore
from tests.support.queue import Queue

DAWN = datetime(2025, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
Weather = Exception | Callable[[Sequence[SessionEnded]], list[SessionEnded]]


class FarEnd:
    """A hand-off that takes what it is sent, or meets `weather`: is down, or gives some back."""

    def __init__(self) -> None:
        self.weather: deque[Weather] = deque()
        self.taken: list[SessionEnded] = []
        self.asked: list[int] = []

    async def send(self, ended: Sequence[SessionEnded]) -> list[SessionEnded]:
        """See `Handoff.send`."""
        self.asked.append(len(ended))
        today = self.weather.popleft() if self.weather else None
        if isinstance(today, Exception):
            raise today
        refused = today(ended) if today else []
        self.taken += [one for one in ended if one not in refused]
        return refused

    async def close(self) -> None:
        """See `Handoff.close`."""


async def test_old_sessions_go_where_that_is_wished(tmp_path: Path) -> None:
    """With RETENTION_DAYS the sweep removes what ended so long ago; a store that fails leaves it to the next one."""
    store = FlakyStore(await SqliteStore.open(tmp_path / "realtime.db"))
    for session_id, end in (("old", utc_now() - timedelta(days=31)), ("new", utc_now() - timedelta(days=29))):
        await store.open_session(session_id, "ann", at=DAWN, container_id="box")
        await store.finish_session(session_id, 1, ended_at=end, summary="x")
    store.weather.append(StoreUnavailable("locked"))
    await functions.sweep.sweep.remove_old(store, 30)
    assert await store.session("old")
    await functions.sweep.sweep.remove_old(store, 30)
    assert await store.session("old") is None
    assert await store.session("new")
    await store.close()


class House:
    """A store in which nobody lives, and a sweeper."""

    def __init__(self, sqlite: SqliteStore) -> None:
        self.store = FlakyStore(sqlite)
        self.far_end = FarEnd()
        self.sweeper = Sweeper(self.store, self.far_end, dead_after_seconds=60)

    async def session(self, session_id: str, container_id: str = "dead", at: datetime = DAWN) -> Session:
        """Open one."""
        return await self.store.open_session(session_id, "ann", at=at, container_id=container_id)

    async def say(self, session_id: str, at: datetime) -> None:
        """Store an event."""
        event_id = f"{session_id} {at.isoformat()}"
        event = Event(event_id=event_id, session_id=session_id, turn_id="t", role="user", content="hi", timestamp=at)
        await self.store.append([event])

    def announced(self) -> list[tuple[str, int, datetime]]:
        """What was taken, as told."""
        assert {ended.reason for ended in self.far_end.taken} <= {"crashed"}
        return [(ended.session_id, ended.epoch, ended.ended_at) for ended in self.far_end.taken]

    async def summarise(self) -> list[Outcome]:
        """Have the summary function handle what was taken."""
        summarizer = Summarizer(self.store, None)
        return list(await asyncio.gather(*(summarizer.summarize(ended) for ended in self.far_end.taken)))


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """An empty one."""
    sqlite = await SqliteStore.open(tmp_path / "realtime.db")
    yield House(sqlite)
    await sqlite.close()


async def test_a_dead_containers_session_ends_with_its_last_event(house: House) -> None:
    """The message bears the time of the last event, or of the start, and makes the row's end and summary."""
    await house.session("spoke")
    await house.say("spoke", DAWN + MINUTE)
    await house.say("spoke", DAWN + 2 * MINUTE)
    await house.session("silent", at=DAWN + MINUTE)
    assert await house.sweeper.sweep() == 2
    assert house.announced() == [("silent", 1, DAWN + MINUTE), ("spoke", 1, DAWN + 2 * MINUTE)]
    assert await house.summarise() == [Outcome.WRITTEN] * 2
    row = await house.store.session("spoke")
    assert row
    assert (row.end_time, row.duration, row.final_summary) == (
        DAWN + 2 * MINUTE,
        120,
        "A conversation of 2 messages and 0 replies.",
    )
    assert await house.sweeper.sweep() == 0


async def test_the_living_are_left_alone(house: House) -> None:
    """A container that beat within the time lives, and its sessions with it; one that did not is dead."""
    now = utc_now()
    for container_id, ago in (("alive", 50), ("dead", 70)):
        await house.session(f"of the {container_id}", container_id)
        await house.store.beat(container_id, at=now - timedelta(seconds=ago))
    assert await house.sweeper.sweep() == 1
    assert house.announced() == [("of the dead", 1, DAWN)]


async def test_what_was_in_no_container_is_left_alone(house: House, tmp_path: Path) -> None:
    """Open sessions of adopted tables were never ours to end."""
    await house.session("adopted")
    with closing(sqlite3.connect(tmp_path / "realtime.db")) as db, db:
        db.execute("UPDATE sessions SET container_id = NULL")
    assert await house.sweeper.sweep() == 0
    assert house.far_end.asked == []


async def test_two_sweeps_at_once_do_no_harm(house: House) -> None:
    """Both hand off the same sessions; each is written once, and the other message changes nothing."""
    for number in range(3):
        await house.session(f"s{number}", at=DAWN + number * MINUTE)
    assert list(await asyncio.gather(house.sweeper.sweep(), house.sweeper.sweep())) == [3, 3]
    outcomes = await house.summarise()
    assert sorted(outcomes, key=str) == [Outcome.REPEATED] * 3 + [Outcome.WRITTEN] * 3
    rows = [await house.store.session(f"s{number}") for number in range(3)]
    assert [row and row.end_time for row in rows] == [DAWN, DAWN + MINUTE, DAWN + 2 * MINUTE]


async def test_who_comes_back_in_the_meantime_goes_on(house: House) -> None:
    """The user is in a new container when the message arrives: it is of an epoch that is over, and ends nothing."""
    await house.session("s")
    await house.sweeper.sweep()
    await house.store.beat("alive", at=utc_now())
    again = await house.session("s", "alive")
    assert await house.summarise() == [Outcome.STALE]
    assert await house.store.session("s") == again
    assert await house.sweeper.sweep() == 0


async def test_what_is_refused_stays_for_the_next_sweep(house: House) -> None:
    """Whatever the queue refuses of a batch is left to the next sweep; the rest goes, each asked for once."""
    for number in range(2 * SQS_BATCH + 5):
        await house.session(f"s{number:02}", at=DAWN + number * MINUTE)
    house.far_end.weather.extend([HandoffUnavailable("it rains"), lambda ended: [ended[0], ended[3]]])
    configure_logging("info", "json")
    with capture_logs() as logs:
        assert await house.sweeper.sweep() == SQS_BATCH - 2 + 5
    *each, whole = logs
    assert (whole["event"], whole["handed_off"], whole["left"], whole["cause"]) == ("swept in part", 13, 12, "it rains")
    assert [(line["event"], line["session_id"], line["epoch"]) for line in each] == [
        ("handed off", f"s{number:02}", 1) for number in (11, 12, *range(14, 25))
    ]
    assert house.far_end.asked == [SQS_BATCH, SQS_BATCH, 5]
    await house.summarise()
    house.far_end.taken.clear()
    assert await house.sweeper.sweep() == SQS_BATCH + 2
    assert [session_id for session_id, *_ in house.announced()] == [f"s{number:02}" for number in [*range(11), 13]]


async def test_one_sweep_walks_through_all(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are and whether or not they are ended meanwhile, each is handed off once; to a bound."""
    monkeypatch.setattr(functions.sweep.sweep, "PAGE", 7)
    for number in range(40):
        await house.session(f"s{number:02}", at=DAWN + number * MINUTE)
    assert await house.sweeper.sweep() == 40
    assert [session_id for session_id, *_ in house.announced()] == [f"s{number:02}" for number in range(40)]
    assert await house.sweeper.sweep() == 0, "handed off just now"


async def test_one_sweep_is_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one sweep leaves, the next takes."""
    monkeypatch.setattr(functions.sweep.sweep, "PAGE", 7)
    monkeypatch.setattr(functions.sweep.sweep, "MOST", 20)
    for number in range(40):
        await house.session(f"s{number:02}", at=DAWN + number * MINUTE)
    assert [await house.sweeper.sweep() for _ in range(3)] == [21, 19, 0]


async def test_what_never_ends_is_handed_off_more_and_more_seldom(house: House, tmp_path: Path) -> None:
    """Not every minute for ever; the last time the log names it."""
    await house.session("s1")
    with capture_logs() as logs:
        for number in range(1, MOST_ANNOUNCEMENTS + 3):
            assert await house.sweeper.sweep() == (number <= MOST_ANNOUNCEMENTS)
            assert await house.sweeper.sweep() == 0
            long_ago(tmp_path / "realtime.db")
    assert [line["session_id"] for line in logs if line["log_level"] == "error"] == ["s1"]


async def test_a_hand_off_that_hangs_is_cut_off(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function would be killed otherwise; what was taken before is counted."""
    monkeypatch.setattr(functions.sweep.sweep, "WITHIN_SECONDS", 0.05)
    for number in range(SQS_BATCH + 1):
        await house.session(f"s{number}")
    send = house.far_end.send

    async def hang(ended: Sequence[SessionEnded]) -> list[SessionEnded]:
        return await send(ended) if len(ended) == SQS_BATCH else await asyncio.Future()

    monkeypatch.setattr(house.far_end, "send", hang)
    assert await asyncio.wait_for(house.sweeper.sweep(), 5) == SQS_BATCH


async def test_a_store_that_is_down_fails_the_sweep(house: House) -> None:
    """The schedule shall see it; nobody is taken for an orphan without the store's word."""
    house.store.weather.append(StoreUnavailable("it rains"))
    with pytest.raises(StoreUnavailable):
        await house.sweeper.sweep()
    assert house.far_end.asked == []


# The function


@pytest.fixture
def handle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Any]]]:
    """The handler, cold, with the settings of its environment; called as the schedule calls it."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    module._opened.cache_clear()
    yield lambda context=None: module.handler({"source": "aws.events", "detail-type": "Scheduled Event"}, context)
    if module._opened.cache_info().currsize:
        module._opened().close()
    module._opened.cache_clear()


def test_the_function_sweeps_onto_the_queue(
    handle: Callable[[], dict[str, Any]], queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduled handler sweeps the store and queue of its settings, and answers how many it found."""
    monkeypatch.setenv("DISCONNECT_QUEUE_URL", queue.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", str(queue.settings.aws_endpoint_url))
    assert handle() == {"handed_off": 0}
    with closing(sqlite3.connect(tmp_path / "realtime.db")) as db, db:
        row = ("s", DAWN.isoformat(timespec="microseconds"), "dead")
        db.execute("INSERT INTO sessions (session_id, start_time, container_id) VALUES (?, ?, ?)", row)
    assert handle() == {"handed_off": 1}
    assert [SessionEnded.from_json(body) for body in queue.bodies()] == [
        SessionEnded(session_id="s", epoch=1, ended_at=DAWN, reason="crashed")
    ]


def test_each_sweep_is_logged_under_its_own_request(
    handle: Callable[..., dict[str, Any]],
    queue: Queue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A function that is warm does not name the request that it began with."""
    monkeypatch.setenv("DISCONNECT_QUEUE_URL", queue.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", str(queue.settings.aws_endpoint_url))
    monkeypatch.setenv("LOG_FORMAT", "json")
    handle()
    with closing(sqlite3.connect(tmp_path / "realtime.db")) as db, db:
        row = ("s", DAWN.isoformat(timespec="microseconds"), "dead")
        db.execute("INSERT INTO sessions (session_id, start_time, container_id) VALUES (?, ?, ?)", row)
    for request_id in ("first", "second"):
        handle(SimpleNamespace(aws_request_id=request_id))
        long_ago(tmp_path / "realtime.db")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"room": "sweep"' in line]
    assert [(line["event"], line["request_id"]) for line in lines] == [
        (event, request_id) for request_id in ("first", "second") for event in ("handed off", "swept")
    ]


def test_without_a_hand_off_it_says_what_is_missing(handle: Callable[[], dict[str, Any]]) -> None:
    """Without a queue or a URL the sweep refuses to start, and names both settings."""
    with pytest.raises(SettingsError, match=r"DISCONNECT_QUEUE_URL.*HANDOFF_URL"):
        handle()


def test_in_lambda_sqlite_is_refused(handle: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """On AWS the sweep refuses to start without Supabase: it would sweep an empty file for ever."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "sweep")
    with pytest.raises(SettingsError, match="SUPABASE_URL"):
        handle()
