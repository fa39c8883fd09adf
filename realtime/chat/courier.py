"""Carries items somewhere that may be down: in order, in batches, again and again until they have arrived."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from chat.backoff import backoff
from infra.telemetry import get_logger

T = TypeVar("T")

FIRST_RETRY_SECONDS = 0.1
MOST_RETRY_SECONDS = 5.0
RESTS = 4
"""Delivering takes at most a fifth of the time while there is little to carry: a request costs the same for few."""


class Courier(Generic[T]):
    """A first-in-first-out queue with one worker.

    `deliver` takes a batch and returns what of it must be carried again. If it raises, the whole batch is:
    nothing overtakes it, and nothing is dropped while the process lives.
    """

    def __init__(
        self,
        name: str,
        deliver: Callable[[Sequence[T]], Awaitable[Sequence[T]]],
        *,
        batch_size: int,
        gather_seconds: float = 0.0,
        most_gather_seconds: float = 0.0,
        expected: type[Exception] | tuple[type[Exception], ...],
    ) -> None:
        """The first item waits `gather_seconds` for company, or `RESTS` times as long as the last delivery took.

        It never waits longer than `most_gather_seconds`. So a far end that is near gets its items at once, and one
        that is far gets more of them in each of fewer deliveries.

        `expected` failures are logged in a line, all others with their traceback. One that has a `retry_after` is
        left alone for at least so many seconds.
        """
        self._deliver = deliver
        self._batch_size = batch_size
        self._gather_seconds = gather_seconds
        self._most_gather_seconds = max(gather_seconds, most_gather_seconds)
        self._expected = expected
        self._queue: deque[T] = deque()
        self._put = 0
        self._delivered = 0
        self._wake = asyncio.Event()
        self._progress = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._log = get_logger(name)

    def start(self) -> None:
        """Begin to carry, on the running loop."""
        self._task = asyncio.create_task(self._run())

    def put(self, item: T) -> None:
        """Take an item to carry."""
        self._queue.append(item)
        self._put += 1
        self._wake.set()

    def waiting(self) -> int:
        """How many items have not arrived."""
        return self._put - self._delivered

    async def settled(self) -> None:
        """Wait until everything put so far has arrived."""
        goal = self._put
        async with self._progress:
            await self._progress.wait_for(lambda: self._delivered >= goal)

    async def close(self, within: float) -> int:
        """Carry what is left for so many seconds, then stop.

        Returns:
            How many items did not arrive; they are lost with this process.
        """
        try:
            async with asyncio.timeout(within):
                await self.settled()
        except TimeoutError:
            self._log.error("not delivered before the end", items=self.waiting())
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        return self.waiting()

    async def _run(self) -> None:
        time = asyncio.get_running_loop().time
        took = 0.0
        while True:
            await self._wake.wait()
            if self._most_gather_seconds:
                await asyncio.sleep(min(max(self._gather_seconds, RESTS * took), self._most_gather_seconds))
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(self._batch_size, len(self._queue)))]
                began = time()
                await self._carry(batch)
                took = time() - began
                async with self._progress:
                    self._delivered += len(batch)
                    self._progress.notify_all()
            self._wake.clear()

    async def _carry(self, batch: Sequence[T]) -> None:
        attempt = 0
        while batch:
            wanted = 0.0
            try:
                batch = await self._deliver(batch)
                if not batch:
                    break
                self._log.warning("partly refused, will retry", items=len(batch), attempt=attempt + 1)
            except self._expected as error:
                wanted = getattr(error, "retry_after", None) or 0.0
                self._log.warning("failed, will retry", cause=str(error), items=self.waiting(), attempt=attempt + 1)
            except Exception:
                self._log.exception("failed unexpectedly, will retry", items=self.waiting(), attempt=attempt + 1)
            await asyncio.sleep(max(wanted, backoff(attempt, first=FIRST_RETRY_SECONDS, most=MOST_RETRY_SECONDS)))
            attempt += 1
        if attempt:
            self._log.info("recovered", attempts=attempt + 1)
