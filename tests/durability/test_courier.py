"""The courier: what it takes arrives, in order, however often the far end fails, and whoever dies meanwhile."""

import asyncio
import sqlite3
import tracemalloc
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from chat.durability import shelf
from chat.durability.courier import Courier
from chat.durability.shelf import Shelf
from chat.durability.spool import Spool
from chat.metrics import Metrics
from infra.settings import SettingsError
from tests.support.spooled import die, spooled, until


class Rain(Exception):
    """The failure that is expected."""


PATIENCE = 5.0
"""Seconds a test waits for what should happen at once before it fails."""
Weather = Exception | asyncio.Event | Callable[[Sequence[int]], Sequence[int]]


class FarEnd:
    """Where items are carried to: it takes them, or meets `weather`: fails, blocks, or gives some back."""

    def __init__(self) -> None:
        self.weather: deque[Weather] = deque()
        self.arrived: list[int] = []
        self.asked: list[list[int]] = []
        self.reached = asyncio.Event()

    async def deliver(self, batch: Sequence[int]) -> Sequence[int]:
        """Take what the weather allows; return the rest."""
        self.asked.append(list(batch))
        self.reached.set()
        today = self.weather.popleft() if self.weather else None
        refused: Sequence[int] = ()
        if isinstance(today, asyncio.Event):
            await today.wait()
        elif isinstance(today, Exception):
            raise today
        elif today is not None:
            refused = today(batch)
        self.arrived += [item for item in batch if item not in refused]
        return refused


