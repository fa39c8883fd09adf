"""Carries items somewhere that may be down: in order, in batches, again and again until they have arrived."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import chain
from typing import Generic, TypeVar

from chat.durability.shelf import Shelf
from infra.backoff import backoff
from infra.telemetry import get_logger

T = TypeVar("T")

FIRST_RETRY_SECONDS = 0.1
MOST_RETRY_SECONDS = 5.0
RESTS = 10
"""While there is little to deliver, delivering takes less than a tenth of the time: a small request costs as much as a
large one."""


class Courier(Generic[T]):
    """A queue with one worker, first in first out.

    `deliver` takes a batch and returns the items that must be delivered again. If it raises, the whole batch must be:
    nothing overtakes it, and nothing is dropped while the process lives.

    With a `Shelf`, nothing is dropped when the process dies, either: an item is on the shelf when `put` returns, and is
    removed once it has arrived.
    """

    def __init__(
        self,
        name: str,
        deliver: Callable[[Sequence[T]], Awaitable[Sequence[T]]],
        *,
        batch_size: int,
        most_batch_size: int = 0,
        ordered: bool = True,
        gather_seconds: float = 0.0,
        most_gather_seconds: float = 0.0,
        expected: type[Exception] | tuple[type[Exception], ...],
    ) -> None:
        """The first item waits `gather_seconds` for company, or `RESTS` times as long as the last delivery took.

        The fuller that one's batch was, the less. It never waits longer than `most_gather_seconds`, and what comes
        during a delivery gathers anew. So a far end that is near gets its items at once, and one that is far gets more
        of them in each of fewer deliveries.

        A batch grows with what waits, from `batch_size` to `most_batch_size`: on a busy loop each costs a step's wait,
        however large it is.

        Unless the items must arrive in order, those that are not taken go back behind the others.

        `expected` failures are logged in a line, all others with their traceback. One that has a `retry_after` is
        left alone for at least so many seconds.
        """
        self._deliver = deliver
        self._batch_size = batch_size
        self._most_batch_size = max(batch_size, most_batch_size)
        self._ordered = ordered
        self._gather_seconds = gather_seconds
        self._most_gather_seconds = max(gather_seconds, most_gather_seconds)
        self._expected = expected
        self._queue: deque[tuple[int, T]] = deque()
        self._batch: list[tuple[int, T]] = []
        self._shelf: Shelf[T] | None = None
        self._first_number = 1
        self._left = self._unread = 0
        self._failing = False
        self._put = 0
        self._delivered = 0
        self._wake = asyncio.Event()
        self._progress = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._log = get_logger(name)

    async def recover(self, shelf: Shelf[T], look: Callable[[T], None] = lambda item: None) -> None:
        """Keep copies there, and carry first what an earlier process left, having looked at each item. Before `start`.

        It stays on the shelf until it is carried: it may be more than fits into memory.

        Raises:
            SettingsError: the shelf cannot be read.
        """
        left, last = await shelf.scan(look)
        self._shelf = shelf
        self._first_number = last + 1 - left
        self._unread = self._left = self._put = left
        if left:
            self._log.info("taking up what an earlier process left", items=left)
            self._wake.set()

    def start(self) -> None:
        """Begin to carry, on the running loop."""
        self._task = asyncio.create_task(self._run())

    def put(self, item: T) -> None:
        """Take an item to carry."""
        held = (self._first_number + self._put, item)
        self._queue.append(held)
        self._put += 1
        self._wake.set()
        if self._shelf:
            self._shelf.keep((held,))

    def waiting(self) -> int:
        """How many items have not arrived."""
        return self._put - self._delivered

    def is_failing(self) -> bool:
        """Whether the last delivery failed: nothing arrives until one succeeds."""
        return self._failing

    def held(self) -> Iterator[T]:
        """What has not arrived and is in memory: where it must arrive in order, the oldest first."""
        return (item for _, item in chain(self._batch, self._queue))

    async def settled(self) -> None:
        """Wait until everything put so far has arrived, and what an earlier process left."""
        await self._arrived(self._put)

    async def caught_up(self) -> None:
        """Wait until what an earlier process left has arrived."""
        await self._arrived(self._left)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until this holds; it is asked after each delivery, and when one has failed."""
        async with self._progress:
            await self._progress.wait_for(holds)

    async def _arrived(self, goal: int) -> None:
        await self.until(lambda: self._delivered >= goal)

    async def close(self, within: float) -> int:
        """Carry what is left for so many seconds, then stop; what did not arrive is left to the next process.

        Returns:
            How many items are lost with this process: without a shelf all that did not arrive.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self.settled()
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        late = lost = self.waiting()
        if self._shelf:
            lost = await self._shelf.close()
        if lost:
            self._log.error("not delivered before the end", items=lost)
        elif late:
            self._log.warning("not delivered before the end, kept for the next start", items=late)
        return lost

    async def _run(self) -> None:
        """Gather, carry what was there when that ended and what fills a batch, and begin again."""
        time = asyncio.get_running_loop().time
        rest = 0.0
        while True:
            await self._wake.wait()
            if self._most_gather_seconds:
                await asyncio.sleep(min(max(self._gather_seconds, rest), self._most_gather_seconds))
            due, filled = self._put, 0.0
            while self._queued() and (self._delivered < due or self._queued() >= self._batch_size):
                await self._take_batch()
                filled = max(filled, min(1.0, len(self._batch) / self._batch_size))
                began = time()
                await self._carry()
                rest = RESTS * (time() - began) * (1 - filled)
            if not self._queued():
                self._wake.clear()

    def _queued(self) -> int:
        return self._unread + len(self._queue)

    async def _take_batch(self) -> None:
        if self._unread and self._shelf:
            self._batch = await self._shelf.read(self._batch_size)
            self._unread -= len(self._batch)
            return
        size = max(self._batch_size, min(len(self._queue) // 4, self._most_batch_size))
        self._batch = [self._queue.popleft() for _ in range(min(size, len(self._queue)))]

    async def _carry(self) -> None:
        """Deliver the batch, however often it takes."""
        attempt = 0
        while True:
            wanted = 0.0
            try:
                await self._attempt()
                if not self._batch:
                    break
                self._log.warning("partly refused, will retry", items=len(self._batch), attempt=attempt + 1)
            except self._expected as error:
                await self._failed()
                wanted = getattr(error, "retry_after", None) or 0.0
                self._log.warning("failed, will retry", cause=str(error), items=self.waiting(), attempt=attempt + 1)
            except Exception:
                await self._failed()
                self._log.exception("failed unexpectedly, will retry", items=self.waiting(), attempt=attempt + 1)
            await asyncio.sleep(max(wanted, backoff(attempt, first=FIRST_RETRY_SECONDS, most=MOST_RETRY_SECONDS)))
            attempt += 1
            if not self._ordered and self._queued():  # what is never taken must not hold up what is
                self._queue.extend(self._batch)
                await self._take_batch()
        self._failing = False
        if attempt:
            self._log.info("recovered", attempts=attempt + 1)

    async def _failed(self) -> None:
        async with self._progress:
            self._failing = True
            self._progress.notify_all()

    async def _attempt(self) -> None:
        """Deliver the batch once; what of it must be carried again is the batch then."""
        refused = await self._deliver([item for _, item in self._batch])
        self._batch, arrived = _split(self._batch, refused)
        if self._shelf:
            self._shelf.forget(number for number, _ in arrived)
        async with self._progress:
            self._delivered += len(arrived)
            self._progress.notify_all()


def _split(batch: list[tuple[int, T]], refused: Sequence[T]) -> tuple[list[tuple[int, T]], list[tuple[int, T]]]:
    """The batch's entries that were refused, in the order in which they were, and the others."""
    others = list(batch)
    again = [others.pop(next(n for n, (_, item) in enumerate(others) if item == one)) for one in refused]
    return again, others
