"""The reconciler: an end that got lost is announced again, and nobody who is cared for is disturbed."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from chat.durability.courier import Courier
from chat.durability.reconciler import Reconciler
from infra.records import SessionEnded, utc_now
from infra.store import StoreUnavailable
from infra.store.base import MOST_ANNOUNCEMENTS
from infra.store.sqlite import SqliteStore
from tests.support.announced import long_ago
from tests.support.flaky import FlakyStore


class House:
    """A store with open sessions, the ids that are known here, and what was announced."""

    def __init__(self, store: FlakyStore) -> None:
        self.store = store
        self.known: set[str] = set()
        self.announced: list[SessionEnded] = []
        self.endings: Courier[SessionEnded] = Courier("endings", self._announce, batch_size=9, expected=ValueError)
        self.reconciler = Reconciler(store, "box", self.known.__contains__, self.endings, 3600)

    async def _announce(self, ended: Sequence[SessionEnded]) -> Sequence[SessionEnded]:
        self.announced += ended
        return ()

    async def look(self) -> list[tuple[str, int]]:
        """One round; whom it announced."""
        self.announced.clear()
        await self.reconciler.look()
        await self.endings.settled()
        return [(ended.session_id, ended.epoch) for ended in self.announced]

    async def open(self, session_id: str, container_id: str = "box") -> None:
        """Open a session in the store."""
        await self.store.open_session(session_id, "u", at=utc_now(), container_id=container_id)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """An empty one."""
    house = House(FlakyStore(await SqliteStore.open(tmp_path / "realtime.db")))
    house.endings.start()
    yield house
    await house.endings.close(1)
    await house.store.close()


async def test_a_session_nobody_knows_is_announced_the_second_time(house: House) -> None:
    """Seen once, its message may be on its way; and no more once the store has its end."""
    await house.open("lost")
    assert await house.look() == []
    assert await house.look() == [("lost", 1)]
    await house.store.finish_session("lost", 1, ended_at=utc_now(), summary="")
    assert [await house.look(), await house.look()] == [[], []]


async def test_what_never_ends_is_announced_more_and_more_seldom(house: House, tmp_path: Path) -> None:
    """Not every two minutes for ever; the last time the log names it."""
    await house.open("lost")
    with capture_logs() as logs:
        for number in range(1, MOST_ANNOUNCEMENTS + 3):
            looks = [await house.look() for _ in range(4)]
            assert looks == [[], [("lost", 1)] if number <= MOST_ANNOUNCEMENTS else [], [], []]
            long_ago(tmp_path / "realtime.db")
    assert [line["session_id"] for line in logs if line["log_level"] == "error"] == ["lost"]


async def test_who_is_known_or_elsewhere_is_left_alone(house: House) -> None:
    """A live session, and those of other containers."""
    await house.open("live")
    await house.open("elsewhere", "another box")
    house.known.add("live")
    assert [await house.look() for _ in range(4)] == [[]] * 4


async def test_a_session_that_was_opened_again_begins_anew(house: House) -> None:
    """A session that was reopened is not announced for its old epoch."""
    await house.open("s")
    assert await house.look() == []
    await house.open("s")
    assert await house.look() == []
    assert await house.look() == [("s", 2)]


async def test_a_store_that_is_down_is_asked_in_the_next_round(house: House) -> None:
    """Where the store fails once, what was seen before still counts."""
    await house.open("lost")
    assert await house.look() == []
    house.store.weather.append(StoreUnavailable("down"))
    with pytest.raises(StoreUnavailable):
        await house.look()
    assert await house.look() == [("lost", 1)]
