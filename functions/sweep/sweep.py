"""One sweep: the open sessions of dead containers, each handed off as ended when it was last heard of."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

from infra.handoff import SQS_BATCH, Handoff, HandoffUnavailable
from infra.records import Orphan, SessionEnded, utc_now
from infra.store import Store, StoreError
from infra.telemetry import get_logger

PAGE = 100
"""Sessions asked for at once."""
MOST = 1000
"""Sessions per sweep. The next sweep comes soon, and a server may not send more rows than this."""
WITHIN_SECONDS = 20.0
"""A sweep is cut off after this long: the function itself has 30 s, and a failing hand-off may be slow."""

MOST_REMOVED = 500
"""Old sessions that one sweep removes; the next one goes on."""

log = get_logger("sweep")


class Sweeper:
    """Sweeps one store into one hand-off.

    A session is an orphan until the summary function has ended it, and a sweep only notes that it was handed off, to
    do so more and more seldom. So a sweep may be cut off, or run beside another. What is handed off twice is summarised
    once, and a session that was opened again in the meantime has another epoch, for which the message is too old.
    """

    def __init__(self, store: Store, handoff: Handoff, dead_after_seconds: float) -> None:
        self._store = store
        self._handoff = handoff
        self._dead_after = timedelta(seconds=dead_after_seconds)

    async def sweep(self) -> int:
        """Hand off every orphan, once; how many were taken. What was not is there in the next sweep.

        Raises:
            StoreError: the store did not say who is orphaned.
        """
        seen_before = utc_now() - self._dead_after
        found: set[Orphan] = set()
        causes: set[str] = set()
        taken = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(WITHIN_SECONDS):
                while len(found) < MOST:
                    # Those whose announcement could not be noted are there still, before the new ones.
                    orphans = await self._store.orphans(seen_before=seen_before, limit=len(found) + PAGE)
                    new = [orphan for orphan in orphans if orphan not in found]
                    if not new:
                        break
                    found.update(new)
                    for first in range(0, len(new), SQS_BATCH):
                        taken += await self._hand_off(new[first : first + SQS_BATCH], causes)
        if left := len(found) - taken:
            log.warning("swept in part", handed_off=taken, left=left, cause="; ".join(sorted(causes)) or "refused")
        elif found:
            log.info("swept", handed_off=taken)
        return taken

    async def _hand_off(self, orphans: Sequence[Orphan], causes: set[str]) -> int:
        """How many were taken; why not, if none was, is added to `causes`."""
        batch = [
            SessionEnded(session_id=it.session_id, epoch=it.epoch, ended_at=it.last_time, reason="crashed")
            for it in orphans
        ]
        try:
            refused = await self._handoff.send(batch)
        except HandoffUnavailable as error:
            causes.add(str(error))
            return 0
        taken = [ended for ended in batch if ended not in refused]
        for ended in taken:
            log.info("handed off", session_id=ended.session_id, epoch=ended.epoch)
        handed = {ended.session_id for ended in taken}
        try:
            for session_id in await self._store.note_announced([it for it in orphans if it.session_id in handed]):
                log.error("not ended, and not announced any more", session_id=session_id)
        except StoreError as error:  # the next sweep hands them off once more
            log.warning("not noted", cause=str(error))
        return len(taken)


async def remove_old(store: Store, days: float) -> None:
    """Remove the sessions that ended so many days ago, and all that was said in them."""
    try:
        removed = await store.delete_before(utc_now() - timedelta(days=days), limit=MOST_REMOVED)
    except StoreError as error:  # the next sweep does it
        log.warning("old sessions not removed", cause=str(error))
        return
    if removed:
        log.info("old sessions removed", sessions=removed, days=days)