@pytest.fixture(autouse=True)
def _no_time_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real waits, a thousand times as fast."""
    monkeypatch.setattr("chat.durability.courier.FIRST_RETRY_SECONDS", 0.0001)
    monkeypatch.setattr("chat.durability.courier.MOST_RETRY_SECONDS", 0.005)


@pytest.fixture
def far_end() -> FarEnd:
    """In good weather."""
    return FarEnd()


@pytest.fixture
async def courier(far_end: FarEnd) -> AsyncIterator[Courier[int]]:
    """A courier with small batches, on its way."""
    carrying = Courier("test", far_end.deliver, batch_size=3, expected=Rain)
    carrying.start()
    yield carrying
    await carrying.close(within=0)


async def test_it_carries_in_order_and_in_batches(courier: Courier[int], far_end: FarEnd) -> None:
    """Everything arrives once, first in first out, at most a batch at a time."""
    for item in range(7):
        courier.put(item)
    assert courier.waiting() == 7
    await asyncio.wait_for(courier.settled(), PATIENCE)
    assert far_end.asked == [[0, 1, 2], [3, 4, 5], [6]]
    assert courier.waiting() == 0


async def test_a_failed_batch_is_carried_again_before_the_next(courier: Courier[int], far_end: FarEnd) -> None:
    """Nothing overtakes a failed item, whether or not the failure was expected."""
    far_end.weather.extend([Rain(), RuntimeError("a bug"), Rain()])
    with capture_logs() as logs:
        for item in range(4):
            courier.put(item)
        await asyncio.wait_for(courier.settled(), PATIENCE)
    assert far_end.asked == [[0, 1, 2]] * 4 + [[3]]
    assert far_end.arrived == [0, 1, 2, 3]
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("failed, will retry", "warning"),
        ("failed unexpectedly, will retry", "error"),
        ("failed, will retry", "warning"),
    ]


async def test_only_what_was_given_back_is_carried_again(courier: Courier[int], far_end: FarEnd) -> None:
    """What arrived of a batch is not carried twice, and the next batch waits for the rest."""
    far_end.weather.extend([lambda batch: batch[1:], Rain(), lambda batch: batch[:1]])
    for item in range(4):
        courier.put(item)
    await asyncio.wait_for(courier.settled(), PATIENCE)
    assert far_end.asked == [[0, 1, 2], [1, 2], [1, 2], [1], [3]]
    assert far_end.arrived == [0, 2, 1, 3]


async def test_what_is_put_meanwhile_is_carried_next(courier: Courier[int], far_end: FarEnd) -> None:
    """An item that comes while others are being delivered is delivered too."""
    gate = asyncio.Event()
    far_end.weather.append(gate)
    courier.put(0)
    await asyncio.wait_for(far_end.reached.wait(), PATIENCE)
    courier.put(1)
    gate.set()
    await asyncio.wait_for(courier.settled(), PATIENCE)
    courier.put(2)
    await asyncio.wait_for(courier.settled(), PATIENCE)
    assert far_end.arrived == [0, 1, 2]


async def test_settled_is_about_what_was_put_before(courier: Courier[int], far_end: FarEnd) -> None:
    """`settled` waits for what is on its way, but not for what is put later."""
    first, second = asyncio.Event(), asyncio.Event()
    far_end.weather.extend([first, second])
    courier.put(0)
    settled = asyncio.create_task(courier.settled())
    await asyncio.wait_for(far_end.reached.wait(), PATIENCE)
    courier.put(1)
    assert not settled.done()
    first.set()
    await asyncio.wait_for(settled, PATIENCE)
    assert (far_end.arrived, courier.waiting()) == ([0], 1)
    second.set()


async def test_the_first_waits_for_company(far_end: FarEnd) -> None:
    """With a time to gather, what comes shortly after the first goes with it."""
    courier = Courier("test", far_end.deliver, batch_size=9, gather_seconds=0.02, expected=Rain)
    courier.start()
    courier.put(0)
    await asyncio.sleep(0)
    courier.put(1)
    await asyncio.wait_for(courier.settled(), PATIENCE)
    assert far_end.asked == [[0, 1]]
    await courier.close(within=1)


async def test_what_comes_during_a_delivery_gathers_anew(far_end: FarEnd) -> None:
    """The first that comes meanwhile waits for company, too: a request costs the same for few."""
    far_end.weather.append(gate := asyncio.Event())
    courier = Courier("test", far_end.deliver, batch_size=9, gather_seconds=0.1, expected=Rain)
    courier.start()
    courier.put(0)
    await asyncio.wait_for(far_end.reached.wait(), PATIENCE)
    courier.put(1)
    gate.set()
    await until(lambda: far_end.arrived == [0])
    courier.put(2)
    await asyncio.wait_for(courier.settled(), PATIENCE)
    assert far_end.asked == [[0], [1, 2]]
    await courier.close(within=0)


async def test_a_full_batch_does_not_wait_for_company(far_end: FarEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """While there is enough for a batch, deliveries follow each other."""
    monkeypatch.setattr(
        "chat.durability.courier.RESTS", 1e9
    )  # who waits after the first delivery waits too long for this test
    far_end.weather.append(gate := asyncio.Event())
    courier = Courier("test", far_end.deliver, batch_size=2, most_gather_seconds=3600, expected=Rain)
    courier.start()
    courier.put(0)
    await asyncio.wait_for(far_end.reached.wait(), PATIENCE)
    for item in range(1, 5):
        courier.put(item)
    gate.set()
    await asyncio.wait_for(courier.settled(), PATIENCE)
    assert far_end.asked == [[0], [1, 2], [3, 4]]
    await courier.close(within=0)


async def test_after_a_full_batch_nobody_waits(far_end: FarEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is much to carry, a request more or less does not count: the next item goes at once."""
    monkeypatch.setattr("chat.durability.courier.RESTS", 1e9)
    courier = Courier("test", far_end.deliver, batch_size=2, most_gather_seconds=3600, expected=Rain)
    courier.start()
    for items in ([0, 1], [2]):
        for item in items:
            courier.put(item)
        await asyncio.wait_for(courier.settled(), PATIENCE)
    assert far_end.asked == [[0, 1], [2]]
    await courier.close(within=0)


async def test_a_batch_grows_with_what_waits(far_end: FarEnd) -> None:
    """Of much that waits it takes a quarter at once, up to its bound, and of little no less than ever."""
    courier = Courier("test", far_end.deliver, batch_size=2, most_batch_size=10, expected=Rain)
    for number in range(60):
        courier.put(number)
    courier.start()
    await asyncio.wait_for(courier.settled(), PATIENCE)
    sizes = [len(batch) for batch in far_end.asked]
    assert sizes[:3] == [10, 10, 10]
    assert min(sizes[:-1]) == 2
    assert sorted(sizes, reverse=True) == sizes
    assert [number for batch in far_end.asked for number in batch] == list(range(60))
    await courier.close(within=0)


