"""Finds sessions that are open in the store and assigned to this container, but unknown to it: their ends got lost.

The queue may have lost a message, the function may never have finished with one, or the answer to an opening may have
come too late. In each case the session is announced as ended once more. Repeating an announcement does no harm.
"""

import asyncio
from collections.abc import Callable

from chat.durability.courier import Courier
from infra.records import Orphan, SessionEnded
from infra.store import Store, StoreError
from infra.telemetry import get_logger

MOST = 500
"""Sessions looked at in one round; the rest come in later ones."""

log = get_logger("reconciler")


class Reconciler:
    """Looks at regular intervals. A session seen once may be on its way to its end; one seen twice in a row is lost."""

    def __init__(
        self,
        store: Store,
        container_id: str,
        is_known: Callable[[str], bool],
        endings: Courier[SessionEnded],
        every_seconds: float,
    ) -> None:
        """`is_known` says of a session id whether the session is live here, or is being opened or ended."""
        self._store = store
        self._container_id = container_id
        self._is_known = is_known
        self._endings = endings
        self._every_seconds = every_seconds
        self._suspects: set[tuple[str, int]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look, on the running loop."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Look no more."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_seconds)
            try:
                await self.look()
            except StoreError as error:
                log.warning("store unavailable, will look again", cause=str(error))
            except Exception:
                log.exception("failed unexpectedly, will look again")

    async def look(self) -> None:
        """One round.

        Raises:
            StoreError: the store did not answer.
        """
        rows = await self._store.open_sessions(self._container_id, limit=MOST)
        unknown = {(row.session_id, row.epoch): row for row in rows if not self._is_known(row.session_id)}
        forgotten = self._suspects & unknown.keys()
        again = [unknown[key] for key in forgotten]
        for row in again:
            self._endings.put(_ended(row))
            log.warning("announced again", session_id=row.session_id, epoch=row.epoch)
        self._suspects = unknown.keys() - forgotten
        if again:
            for session_id in await self._store.note_announced(again):
                log.error("not ended, and not announced any more", session_id=session_id)


def _ended(row: Orphan) -> SessionEnded:
    return SessionEnded(session_id=row.session_id, epoch=row.epoch, ended_at=row.last_time, reason="dropped")
