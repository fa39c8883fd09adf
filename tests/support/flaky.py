"""A store that has bad days: a real `Store` in front of another, which fails or blocks when a test says so."""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime

from infra.records import Event, Mode, Orphan, Session, SessionListed, UserStats
from infra.store import Store, StoreRefused


class FlakyStore:
    """Everything goes through to the store behind it, unless told otherwise.

    The next calls meet `weather`, one entry each: None is good weather, an exception is raised before anything is
    done, and an event is waited for. `lost_answers` are raised after it was done: the commit happened, the answer
    got lost. Events whose content is in `poison` are refused, with their batch. `appended` keeps what `append` was
    given, call by call, and `reached` is set by every call.

    Heartbeats come when they like, so they have a weather of their own, `beat_weather`, and set `beaten`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.weather: deque[Exception | asyncio.Event | None] = deque()
        self.lost_answers: deque[Exception] = deque()
        self.poison: set[str] = set()
        self.appended: list[list[Event]] = []
        self.reached = asyncio.Event()
        self.beat_weather: deque[Exception | asyncio.Event | None] = deque()
        self.beaten = asyncio.Event()

    async def _meet_the_weather(self) -> None:
        self.reached.set()
        await _meet(self.weather)

    def _lose_the_answer(self) -> None:
        if self.lost_answers:
            raise self.lost_answers.popleft()

    async def ping(self) -> None:
        """See `Store.ping`."""
        await self._meet_the_weather()
        await self._store.ping()

    async def open_session(self, session_id: str, user_id: str, *, at: datetime, container_id: str) -> Session:
        """See `Store.open_session`."""
        await self._meet_the_weather()
        return await self._store.open_session(session_id, user_id, at=at, container_id=container_id)

    async def session(self, session_id: str) -> Session | None:
        """See `Store.session`."""
        await self._meet_the_weather()
        return await self._store.session(session_id)

    async def transcript(self, session_id: str, *, limit: int) -> tuple[Session, list[Event]] | None:
        """See `Store.transcript`."""
        await self._meet_the_weather()
        return await self._store.transcript(session_id, limit=limit)

    async def set_modes(self, modes: Mapping[str, Mode]) -> None:
        """See `Store.set_modes`."""
        await self._meet_the_weather()
        await self._store.set_modes(modes)
        self._lose_the_answer()

    async def append(self, events: Sequence[Event]) -> None:
        """See `Store.append`."""
        self.appended.append(list(events))
        await self._meet_the_weather()
        if bad := [event.content for event in events if event.content in self.poison]:
            raise StoreRefused(f"poison: {bad}")
        await self._store.append(events)
        self._lose_the_answer()

    async def events(self, session_id: str, *, after: int = 0, limit: int) -> list[Event]:
        """See `Store.events`."""
        await self._meet_the_weather()
        return await self._store.events(session_id, after=after, limit=limit)

    async def events_before(self, session_id: str, event_id: str, *, limit: int) -> list[Event]:
        """See `Store.events_before`."""
        await self._meet_the_weather()
        return await self._store.events_before(session_id, event_id, limit=limit)

    async def latest_events(self, session_id: str, *, limit: int) -> list[Event]:
        """See `Store.latest_events`."""
        await self._meet_the_weather()
        return await self._store.latest_events(session_id, limit=limit)

    async def finish_session(self, session_id: str, epoch: int, *, ended_at: datetime, summary: str) -> bool:
        """See `Store.finish_session`."""
        await self._meet_the_weather()
        return await self._store.finish_session(session_id, epoch, ended_at=ended_at, summary=summary)

    async def improve_summary(self, session_id: str, epoch: int, *, old: str, new: str) -> bool:
        """See `Store.improve_summary`."""
        await self._meet_the_weather()
        return await self._store.improve_summary(session_id, epoch, old=old, new=new)

    async def note_announced(self, announced: Sequence[Orphan]) -> list[str]:
        """See `Store.note_announced`."""
        await self._meet_the_weather()
        return await self._store.note_announced(announced)

    async def user_stats(self, user_id: str) -> UserStats:
        """See `Store.user_stats`."""
        await self._meet_the_weather()
        return await self._store.user_stats(user_id)

    async def user_tokens(self, user_id: str, *, since: datetime) -> int:
        """See `Store.user_tokens`."""
        await self._meet_the_weather()
        return await self._store.user_tokens(user_id, since=since)

    async def list_sessions(self, user_id: str, *, before: str | None, limit: int) -> list[SessionListed]:
        """See `Store.list_sessions`."""
        await self._meet_the_weather()
        return await self._store.list_sessions(user_id, before=before, limit=limit)

    async def set_title(self, session_id: str, user_id: str, title: str) -> bool:
        """See `Store.set_title`."""
        await self._meet_the_weather()
        return await self._store.set_title(session_id, user_id, title)

    async def delete_session(self, session_id: str, user_id: str) -> bool:
        """See `Store.delete_session`."""
        await self._meet_the_weather()
        return await self._store.delete_session(session_id, user_id)

    async def delete_before(self, moment: datetime, *, limit: int) -> int:
        """See `Store.delete_before`."""
        await self._meet_the_weather()
        return await self._store.delete_before(moment, limit=limit)

    async def beat(self, container_id: str, *, at: datetime) -> None:
        """See `Store.beat`."""
        self.beaten.set()
        await _meet(self.beat_weather)
        await self._store.beat(container_id, at=at)

    async def depart(self, container_id: str) -> None:
        """See `Store.depart`."""
        await _meet(self.beat_weather)
        await self._store.depart(container_id)

    async def orphans(self, *, seen_before: datetime, limit: int) -> list[Orphan]:
        """See `Store.orphans`."""
        await self._meet_the_weather()
        return await self._store.orphans(seen_before=seen_before, limit=limit)

    async def open_sessions(self, container_id: str, *, limit: int) -> list[Orphan]:
        """See `Store.open_sessions`."""
        await self._meet_the_weather()
        return await self._store.open_sessions(container_id, limit=limit)

    async def close(self) -> None:
        """See `Store.close`."""
        await self._store.close()


async def _meet(weather: deque[Exception | asyncio.Event | None]) -> None:
    today = weather.popleft() if weather else None
    if isinstance(today, asyncio.Event):
        await today.wait()
    elif today is not None:
        raise today
