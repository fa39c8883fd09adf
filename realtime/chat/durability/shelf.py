"""One courier's shelf in the spool: the copy on disk of what it carries, until it has arrived."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from chat.durability.spool import Spool
from chat.metrics import Metrics
from infra.settings import SettingsError
from infra.telemetry import get_logger

T = TypeVar("T")

PAGE_ROWS = 100
"""How many rows of an earlier process are in memory at once."""
RETRY_SECONDS = 1.0
"""How long to wait before writing again to a disk that refused a write."""


class Shelf(Generic[T]):
    """Items by number, written to the disk as soon as it accepts them. A failing disk does not stop the server."""

    def __init__(
        self,
        spool: Spool,
        name: str,
        *,
        encode: Callable[[T], bytes],
        decode: Callable[[bytes], T],
        metrics: Metrics,
    ) -> None:
        """`name` tells this shelf from others, and must stay the same from process to process.

        `decode` raises `ValueError` for what it does not know.
        """
        self._spool = spool
        self._name = name
        self._encode = encode
        self._decode = decode
        self._metrics = metrics
        self._unwritten: dict[int, T] = {}
        self._written: set[int] = set()
        self._stale: list[int] = []
        self._unread = self._last_left = self._read_to = 0
        """Of what an earlier process left: how many items are not read, its last number, and the last that was read."""
        self._task: asyncio.Task[None] | None = None
        self._failing = False
        self._log = get_logger("spool", courier=name)
        metrics.spool_depth.labels(name).set_function(self.depth)

    async def open(self) -> tuple[list[tuple[int, T]], int]:
        """Read all that an earlier process left: `scan` and `read` in one.

        Returns:
            The items with their numbers, in order; and the highest number in use, from which to go on.

        Raises:
            SettingsError: the file cannot be read.
        """
        _, last = await self.scan()
        items: list[tuple[int, T]] = []
        while page := await self.read(PAGE_ROWS):
            items += page
        return items, last

    async def scan(self, look: Callable[[T], None] = lambda item: None) -> tuple[int, int]:
        """Look at each item that an earlier process left, page by page: all at once may not fit into memory.

        A row that this version does not know is passed over, with a line in the log, and stays where it is.

        Returns:
            How many items there are to `read`; and the highest number in use, from which to go on.

        Raises:
            SettingsError: the file cannot be read.
        """
        try:
            while rows := self._spool.load(self._name, self._last_left, PAGE_ROWS):
                for number, payload in rows:
                    try:
                        look(self._decode(payload))
                        self._unread += 1
                    except ValueError as error:
                        self._log.error("not understood, left in the spool", number=number, cause=str(error))
                self._last_left = rows[-1][0]
        except sqlite3.Error as error:
            raise SettingsError(f"DATA_DIR: cannot read the spool: {error}") from error
        return self._unread, self._last_left

    async def read(self, limit: int) -> list[tuple[int, T]]:
        """The next items that an earlier process left, with their numbers, in order; none once all were read."""
        items: list[tuple[int, T]] = []
        while self._unread and not items:
            try:
                rows = self._spool.load(self._name, self._read_to, min(limit, PAGE_ROWS))
            except sqlite3.Error as error:
                self._log.error("cannot be read, will retry", cause=str(error), items=self._unread)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            for number, payload in rows:
                with contextlib.suppress(ValueError):
                    if number <= self._last_left:
                        items.append((number, self._decode(payload)))
            self._read_to = rows[-1][0]
        self._unread -= len(items)
        self._written.update(number for number, _ in items)
        return items

    def keep(self, items: Iterable[tuple[int, T]]) -> None:
        """Write these to the disk. They are there when this returns, unless the disk fails."""
        self._unwritten.update((number, item) for number, item in items if number not in self._written)
        if not self._failing:
            self._write()

    def forget(self, numbers: Iterable[int]) -> None:
        """Delete these from the disk."""
        for number in numbers:
            self._unwritten.pop(number, None)
            if number in self._written:
                self._written.remove(number)
                self._stale.append(number)
        if not self._failing:
            self._write()

    def depth(self) -> int:
        """How many items are on the disk."""
        return len(self._written) + self._unread

    async def close(self) -> int:
        """Write what is to be written, now.

        Returns:
            How many items the disk did not take.
        """
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._write()
        return len(self._unwritten)

    async def _try_again(self) -> None:
        while self._failing:
            await asyncio.sleep(RETRY_SECONDS)
            self._write()

    def _write(self) -> None:
        """Bring the disk up to date. If that fails, try again every second until it works."""
        if not self._unwritten and not self._stale:
            return
        try:
            self._spool.change(self._name, self._encoded(self._unwritten), self._stale)
        except sqlite3.Error as error:
            self._metrics.spool_failures.inc()
            if not self._failing:  # once per trouble
                cause, items = str(error), len(self._unwritten)
                self._log.error("cannot be written, carrying on from memory", cause=cause, items=items)
                self._failing = True
                self._task = asyncio.create_task(self._try_again())
            return
        self._written.update(self._unwritten)
        self._unwritten.clear()
        self._stale.clear()
        if self._failing:
            self._failing = False
            self._log.info("can be written again")

    def _encoded(self, items: Mapping[int, T]) -> Iterator[tuple[int, bytes]]:
        for number, item in items.items():
            try:
                yield number, self._encode(item)
            except Exception:  # the store could not take it either, and the other items must not suffer for it
                self._log.exception("cannot be encoded, not in the spool", number=number)
