"""The courier and its spool over many lives: any order of failures, kills, clean ends and good days."""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from chat.courier import Courier
from chat.metrics import Metrics
from chat.shelf import Shelf
from chat.spool import Spool
from tests.hypothesis_profile import lenient
from tests.spooled import PATIENCE, die, spooled, until

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 5)),
        st.tuples(st.just("fail"), st.integers(1, 3)),
        st.tuples(st.just("refuse"), st.integers(0, 3)),
        st.sampled_from([("lose the answer", 0), ("settle", 0), ("pass", 0)]),
        st.sampled_from([("outage", 0), ("spooled", 0), ("die", 0), ("close", 0)]),
    ),
    min_size=3,
    max_size=20,
)


class Rain(Exception):
    """The failure that is expected."""


class World:
    """A store that takes each item once, and one process after the other that carries to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stored: list[int] = []
        self.weather: list[tuple[str, int]] = []
        self.outage = False
        self.number = 0
        self.put: list[int] = []
        self.may_be_lost: set[int] = set()

    async def deliver(self, batch: Sequence[int]) -> Sequence[int]:
        """Take the batch, as the weather lets it."""
        kind, count = self.weather.pop(0) if self.weather else ("", 0)
        if self.outage or kind == "fail":
            raise Rain
        refused = list(batch[:count]) if kind == "refuse" else []
        self.stored += [item for item in batch if item not in refused and item not in self.stored]
        if kind == "lose the answer":
            raise Rain
        return refused

    async def begin(self) -> None:
        """The next process."""
        self.spool = await Spool.open(self.folder)
        self.courier = Courier("test", self.deliver, batch_size=3, expected=Rain)
        await self.courier.recover(Shelf(self.spool, "test", encode=b"%d".__mod__, decode=int, metrics=Metrics()))
        self.courier.start()

    async def settle(self) -> None:
        """Everything put arrives."""
        self.outage = False
        await asyncio.wait_for(self.courier.settled(), PATIENCE)

    async def do(self, step: str, count: int) -> None:
        """One step."""
        if step == "put":
            for _ in range(count):
                self.courier.put(self.number)
                self.put.append(self.number)
                self.number += 1
        elif step in ("fail", "refuse", "lose the answer"):
            self.weather += [(step, count)] * (count if step == "fail" else 1)
        elif step == "pass":
            await asyncio.sleep(0)
        elif step == "outage":
            self.outage = True
        elif step == "settle":
            await self.settle()
        elif step == "spooled" and self.outage:
            await until(lambda: set(self.put) <= set(self.on_disk()) | set(self.stored) | self.may_be_lost)
        elif step == "close":
            assert await self.courier.close(within=0) == 0
            await self.spool.close()
            await self.begin()
        elif step == "die":
            await die(self.courier, self.spool)
            self.may_be_lost |= set(self.put) - set(self.on_disk())
            await self.begin()

    def on_disk(self) -> list[int]:
        """What the file holds."""
        return [int(payload) for payload in spooled(self.folder, "test")]


async def live(steps: Sequence[tuple[str, int]], folder: Path) -> None:
    world = World(folder)
    await world.begin()
    for step, count in steps:
        await world.do(step, count)
    await world.settle()
    await until(lambda: world.on_disk() == [])
    assert await world.courier.close(within=PATIENCE) == 0
    await world.spool.close()
    assert set(world.put) - set(world.stored) <= world.may_be_lost
    assert len(world.stored) == len(set(world.stored))
    if not any(step == "refuse" for step, _ in steps):  # what is refused may be overtaken by its own batch
        assert world.stored == sorted(world.stored)


@given(STEPS)
@settings(lenient, max_examples=150)
def test_what_was_put_and_spooled_arrives_in_order_over_any_number_of_deaths(steps: list[tuple[str, int]]) -> None:
    """Only what a kill met before it was on the disk may be missing; nothing is stored twice, and nothing overtakes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        patch("chat.courier.FIRST_RETRY_SECONDS", 0.0001),
        patch("chat.courier.MOST_RETRY_SECONDS", 0.002),
        patch("chat.shelf.GATHER_SECONDS", 0.001),
    ):
        asyncio.run(live(steps, Path(folder)))
