"""The courier: what it takes arrives, in order, however often the far end fails."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from structlog.testing import capture_logs

from chat.courier import Courier


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
    monkeypatch.setattr("chat.courier.FIRST_RETRY_SECONDS", 0.0001)
    monkeypatch.setattr("chat.courier.MOST_RETRY_SECONDS", 0.005)


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
    """Nothing overtakes it, whether the failure was expected or not."""
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
    """No item is forgotten for having come while others were on their way."""
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
    """It waits while something is on its way, and not for what was put after it was asked."""
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
