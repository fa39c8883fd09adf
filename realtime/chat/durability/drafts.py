"""Keeps what replies have said so far on the disk, so that a kill takes no words away that somebody has read."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from chat.conversation.draft import Draft, interruptions
from chat.durability.shelf import Shelf
from chat.durability.spool import Spool
from chat.metrics import Metrics
from infra.records import Event

KEEP_SECONDS = 0.5
"""How often the words said since are written, those of all sessions together: what a kill may take at the most."""

_decoder = msgspec.json.Decoder(Draft)


class Speaker(Protocol):
    """A session whose reply is being said."""

    session_id: str

    def draft(self) -> Draft | None:
        """What was said since it was last asked, if that is not recorded yet."""


class Drafts:
    """The pieces of unrecorded replies. A reply shorter than `KEEP_SECONDS` never gets here.

    A piece stays until the event that has its words is in the store.
    """

    def __init__(self, spool: Spool, metrics: Metrics) -> None:
        self._shelf = Shelf(spool, "drafts", encode=msgspec.json.encode, decode=_decode, metrics=metrics)
        self._last = 0
        self._speaking: set[Speaker] = set()
        self._open: dict[str, list[int]] = {}
        self._closed: dict[str, list[int]] = {}
        self._left: dict[str, list[tuple[int, Draft]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def recover(self) -> None:
        """Read what an earlier process left. Before `start`.

        Raises:
            SettingsError: the spool cannot be read.
        """
        items, self._last = await self._shelf.open()
        for number, draft in items:
            self._left.setdefault(draft.session_id, []).append((number, draft))

    def start(self) -> None:
        """Begin to write, on the running loop."""
        self._task = asyncio.create_task(self._run())

    def speaks(self, speaker: Speaker) -> None:
        """Note that a reply has gone on. Called for every token."""
        self._speaking.add(speaker)

    def recorded(self, event: Event) -> None:
        """Note that the session's words so far are in this event, on its way to the store."""
        if numbers := self._open.pop(event.session_id, None):
            self._closed[event.event_id] = numbers

    def stored(self, event: Event) -> None:
        """Let go of the pieces whose words are in this event."""
        if numbers := self._closed.pop(event.event_id, None):
            self._shelf.forget(numbers)

    def left(self) -> Mapping[str, object]:
        """The ids of the sessions in which an earlier process left pieces, until `settled`."""
        return self._left

    def interruptions(self, session_id: str, stored: Sequence[Event]) -> list[Event]:
        """What to store of the pieces that were left in this session, whose latest events are given."""
        return interruptions((draft for _, draft in self._left.get(session_id, ())), stored)

    def settled(self, session_id: str) -> None:
        """Let go of the pieces that were left in this session."""
        if left := self._left.pop(session_id, None):
            self._shelf.forget([number for number, _ in left])

    async def close(self) -> None:
        """Write what is to be written, and stop."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        self.write()
        await self._shelf.close()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            self.write()

    def write(self) -> None:
        """Have what was said since the last time on the disk, in one step."""
        speakers, self._speaking = self._speaking, set()
        pieces = []
        for draft in filter(None, (speaker.draft() for speaker in speakers)):
            self._last += 1
            self._open.setdefault(draft.session_id, []).append(self._last)
            pieces.append((self._last, draft))
        if pieces:
            self._shelf.keep(pieces)


def _decode(payload: bytes) -> Draft:
    return _decoder.decode(payload)