async def test_closing_carries_what_is_left(courier: Courier[int], far_end: FarEnd) -> None:
    """What was put before the close arrives if it can, and then nothing is lost."""
    far_end.weather.append(Rain())
    for item in range(7):
        courier.put(item)
    assert await courier.close(within=5) == 0
    assert far_end.arrived == list(range(7))


async def test_closing_says_how_many_are_lost(courier: Courier[int], far_end: FarEnd) -> None:
    """Where the far end does not answer, the close ends in time, returns and logs how many did not arrive."""
    far_end.weather.append(asyncio.Event())
    for item in range(5):
        courier.put(item)
    with capture_logs() as logs:
        async with asyncio.timeout(5):
            assert await courier.close(within=0.01) == 5
    assert [(line["event"], line["items"]) for line in logs] == [("not delivered before the end", 5)]
    assert far_end.arrived == []


class Closed(Exception):
    """A failure that says when to come back."""

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after


async def test_who_asks_to_be_left_alone_is(far_end: FarEnd) -> None:
    """A failure's `retry_after` is waited, where it is longer than the backoff."""
    carrying = Courier("test", far_end.deliver, batch_size=3, expected=(Rain, Closed))
    carrying.start()
    loop = asyncio.get_running_loop()
    far_end.weather.extend([Closed(0.2), Rain()])
    before = loop.time()
    carrying.put(1)
    await asyncio.wait_for(carrying.settled(), PATIENCE)
    assert loop.time() - before >= 0.2
    assert far_end.asked == [[1]] * 3
    await carrying.close(0)


async def test_where_order_does_not_matter_one_that_is_never_taken_holds_up_no_other(far_end: FarEnd) -> None:
    """A refused item goes back behind the others, and is tried again when they have arrived."""
    carrying = Courier("test", far_end.deliver, batch_size=2, ordered=False, expected=Rain)
    far_end.weather.extend([lambda batch: batch[:1], Rain(), lambda batch: batch])
    for item in range(6):
        carrying.put(item)
    carrying.start()
    await asyncio.wait_for(carrying.settled(), PATIENCE)
    assert sorted(far_end.arrived) == list(range(6))
    assert far_end.asked[:3] == [[0, 1], [2, 3], [4, 5]]
    assert carrying.waiting() == 0
    await carrying.close(0)


# With a spool


def _number(payload: bytes) -> int:
    """A number, with as many zeros before it as a test likes."""
    return int(payload.lstrip(b"0") or b"0")


class Life:
    """A courier with small batches and a spool in this folder: one process after the other."""

    def __init__(self, folder: Path, far_end: FarEnd) -> None:
        self.folder = folder
        self.far_end = far_end

    async def begin(self) -> list[int]:
        """Open what there is and start; what an earlier life left."""
        self.spool = await Spool.open(self.folder)
        self.courier = Courier("test", self._deliver, batch_size=3, expected=Rain)
        kept = Shelf(self.spool, "test", encode=b"%d".__mod__, decode=_number, metrics=Metrics())
        left: list[int] = []
        await self.courier.recover(kept, left.append)
        self.courier.start()
        return left

    async def _deliver(self, batch: Sequence[int]) -> Sequence[int]:
        return await self.far_end.deliver(batch)

    def put(self, *items: int) -> None:
        """Give these to the courier."""
        for item in items:
            self.courier.put(item)

    async def settle(self) -> None:
        """Wait until all has arrived."""
        await asyncio.wait_for(self.courier.settled(), PATIENCE)

    async def on_disk(self, *items: int) -> None:
        """Wait until the file holds these, in this order, and no others."""
        await until(lambda: spooled(self.folder, "test") == [b"%d" % item for item in items])

    async def close(self, within: float) -> int:
        """End cleanly."""
        lost = await self.courier.close(within)
        await self.spool.close()
        return lost

    async def die(self) -> None:
        """End as by kill -9, once it has met the weather that waits for it."""
        await until(lambda: not self.far_end.weather)
        await die(self.courier, self.spool)


