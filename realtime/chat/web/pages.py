"""A page of stored events as JSON: bounded in bytes, however large the events are."""

from collections.abc import Awaitable, Callable

import msgspec
from fastapi import Response

from infra.records import Event
from infra.store import Store

PAGE_BYTES = 1024 * 1024
"""A page ends before the event that would make it larger, but has one in any case. Whoever asks for pages and does not
read them holds this much of our memory for each."""
FIRST_READ = 50
"""How many events are read first. How many more there is room for is reckoned from their size."""


async def page_after(store: Store, session_id: str, after: int, limit: int) -> Response:
    """The events after this `id`, oldest first.

    Raises:
        StoreError: they cannot be read.
    """

    async def read(last: Event | None, size: int) -> list[Event]:
        return await store.events(session_id, after=last.id if last else after, limit=size)

    return _answer(await _read(read, limit))


async def page_before(store: Store, session_id: str, event_id: str, limit: int) -> Response:
    """The events just before the one with this `event_id`, oldest first.

    Raises:
        StoreError: they cannot be read.
    """

    async def read(last: Event | None, size: int) -> list[Event]:
        earlier = await store.events_before(session_id, last.event_id if last else event_id, limit=size)
        return earlier[::-1]

    return _answer((await _read(read, limit))[::-1])


async def _read(read: Callable[[Event | None, int], Awaitable[list[Event]]], limit: int) -> list[bytes]:
    """Up to `limit` encoded events. `read` gives at most so many of those that follow the last one."""
    page: list[bytes] = []
    total, last, size = 0, None, min(limit, FIRST_READ)
    while size > 0:
        events = await read(last, size)
        for event in events:
            encoded = msgspec.json.encode(event.shown())
            total += len(encoded) + 1
            if page and total > PAGE_BYTES:
                return page
            page.append(encoded)
            last = event
        if len(events) < size:
            break
        size = min(limit - len(page), max(1, (PAGE_BYTES - total) * len(page) // total))
    return page


def _answer(page: list[bytes]) -> Response:
    return Response(b"[" + b",".join(page) + b"]", media_type="application/json")
