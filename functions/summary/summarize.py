"""Ends one session in the store: idempotent, in whatever order and however often it is asked."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from enum import Enum

from functions.summary.prompt import messages_for_model, plain_summary
from infra.llm import Model, ModelError, TextDelta
from infra.records import Event, Session, SessionEnded
from infra.store import Store
from infra.telemetry import bind, get_logger

MODEL_SECONDS = 20.0
"""How long a model may take: the function itself has 30 s, and others of its batch wait."""
PAGE = 1000
"""Events read at once. Servers cap a read at a number of rows; a long session takes several."""

log = get_logger("summarize")


class UnknownSession(Exception):
    """The message names a session, or an epoch of it, that the store has not seen."""


class Outcome(Enum):
    """What a message led to."""

    WRITTEN = "written"
    """The summary, the end and the duration are in the row."""
    REPEATED = "repeated"
    """They were already."""
    STALE = "stale"
    """The user came back, or late events did: the session is open, and its next end brings its own message."""


class Summarizer:
    """Summarises sessions with one store, and with a model or, where there is none, plainly."""

    def __init__(self, store: Store, model: Model | None) -> None:
        self._store = store
        self._model = model

    async def summarize(self, ended: SessionEnded) -> Outcome:
        """Write the summary, end and duration of the session, if it is still as the message says.

        Raises:
            UnknownSession: there is nothing to summarise.
            StoreError: the store did not answer; the message must come again.
            ModelError: the same, for the model.
        """
        bind(session_id=ended.session_id, epoch=ended.epoch)  # for the caller as well, who says what failed
        found = await self._store.transcript(ended.session_id, limit=PAGE)
        if found is None or found[0].epoch < ended.epoch:
            raise UnknownSession(f"no session {ended.session_id} at epoch {ended.epoch}")
        outcome = await self._finish(*found, ended)
        log.info(outcome.value, reason=ended.reason)
        return outcome

    async def _finish(self, session: Session, events: list[Event], ended: SessionEnded) -> Outcome:
        if session.epoch > ended.epoch:
            return Outcome.STALE
        if session.end_time is not None:
            return Outcome.REPEATED
        events += await self._the_rest(session.session_id, events)
        summary = await self._summary(session, events)
        # Clocks differ: a session does not end before its last event.
        ended_at = max([ended.ended_at, *(event.timestamp for event in events)])
        # The user may come back while we write, or the same message be handled twice at once, or an event come that is
        # not in the summary: the store decides.
        written = await self._store.finish_session(session.session_id, ended.epoch, ended_at=ended_at, summary=summary)
        if written:
            return Outcome.WRITTEN
        now = await self._store.session(session.session_id)
        return Outcome.STALE if now and (now.epoch > ended.epoch or now.end_time is None) else Outcome.REPEATED

    async def _the_rest(self, session_id: str, events: Sequence[Event]) -> list[Event]:
        """What comes after these, which are the first page."""
        rest: list[Event] = []
        page = events
        while len(page) >= PAGE:
            page = await self._store.events(session_id, after=page[-1].id, limit=PAGE)
            rest += page
        return rest

    async def _summary(self, session: Session, events: list[Event]) -> str:
        plain = plain_summary(events, session.mode)
        if self._model is None or not any(event.role == "user" for event in events):
            return plain
        try:
            async with (
                asyncio.timeout(MODEL_SECONDS),
                aclosing(self._model.stream(messages_for_model(events), [])) as chunks,
            ):
                text = "".join([chunk.text async for chunk in chunks if isinstance(chunk, TextDelta)])
        except (ModelError, TimeoutError) as error:
            if isinstance(error, ModelError) and error.retryable:
                raise
            # It would refuse, or be as slow, the next time as well; a plain summary is better than none.
            log.warning("plain summary", cause=str(error) or "timeout")
            return plain
        return " ".join(text.split()) or plain
