"""Ends one session in the store: idempotent, in whatever order and however often it is asked."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from enum import Enum

from functions.summary.prompt import SUMMARY_CHARS, messages_for_model, plain_summary
from infra import tracing
from infra.llm import Model, ModelError, TextDelta
from infra.records import Event, Session, SessionEnded
from infra.store import Store
from infra.store.base import storable
from infra.telemetry import bind, get_logger

MODEL_SECONDS = 20.0
"""How long a model may take: the function itself has 30 s, and the rest of the batch waits."""
SECOND = 2
"""The model is asked up to this receive of a message, so a session is paid for at most twice."""
PAGE = 1000
"""Events per read. Servers cap the rows of a read, so a long session takes several."""

log = get_logger("summarize")


class UnknownSession(Exception):
    """The message names a session, or an epoch of it, that the store has not seen."""


class Outcome(Enum):
    """What a message led to."""

    WRITTEN = "written"
    """The summary, the end and the duration are in the row."""
    PLAIN = "plain"
    """They are, but the model failed, and may not the next time: if the message comes again, it is asked once more."""
    IMPROVED = "improved"
    """It was asked once more, and its summary is in the row in place of the plain one."""
    REPEATED = "repeated"
    """The session had ended already."""
    STALE = "stale"
    """The user came back, or late events did: the session is open, and its next end brings its own message."""


class Summarizer:
    """Summarises sessions with one store, and with a model or, where there is none, plainly.

    An end and a duration need no model: whatever the model does, the session is ended.
    """

    def __init__(self, store: Store, model: Model | None) -> None:
        self._store = store
        self._model = model

    async def summarize(self, ended: SessionEnded, receive: int = 1) -> Outcome:
        """Write the summary, end and duration of the session, if it is still as the message says.

        Args:
            ended: the message.
            receive: how often the queue has delivered it, from 1. The model is asked the first two times alone.

        Raises:
            UnknownSession: there is nothing to summarise.
            StoreError: the store did not answer; the message must come again.
        """
        bind(session_id=ended.session_id, epoch=ended.epoch)  # for the caller as well, who says what failed
        about = {"gen_ai.conversation.id": ended.session_id, "realtime.epoch": ended.epoch, "realtime.receive": receive}
        with tracing.span("summarise session", about, parent=ended.traceparent, kind="consumer") as span:
            outcome = await self._end(ended, receive)
            span.set({"realtime.outcome": outcome.name.lower()})
        log.info(outcome.value, reason=ended.reason)
        return outcome

    async def _end(self, ended: SessionEnded, receive: int) -> Outcome:
        found = await self._store.transcript(ended.session_id, limit=PAGE)
        if found is None or found[0].epoch < ended.epoch:
            raise UnknownSession(f"no session {ended.session_id} at epoch {ended.epoch}")
        session, events = found
        if session.epoch > ended.epoch:
            return Outcome.STALE
        if session.end_time is None:
            return await self._finish(session, events, ended, receive)
        if receive == SECOND:
            return await self._improve(session, events)
        return Outcome.REPEATED

    async def _finish(self, session: Session, events: list[Event], ended: SessionEnded, receive: int) -> Outcome:
        events += await self._the_rest(session.session_id, events)
        plain = plain_summary(events, session.mode)
        summary, may_improve = await self._ask(events) if receive <= SECOND else (None, False)
        # Clocks differ: a session does not end before its last event.
        ended_at = max([ended.ended_at, *(event.timestamp for event in events)])
        # The user may come back while we write, or the same message be handled twice at once, or an event come that is
        # not in the summary: the store decides.
        written = await self._store.finish_session(
            session.session_id, ended.epoch, ended_at=ended_at, summary=summary or plain
        )
        if written:
            return Outcome.PLAIN if may_improve and receive < SECOND else Outcome.WRITTEN
        now = await self._store.session(session.session_id)
        return Outcome.STALE if now and (now.epoch > ended.epoch or now.end_time is None) else Outcome.REPEATED

    async def _improve(self, session: Session, events: list[Event]) -> Outcome:
        """Ask the model once more for a session that was summarised plainly."""
        events += await self._the_rest(session.session_id, events)
        plain = storable(plain_summary(events, session.mode))
        if session.final_summary != plain:
            return Outcome.REPEATED
        summary, _ = await self._ask(events)
        improved = summary and await self._store.improve_summary(
            session.session_id, session.epoch, old=plain, new=summary
        )
        return Outcome.IMPROVED if improved else Outcome.REPEATED

    async def _the_rest(self, session_id: str, events: Sequence[Event]) -> list[Event]:
        """The events after these, which are the first page."""
        rest: list[Event] = []
        page = events
        while len(page) >= PAGE:
            page = await self._store.events(session_id, after=page[-1].id, limit=PAGE)
            rest += page
        return rest

    async def _ask(self, events: Sequence[Event]) -> tuple[str | None, bool]:
        """The model's summary, or None where it gives none; and whether it may give one another time."""
        if self._model is None or not any(event.role == "user" for event in events):
            return None, False
        try:
            async with (
                asyncio.timeout(MODEL_SECONDS),
                aclosing(self._model.stream(messages_for_model(events), [])) as chunks,
            ):
                text = "".join([chunk.text async for chunk in chunks if isinstance(chunk, TextDelta)])
        except (ModelError, TimeoutError) as error:
            log.warning("plain summary", cause=str(error) or "timeout")
            return None, not isinstance(error, ModelError) or error.retryable
        except Exception:
            log.exception("plain summary")
            return None, False
        return " ".join(text.split())[:SUMMARY_CHARS] or None, False
