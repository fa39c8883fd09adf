"""What a store must do, and the three ways it may fail."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from infra.records import Event, Mode, Orphan, Session, SessionListed, UserStats


class StoreError(Exception):
    """The store did not do what was asked."""


class StoreUnavailable(StoreError):
    """It may work later: the network, a lock, a full disk, a server error. Worth a retry.

    `retry_after` is how many seconds the store itself asks to be left alone, or None.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoreRefused(StoreError):
    """It will never work: the database refuses this very row. Retrying would block what comes after it."""


class StoreMisconfigured(StoreError):
    """Somebody must act first: wrong path or key, missing table or migration. Says what to do."""


class NotYours(StoreError):
    """The session exists and belongs to another user."""


def storable(value: Any) -> Any:
    """The text, or the JSON value, with U+FFFD for U+0000, which PostgreSQL keeps in neither text nor JSON."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd") if "\0" in value else value
    if isinstance(value, dict):
        return {storable(name): storable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [storable(inner) for inner in value]
    return value


MOST_ANNOUNCEMENTS = 8
"""How often the end of one session is announced, over two days. The migrations have the same number."""


MOST_COUNTED = 1000
"""How many of a user's latest sessions their figures are made of: `anonymous` may have had a million. The migrations
have the same number."""


class Store(Protocol):
    """Sessions and their events. Every verb may raise `StoreUnavailable`; times are timezone-aware.

    Texts are kept as they are, but for U+0000: see `storable`.

    Each verb is atomic. A verb whose answer got lost may be called again: the second call changes nothing,
    except `open_session`, which opens the session once more.
    """

    async def ping(self) -> None:
        """Return if the store can answer; raise `StoreError` if not."""

    async def open_session(self, session_id: str, user_id: str, *, at: datetime, container_id: str) -> Session:
        """Create the session, or reopen it: one epoch more, and no end, duration or summary.

        Raises:
            NotYours: it exists under another `user_id`; nothing was changed.
        """

    async def session(self, session_id: str) -> Session | None:
        """The session's row, or None if there is none."""

    async def transcript(self, session_id: str, *, limit: int) -> tuple[Session, list[Event]] | None:
        """The session's row and its first `limit` events, oldest first: one request; None if there is no such row."""

    async def set_modes(self, modes: Mapping[str, Mode]) -> None:
        """Note the mode of each session id; unknown ids are passed over."""

    async def append(self, events: Sequence[Event]) -> None:
        """Store the events in this order; those whose `event_id` is stored already are passed over.

        One that is later than its session's end opens the session again, at the same epoch: its summary is not whole.

        Raises:
            StoreRefused: at least one row is not acceptable, and none of these events was stored.
        """

    async def events(self, session_id: str, *, after: int = 0, limit: int) -> list[Event]:
        """The first `limit` events whose `id` is greater than `after`, oldest first."""

    async def events_before(self, session_id: str, event_id: str, *, limit: int) -> list[Event]:
        """The last `limit` events before the one with this `event_id`, a UUID, oldest first.

        None if that event is not stored. A client that has the end of a conversation reads on towards its beginning.
        """

    async def latest_events(self, session_id: str, *, limit: int) -> list[Event]:
        """The last `limit` events, oldest first."""

    async def finish_session(self, session_id: str, epoch: int, *, ended_at: datetime, summary: str) -> bool:
        """Write end, duration and summary, if the session is open, still at this epoch, and no event is later.

        Returns:
            Whether this call ended it. False for a repeated or a stale one, which change nothing.
        """

    async def improve_summary(self, session_id: str, epoch: int, *, old: str, new: str) -> bool:
        """Put another summary in the place of this one, if the session has ended and is still at this epoch.

        Returns:
            Whether it was. False where somebody else has changed the row.
        """

    async def user_stats(self, user_id: str) -> UserStats:
        """The user's own figures, of their latest `MOST_COUNTED` sessions; zeros and None for an unknown user."""

    async def user_tokens(self, user_id: str, *, since: datetime) -> int:
        """How many tokens, in and out, the user's turns took that ended since then, in their latest sessions."""

    async def list_sessions(self, user_id: str, *, before: str | None, limit: int) -> list[SessionListed]:
        """The user's sessions, newest first; with `before`, those that follow that one, none if it is not theirs."""

    async def set_title(self, session_id: str, user_id: str, title: str) -> bool:
        """Name a session, if it is this user's; whether it is."""

    async def delete_session(self, session_id: str, user_id: str) -> bool:
        """Remove a session and all that was said in it, if it is this user's; whether it was."""

    async def delete_before(self, moment: datetime, *, limit: int) -> int:
        """Remove so many of the sessions that ended before then, the oldest first; how many were removed."""

    async def beat(self, container_id: str, *, at: datetime) -> None:
        """Note that this container was alive then; its row is made by the first beat."""

    async def depart(self, container_id: str) -> None:
        """Forget the container: sessions that it leaves open are orphans from now on. It need not be known."""

    async def orphans(self, *, seen_before: datetime, limit: int) -> list[Orphan]:
        """Open sessions whose container departed, never beat, or last beat before this moment.

        The oldest `last_time` comes first. Sessions that were never in a container, as those of adopted tables, are
        nobody's orphans. Those whose end was announced lately, or often enough, are left out: see `note_announced`.
        """

    async def open_sessions(self, container_id: str, *, limit: int) -> list[Orphan]:
        """The container's sessions that have no end, the longest silent first; some left out, as in `orphans`."""

    async def note_announced(self, announced: Sequence[Orphan]) -> list[str]:
        """Note that the ends of these were announced once more.

        Each is due again after 30 s, then after four times as long as the last time, and never again after the
        `MOST_ANNOUNCEMENTS`th, unless the session is opened again.

        Returns:
            The ids of those that will not be announced any more.
        """

    async def close(self) -> None:
        """Let go of connections and threads. The store is of no use afterwards."""
