"""The courier and its spool over many lives: any order of failures, kills, clean ends and good days."""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from chat.durability.courier import Courier
from chat.durability.shelf import Shelf
from chat.durability.spool import Spool
from chat.metrics import Metrics
from tests.support.hypothesis_profile import lenient
from tests.support.spooled import PATIENCE, die, spooled, until

Step = tuple[str, int, bool]
KINDS = ("put", "put", "put", "fail", "part", "lose the answer", "outage", "good weather", "die", "die", "close")
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 5), st.booleans()), min_size=4, max_size=16)
"""What happens, how often, and whether time passes then, until nothing moves any more."""


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

    async def deliver(self, batch: Sequence[int]) -> Sequence[int]:
        """Take the batch, as the weather lets it."""
        kind, count = self.weather.pop(0) if self.weather else ("", 0)
        if self.outage or kind == "fail":
            raise Rain
        refused = list(batch[:count]) if kind == "part" else []
        self.stored += [item for item in batch if item not in refused and item not in self.stored]
        self.outage = kind == "part"
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
        self.weather, self.outage = [], False
        await asyncio.wait_for(self.courier.settled(), PATIENCE)

    async def do(self, kind: str, count: int) -> None:
        """One step."""
        if kind == "put":
            for _ in range(count):
                self.courier.put(self.number)
                self.put.append(self.number)
                self.number += 1
        elif kind in ("fail", "part", "lose the answer"):
            self.weather += [(kind, count)] * (count if kind == "fail" else 1)
        elif kind == "outage":
            self.outage = True
        elif kind == "good weather":
            self.outage = False
        elif kind == "close":
            assert await self.courier.close(within=0) == 0
            await self.spool.close()
            await self.begin()
        elif kind == "die":
            await die(self.courier, self.spool)
            await self.begin()

    def check(self) -> None:
        """Every item has arrived, or is on the disk."""
        assert set(self.put) <= {*self.on_disk(), *self.stored}

    def on_disk(self) -> list[int]:
        """What the file holds."""
        return [int(payload) for payload in spooled(self.folder, "test")]


async def live(steps: Sequence[Step], folder: Path) -> None:
    world = World(folder)
    await world.begin()
    for kind, count, time_passes in steps:
        await world.do(kind, count)
        world.check()
        if time_passes:
            await asyncio.sleep(0.001)
            world.check()
    await world.settle()
    await until(lambda: world.on_disk() == [])
    assert await world.courier.close(within=PATIENCE) == 0
    await world.spool.close()
    assert sorted(world.stored) == world.put
    if not any(kind == "part" for kind, _, _ in steps):  # what is refused may be overtaken by the rest of its batch
        assert world.stored == sorted(world.stored)


@given(STEPS)
@settings(lenient, max_examples=60)
def test_what_was_put_and_spooled_arrives_in_order_over_any_number_of_deaths(steps: list[Step]) -> None:
    """Nothing that was put is ever lost, whenever the process dies; nothing is stored twice, and nothing overtakes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        patch("chat.durability.courier.FIRST_RETRY_SECONDS", 0.0001),
        patch("chat.durability.courier.MOST_RETRY_SECONDS", 0.002),
    ):
        asyncio.run(live(steps, Path(folder)))