@pytest.fixture
async def life(tmp_path: Path, far_end: FarEnd) -> AsyncIterator[Life]:
    """The first, begun; the last one ends with the test."""
    led = Life(tmp_path, far_end)
    await led.begin()
    yield led
    await led.close(within=0)


async def test_what_is_put_is_on_disk_and_what_has_arrived_is_not(life: Life, far_end: FarEnd) -> None:
    """An item is on the disk before `put` returns, and off it once it has arrived, batch by batch."""
    gate = asyncio.Event()
    far_end.weather.extend([Rain(), lambda batch: (), gate])
    life.put(0, 1, 2, 3, 4)
    assert spooled(life.folder, "test") == [b"0", b"1", b"2", b"3", b"4"]
    await life.on_disk(3, 4)
    life.put(5, 6)
    assert spooled(life.folder, "test") == [b"3", b"4", b"5", b"6"]
    gate.set()
    await life.settle()
    assert spooled(life.folder, "test") == []
    assert far_end.arrived == [0, 1, 2, 3, 4, 5, 6]


async def test_the_next_process_delivers_first_what_this_one_could_not(life: Life, far_end: FarEnd) -> None:
    """After a kill the next process delivers what was left, in order, then its own; `settled` waits for both."""
    far_end.weather.extend([Rain(), asyncio.Event()])
    life.put(0, 1, 2, 3)
    await life.on_disk(0, 1, 2, 3)
    await life.die()
    gate = asyncio.Event()
    far_end.weather.append(gate)
    assert await life.begin() == [0, 1, 2, 3]
    settled, caught_up = (asyncio.create_task(wait()) for wait in (life.courier.settled, life.courier.caught_up))
    life.put(4, 5)
    assert life.courier.waiting() == 6
    await life.on_disk(0, 1, 2, 3, 4, 5)
    assert not settled.done() | caught_up.done()
    gate.set()
    await asyncio.wait_for(asyncio.gather(settled, caught_up), PATIENCE)
    await life.settle()
    await life.on_disk()
    assert far_end.arrived == [0, 1, 2, 3, 4, 5]


async def test_a_third_process_delivers_what_two_could_not(life: Life, far_end: FarEnd) -> None:
    """Each adds behind what the one before it left."""
    for number in range(3):
        far_end.weather.append(asyncio.Event())
        life.put(number)
        await life.on_disk(*range(number + 1))
        await life.die()
        far_end.weather.extend([Rain()] if number < 2 else [])
        await life.begin()
    await life.settle()
    assert far_end.arrived == [0, 1, 2]


async def test_of_a_batch_that_was_taken_in_part_only_the_rest_is_left(life: Life, far_end: FarEnd) -> None:
    """What arrived is off the disk, and not carried again by the next process; what is put then comes behind."""
    far_end.weather.extend([Rain(), asyncio.Event()])
    life.put(0, 1, 2, 3)
    await life.on_disk(0, 1, 2, 3)
    await life.die()
    far_end.weather.extend([lambda batch: [batch[2], batch[0]], asyncio.Event()])
    await life.begin()
    await life.on_disk(0, 2, 3)
    await life.die()
    far_end.weather.append(gate := asyncio.Event())
    assert await life.begin() == [0, 2, 3]
    life.put(4)
    await life.on_disk(0, 2, 3, 4)
    gate.set()
    await life.settle()
    assert far_end.arrived == [1, 0, 2, 3, 4]


async def test_equal_items_are_told_apart_by_their_number(life: Life, far_end: FarEnd) -> None:
    """Of two identical items, one delivered and one not, one is left on the disk."""
    far_end.weather.extend([lambda batch: batch[:1], asyncio.Event()])
    life.put(7, 7)
    await life.on_disk(7)
    await life.die()
    assert await life.begin() == [7]


