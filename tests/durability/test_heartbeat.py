"""The heartbeat: there before anybody is served, going on through bad weather, and gone when the container goes."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import chat.durability.heartbeat
from chat.durability.heartbeat import Heartbeat
from infra.records import utc_now
from infra.settings import Settings, SettingsError, load_settings
from infra.store import StoreUnavailable
from infra.store.sqlite import SqliteStore
from tests.conftest import Serve
from tests.support.client import ChatClient
from tests.support.flaky import FlakyStore
from tests.support.scripted import Pause

PATIENCE = 5.0
"""Seconds a test waits for what should happen at once before it fails."""
DOWN = StoreUnavailable("it rains")
MOMENT = 0.001
"""Between two beats, where a test waits for the next."""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FlakyStore]:
    """A store with a session open in the box, which lives as long as the box is seen."""
    sqlite = await SqliteStore.open(tmp_path / "realtime.db")
    await sqlite.open_session("s", "u", at=utc_now(), container_id="box")
    yield FlakyStore(sqlite)
    await sqlite.close()


@pytest.fixture
async def heartbeat(store: FlakyStore, request: pytest.FixtureRequest) -> AsyncIterator[Heartbeat]:
    """The box's, every hour unless a test asks for another pace."""
    beating = Heartbeat(store, "box", getattr(request, "param", 3600))
    yield beating
    store.beat_weather.clear()
    await beating.close()


async def lives(store: FlakyStore, since: datetime | None = None) -> bool:
    """Whether the box was seen since then, or within the last hour."""
    return await store.orphans(seen_before=since or utc_now() - timedelta(hours=1), limit=9) == []


async def beats(store: FlakyStore, count: int = 1) -> None:
    """Wait for the next one, or more."""
    for _ in range(count):
        store.beaten.clear()
        await asyncio.wait_for(store.beaten.wait(), PATIENCE)


async def test_it_beats_before_the_container_serves(store: FlakyStore, heartbeat: Heartbeat) -> None:
    """The start is done only when the container's row is there."""
    gate = asyncio.Event()
    store.beat_weather.append(gate)
    starting = asyncio.create_task(heartbeat.start())
    await asyncio.wait_for(store.beaten.wait(), PATIENCE)
    assert (starting.done(), await lives(store)) == (False, False)
    gate.set()
    await asyncio.wait_for(starting, PATIENCE)
    assert await lives(store)


@pytest.mark.parametrize("heartbeat", [MOMENT], indirect=True)
async def test_it_goes_on(store: FlakyStore, heartbeat: Heartbeat) -> None:
    """Every beat updates the row's time."""
    await heartbeat.start()
    await beats(store)
    now = utc_now()
    assert not await lives(store, since=now)
    await beats(store, 2)  # of which the first may have been on its way
    assert await lives(store, since=now)


@pytest.mark.parametrize("failure", [DOWN, RuntimeError("a bug")])
async def test_a_store_that_is_down_is_tried_again(
    store: FlakyStore, heartbeat: Heartbeat, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """A failed beat, even the first, is one log line, and the next comes early."""
    monkeypatch.setattr(chat.durability.heartbeat, "RETRY_SECONDS", MOMENT)
    store.beat_weather.extend([failure, failure, gate := Pause()])
    with capture_logs() as logs:
        await heartbeat.start()
        await asyncio.wait_for(gate.reached.wait(), PATIENCE)
    assert not await lives(store)
    gate.set()
    assert [line["event"].split(",")[1] for line in logs] == [" will retry"] * 2
    async with asyncio.timeout(PATIENCE):
        while not await lives(store):
            pass


async def test_it_departs(store: FlakyStore, heartbeat: Heartbeat) -> None:
    """A clean close removes the row, so that what was open is an orphan at once."""
    await heartbeat.start()
    await heartbeat.close()
    assert [
        orphan.session_id for orphan in await store.orphans(seen_before=utc_now() - timedelta(days=1), limit=9)
    ] == ["s"]


async def test_a_beat_on_its_way_does_not_outlive_the_departure(
    store: FlakyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed in the middle of a beat, the row is gone and stays gone."""
    heartbeat = Heartbeat(store, "box", MOMENT)
    await heartbeat.start()
    gate = asyncio.Event()
    store.beat_weather.append(gate)
    await beats(store)
    await asyncio.wait_for(heartbeat.close(), PATIENCE)
    gate.set()
    store.beaten.clear()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(store.beaten.wait(), 20 * MOMENT)
    assert not await lives(store)


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_departure_waits_for_no_store(
    store: FlakyStore, heartbeat: Heartbeat, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    """Closing over a store that is down costs one log line and a moment."""
    monkeypatch.setattr(chat.durability.heartbeat, "DEPART_SECONDS", MOMENT if hangs else PATIENCE)
    await heartbeat.start()
    store.beat_weather.append(asyncio.Event() if hangs else DOWN)
    with capture_logs() as logs:
        await asyncio.wait_for(heartbeat.close(), PATIENCE)
    assert [line["event"] for line in logs] == ["not signed off"]
    assert await lives(store)


async def test_a_containers_sessions_live_as_long_as_it_serves(serve: Serve, tmp_path: Path) -> None:
    """In the row of its session stands the container that beats; when it is gone, nobody beats for it."""
    store = await SqliteStore.open(tmp_path / "realtime.db")
    recent = utc_now()
    async with serve(container_id="web") as server, await ChatClient.connect(server.url) as client:
        await client.until("ready")
        row = await store.session("s1")
        assert row
        assert str(row.container_id).startswith("web-")
        assert await store.orphans(seen_before=recent, limit=9) == []
    assert [orphan.session_id for orphan in await store.orphans(seen_before=recent, limit=9)] == ["s1"]
    async with serve(container_id="web"):
        assert await store.orphans(seen_before=recent, limit=9), (
            "the name came back, and with it the dead one's session"
        )
    await store.close()


@pytest.mark.parametrize("dead_after", ["20", "5", "inf"])
def test_one_late_beat_kills_nobody(monkeypatch: pytest.MonkeyPatch, dead_after: str) -> None:
    """A container may miss a beat; a setting that would not let it is refused in a line that names it."""
    monkeypatch.setenv("DEAD_AFTER_SECONDS", dead_after)
    with pytest.raises(SettingsError, match=r"^DEAD_AFTER_SECONDS: "):
        load_settings(None)
    monkeypatch.setenv("DEAD_AFTER_SECONDS", "20.1")
    assert load_settings(None).dead_after_seconds == 20.1
    assert Settings(heartbeat_seconds=1, dead_after_seconds=2.5).heartbeat_seconds == 1
