"""The visitors of one run: as many at once as were asked for, each replaced when it has left."""

import asyncio
import random

from tests.chaos.visitor import Visitor

DROPPED = 0.5
"""How many of the connections a cut takes."""


class Crowd:
    """People who come, chat and go. `everybody` is all that ever came."""

    def __init__(self, url: str, size: int, dice: random.Random) -> None:
        self.everybody: list[Visitor] = []
        self._url = url
        self._size = size
        self._dice = dice
        self._chatting: dict[asyncio.Task[None], Visitor] = {}

    def fill_up(self) -> None:
        """Let new ones in for those who have left; raises what went wrong with one of them."""
        for task in [task for task in self._chatting if task.done()]:
            del self._chatting[task]
            task.result()
        while len(self._chatting) < self._size:
            dice = random.Random(self._dice.random())
            visitor = Visitor(self._url, f"v{len(self.everybody)}", dice.randint(1, 6), dice)
            self.everybody.append(visitor)
            self._chatting[asyncio.create_task(visitor.visit())] = visitor

    def cut_sockets(self) -> None:
        """Lose some of the connections."""
        for visitor in self._chatting.values():
            if self._dice.random() < DROPPED:
                visitor.drop()

    async def leave(self, within: float) -> None:
        """Wait until all have said everything and gone."""
        async with asyncio.timeout(within):
            await asyncio.gather(*self._chatting)