async def test_without_a_disk_it_carries_on_from_memory(
    life: Life, far_end: FarEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be written is an error in the log, and holds up nothing."""
    monkeypatch.setattr("chat.durability.shelf.RETRY_SECONDS", 0.01)
    life.spool._connection.execute("PRAGMA query_only = 1").fetchone()
    gate = asyncio.Event()
    far_end.weather.extend([Rain(), gate])
    with capture_logs() as logs:
        life.put(0, 1)
        await until(lambda: not far_end.weather)
        life.put(2)
        gate.set()
        await life.settle()
    assert far_end.arrived == [0, 1, 2]
    assert [line["event"] for line in logs if line["log_level"] == "error"] == [
        "cannot be written, carrying on from memory"
    ]


async def test_closing_leaves_to_the_next_process_what_did_not_arrive(life: Life, far_end: FarEnd) -> None:
    """A close that runs out of time loses nothing: the log says so, and the next process delivers the rest."""
    far_end.weather.append(asyncio.Event())
    life.put(0, 1, 2, 3)
    with capture_logs() as logs:
        assert await life.close(within=0.01) == 0
    assert [(line["log_level"], line["event"], line["items"]) for line in logs] == [
        ("warning", "not delivered before the end, kept for the next start", 4)
    ]
    await life.on_disk(0, 1, 2, 3)
    await life.begin()
    await life.settle()
    assert far_end.arrived == [0, 1, 2, 3]


async def test_closing_after_trouble_leaves_nothing(life: Life, far_end: FarEnd) -> None:
    """What arrived at the last moment is off the disk when the process is gone."""
    far_end.weather.append(Rain())
    life.put(0, 1)
    assert await life.close(within=PATIENCE) == 0
    assert spooled(life.folder, "test") == []
    await life.begin()


async def test_closing_without_a_disk_says_what_is_lost(life: Life, far_end: FarEnd) -> None:
    """What neither the far end nor the disk took is logged as an error, with its number."""
    life.spool._connection.execute("PRAGMA query_only = 1").fetchone()
    far_end.weather.append(asyncio.Event())
    life.put(0, 1)
    with capture_logs() as logs:
        assert await life.close(within=0.01) == 2
    assert (logs[-1]["log_level"], logs[-1]["event"], logs[-1]["items"]) == ("error", "not delivered before the end", 2)
    await life.begin()


async def test_what_was_left_is_read_page_by_page(tmp_path: Path, far_end: FarEnd) -> None:
    """However much an outage left on the disk, a start takes no more memory than a few pages of it."""
    spool, row = await Spool.open(tmp_path), 20_000
    spool.change("test", ((number, b"%0*d" % (row, number)) for number in range(1, 2001)), ())
    await spool.close()
    life = Life(tmp_path, far_end)
    tracemalloc.start()
    try:
        left = await life.begin()
        life.put(2001)
        await life.settle()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert far_end.arrived == list(range(1, 2002))
    assert len(left) == 2000
    assert most < 400 * row
    assert await life.close(0) == 0
    assert spooled(tmp_path, "test") == []


async def test_a_page_that_cannot_be_read_is_read_again(
    life: Life, far_end: FarEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails once the start is done holds up what was left, and loses nothing of it."""
    monkeypatch.setattr(shelf, "RETRY_SECONDS", 0.001)
    far_end.weather.append(asyncio.Event())
    life.put(1, 2, 3, 4)
    await life.on_disk(1, 2, 3, 4)
    await life.die()
    load, failures = Spool.load, [sqlite3.OperationalError("disk I/O error")] * 3

    def failing(spool: Spool, courier: str, after: int = 0, limit: int = -1) -> list[tuple[int, bytes]]:
        if limit == 3 and failures:  # the courier's batch, and not the start's look
            raise failures.pop()
        return load(spool, courier, after, limit)

    monkeypatch.setattr(Spool, "load", failing)
    await life.begin()
    await life.settle()
    assert failures == []
    assert far_end.arrived == [1, 2, 3, 4]


async def test_a_spool_that_cannot_be_read_is_no_start(life: Life) -> None:
    """A spool that cannot be read may hold promises: the start is refused in one line."""
    with closing(sqlite3.connect(life.folder / "spool.db")) as db:
        db.execute("DROP TABLE spool")
    broken = Shelf(life.spool, "test", encode=b"%d".__mod__, decode=int, metrics=Metrics())
    with pytest.raises(SettingsError, match=r"^DATA_DIR: cannot read the spool: "):
        await broken.scan()
