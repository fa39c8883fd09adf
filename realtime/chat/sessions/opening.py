"""How a session comes out of the store: opened once, and read again when its memory was given up."""

import asyncio
from collections.abc import Callable

from chat.durability.journal import Journal
from chat.protocol.frames import CloseCode, ErrorCode
from chat.sessions.door import Refused, not_yours
from infra.records import Event, Session, utc_now
from infra.store import NotYours, Store, StoreError
from infra.telemetry import get_logger

OPEN_SECONDS = 10.0
"""How long a client waits for its session before it is told to come back."""

log = get_logger("sessions")


class Opening:
    """Reads sessions for one container."""

    def __init__(self, store: Store, journal: Journal, *, history_events: int, container_id: str) -> None:
        """`history_events` is how many of a session's latest events its conversation keeps."""
        self._store = store
        self._journal = journal
        self._history_events = history_events
        self._container_id = container_id

    async def open(
        self, session_id: str, user_id: str, leaving: Callable[[], asyncio.Task[None] | None]
    ) -> tuple[Session, list[Event]]:
        """The session at its next epoch, and its latest events; made if it is new.

        Args:
            session_id: whose.
            user_id: who asks for it.
            leaving: the task that ends it, if it is being ended here.

        Raises:
            Refused: it is somebody else's, or the store does not answer.
        """
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                if ending := leaving():
                    await asyncio.wait([ending])  # its last events must be stored before they are read
                await self._journal.caught_up(session_id)  # those that an earlier process left, too
                events = await self._latest_events(session_id)
                # Last, because it raises the epoch: a session opened and then given up would never be ended.
                row = await self._store.open_session(session_id, user_id, at=utc_now(), container_id=self._container_id)
        except NotYours:
            raise not_yours() from None
        except (StoreError, TimeoutError) as error:
            raise _cannot_be_read(session_id, error) from error
        return row, events

    async def read_again(self, session_id: str) -> list[Event]:
        """Its latest events.

        Raises:
            Refused: the store does not answer.
        """
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                return await self._latest_events(session_id)
        except (StoreError, TimeoutError) as error:
            raise _cannot_be_read(session_id, error) from error

    async def _latest_events(self, session_id: str) -> list[Event]:
        # One more than the conversation keeps, which tells it that there are earlier ones.
        return await self._store.latest_events(session_id, limit=self._history_events + 1)


def _cannot_be_read(session_id: str, error: Exception) -> Refused:
    log.warning("session cannot be opened", session_id=session_id, cause=str(error) or "timeout")
    message = "The conversation cannot be opened at the moment; nothing is lost."
    return Refused(CloseCode.STORE_UNAVAILABLE, ErrorCode.STORE_UNAVAILABLE, message, 2)
