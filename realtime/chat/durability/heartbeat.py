"""The sign of life: this container's row, renewed as long as it lives, so that the sweep can tell who is dead."""

import asyncio

from infra.records import utc_now
from infra.store import Store, StoreError
from infra.telemetry import get_logger

RETRY_SECONDS = 1.0
"""How soon a beat that failed is tried again, if the next is not due before: every missed one brings death nearer."""
DEPART_SECONDS = 0.3
"""How long the farewell may take: a row that stays is dead anyway, soon."""

log = get_logger("heartbeat")


class Heartbeat:
    """One row for the container, however many sessions it has."""

    def __init__(self, store: Store, container_id: str, every_seconds: float) -> None:
        self._store = store
        self._container_id = container_id
        self._every_seconds = every_seconds
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Beat once, and go on until `close`. A session opened before the first beat would pass for a dead one's.

        A store that is down stops no start: it opens no session either.
        """
        beaten = await self._beat()
        self._task = asyncio.create_task(self._run(beaten))

    async def close(self) -> None:
        """Stop, and take the row away, so that nobody waits to find out: what is still open is swept at once.

        Call it when the ends of the sessions are announced. A store that is down is not waited for.
        """
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])  # a beat on its way must not bring the row back
        try:
            async with asyncio.timeout(DEPART_SECONDS):
                await self._store.depart(self._container_id)
        except (StoreError, TimeoutError) as error:
            log.warning("not signed off", container_id=self._container_id, cause=str(error) or "timeout")

    async def _run(self, beaten: bool) -> None:
        while True:
            await asyncio.sleep(self._every_seconds if beaten else min(self._every_seconds, RETRY_SECONDS))
            beaten = await self._beat()

    async def _beat(self) -> bool:
        """Whether the beat is in the store; if not, the log says so in a line."""
        try:
            await self._store.beat(self._container_id, at=utc_now())
        except StoreError as error:
            log.warning("heartbeat failed, will retry", container_id=self._container_id, cause=str(error))
        except Exception:
            log.exception("heartbeat failed unexpectedly, will retry", container_id=self._container_id)
        else:
            return True
        return False
