"""The heartbeat: this container's row, renewed while it runs, so that the sweep can tell which containers are dead."""

import asyncio

from infra.records import utc_now
from infra.store import Store, StoreError
from infra.telemetry import get_logger

RETRY_SECONDS = 1.0
"""How soon a failed beat is tried again, unless the next is due earlier. Too many misses, and the sweep acts."""
DEPART_SECONDS = 0.3
"""How long deleting the row may take at the end. A row that stays counts as dead soon anyway."""

log = get_logger("heartbeat")


class Heartbeat:
    """One row for the container, however many sessions it has."""

    def __init__(self, store: Store, container_id: str, every_seconds: float) -> None:
        self._store = store
        self._container_id = container_id
        self._every_seconds = every_seconds
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Beat once, and go on until `close`. A session opened before the first beat would look orphaned.

        The server also starts while the store is down: no session can be opened then anyway.
        """
        beaten = await self._beat()
        self._task = asyncio.create_task(self._run(beaten))

    async def close(self) -> None:
        """Stop, and delete the row, so that sessions that are still open are swept at once.

        Call it after the ends of the sessions have been announced. A store that is down is not waited for.
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
