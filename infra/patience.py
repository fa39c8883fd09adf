"""How long a model or a tool may be silent, in time in which it could have been heard."""

import asyncio
from types import TracebackType
from typing import Self

LOOK_SECONDS = 1.0
"""How often the silence is measured, or a quarter of the patience if that is less: no timer is moved for a token."""


class Patience:
    """`async with` this, `TimeoutError` is raised after so many seconds without a call of `heard`, and a look more.

    Time in which this process was frozen, as a laptop's or a virtual machine's is, does not count: what was said
    meanwhile waits in the socket, and is read only after the timers have run.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._every = min(LOOK_SECONDS, seconds / 4)
        self._silent = 0.0
        self._resting = False
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        """Begin to count."""
        self._loop = asyncio.get_running_loop()
        await self._timeout.__aenter__()
        self._look_later()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Count no more."""
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    def heard(self) -> None:
        """Something was said: count anew."""
        self._silent = 0.0

    def rest(self) -> None:
        """Do not count until something is heard again by `wake`: nobody listens."""
        self._resting = True

    def wake(self) -> None:
        """Count anew."""
        self._resting = False
        self._silent = 0.0

    def _look_later(self) -> None:
        self._looked = self._loop.time()
        self._timer = self._loop.call_later(self._every, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        if not self._resting:
            self._silent += min(now - self._looked, 2 * self._every)
        if self._silent >= self._seconds + self._every:
            self._timeout.reschedule(now)
        else:
            self._look_later()
