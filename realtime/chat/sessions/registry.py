"""Every live session of this container: opened once, shared by its sockets, ended once."""

import asyncio
import contextlib
import random
from uuid import uuid4

from chat.conversation.history import History
from chat.conversation.inputs import Opened, Position, Reloaded
from chat.conversation.machine import Conversation
from chat.conversation.routing import Prompts
from chat.durability.courier import Courier
from chat.durability.journal import Journal
from chat.protocol.frames import CloseCode, ErrorCode
from chat.sessions.door import Departure, Refused, not_yours
from chat.sessions.kit import TurnKit
from chat.sessions.opening import OPEN_SECONDS, Opening
from chat.sessions.outbox import Outbox
from chat.sessions.session import Session
from chat.sessions.watch import Watch
from chat.tools.registry import ToolContext
from infra.records import EndReason, SessionEnded, utc_now
from infra.settings import Settings
from infra.store import Store
from infra.telemetry import get_logger

LAST_SAVED_SECONDS = 2.0
"""How long a client that is sent away is kept waiting for the news that its last events are stored."""
ANNOUNCED_SECONDS = 5.0
"""How long a stopping container waits for the queue to accept the ends of its sessions. A thousand take two seconds."""
MOST_RECONNECTS_A_SECOND = 200

log = get_logger("sessions")


class Sessions:
    """The registry. A session lives from its first socket until its last has left for good: see `Departure`."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        kit: TurnKit,
        prompts: Prompts,
        endings: Courier[SessionEnded] | None,
        settings: Settings,
        container_id: str,
    ) -> None:
        """`endings` delivers ended sessions to the queue; None if there is no queue, and so no summaries."""
        self.metrics = kit.metrics
        self._store = store
        self._journal = journal
        self._kit = kit
        self._prompts = prompts
        self._endings = endings
        self._settings = settings
        self._reader = Opening(store, journal, history_events=settings.history_events, container_id=container_id)
        self._opening: dict[tuple[str, str], asyncio.Task[Session]] = {}
        self._live: dict[str, Session] = {}
        self._lingering: dict[str, asyncio.TimerHandle | asyncio.Task[None]] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._reloading: dict[str, asyncio.Task[None]] = {}
        self._closing = False
        live = self._live
        self._watch = Watch(
            live,
            self.metrics,
            slow_reader_seconds=settings.slow_reader_seconds,
            most_bytes=settings.max_sessions_bytes,
        )
        self.metrics.sessions_live.set_function(lambda: len(live))
        self.metrics.turns_running.set_function(lambda: sum(session.is_running() for session in live.values()))
        if endings:
            self.metrics.handoff_depth.set_function(endings.waiting)

    def start(self) -> None:
        """Begin to watch for slow readers and for memory, on the running loop."""
        self._watch.start()

    async def attach(self, session_id: str, user_id: str, outbox: Outbox, position: Position | None = None) -> Session:
        """Open the session, or join it where it is live, and let the socket take part from its `position` on.

        Raises:
            Refused: it cannot be opened, or is somebody else's.
        """
        session = await self._find_or_open(session_id, user_id)
        # Meanwhile another client may have joined it, left and ended it; or it is not in memory any more.
        while self._live.get(session_id) is not session or not session.is_loaded():
            session = await self._find_or_open(session_id, user_id)
        if session.context.user_id != user_id:
            raise not_yours()
        if timer := self._lingering.pop(session_id, None):
            timer.cancel()
        session.attach(outbox, position)
        return session

    def detach(self, session: Session, outbox: Outbox, departure: Departure) -> None:
        """Let a socket go. How the last one left decides when its session ends."""
        session.detach(outbox)
        if session.outboxes or self._live.get(session.session_id) is not session:
            return
        if departure is Departure.GOODBYE:
            self._end(session, "closed")
        elif departure is Departure.DROP:
            self._linger(session, self._settings.linger_seconds)
        elif session.is_running():
            self._lingering[session.session_id] = asyncio.create_task(self._outlast_reply(session))
        else:
            self._linger(session, self._settings.going_away_seconds, "closed")

    def is_known(self, session_id: str) -> bool:
        """Whether the session is live here, or is being opened or ended."""
        opening = any(asked[0] == session_id for asked in self._opening)
        return opening or session_id in self._live or session_id in self._leaving

    def is_live(self, session_id: str) -> bool:
        """Whether the session is live here: somebody is in it, or may come back to it."""
        return session_id in self._live

    def has_summaries(self) -> bool:
        """Whether the ends of sessions are announced, so that they are summarised."""
        return self._endings is not None

    def is_draining(self) -> bool:
        """Whether this container is stopping, and takes no more sockets."""
        return self._closing

    async def drain(self, within: float) -> None:
        """Let every session come to its end within so many seconds, and send its clients elsewhere.

        Sessions in which nothing runs leave at once, the others with their turn, or when the time is over: then the
        turn is stopped, and kept as far as it came. A client learns what was saved before it is told to go.
        """
        self._closing = True
        log.info("draining", sessions=len(self._live), within=within)
        deadline = asyncio.get_running_loop().time() + within
        while self._opening:
            await asyncio.wait(self._opening.values())
        # This many may come back per second: each opens its session, and all at once would be a wave.
        spread = max(MOST_RECONNECTS_A_SECOND, len(self._live)) / MOST_RECONNECTS_A_SECOND
        await asyncio.gather(
            *(self._drain_one(session, deadline, random.uniform(0.2, spread)) for session in self._live.values())
        )
        if self._leaving:
            await asyncio.wait(self._leaving.values(), timeout=LAST_SAVED_SECONDS)
        if self._endings:  # what is not delivered now is on a disk that may go with this container
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANNOUNCED_SECONDS):
                    await self._endings.settled()

    async def _drain_one(self, session: Session, deadline: float, reconnect_in: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await session.idle()
        if self._live.get(session.session_id) is session:
            self._end(session, "shutdown")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_SAVED_SECONDS):
                await self._journal.settled()
        session.announce_restart(round(reconnect_in * 1000))

    async def close(self, within: float) -> None:
        """End every session, and wait so many seconds until their events are stored and their ends announced."""
        self._closing = True
        self._watch.stop()
        for opening in self._opening.values():
            opening.cancel()
        for session in list(self._live.values()):
            self._end(session, "shutdown")
        if self._leaving:
            _, late = await asyncio.wait(self._leaving.values(), timeout=within)
            if late:
                log.error("ended sessions not announced", sessions=len(late))
            for leaving in late:
                leaving.cancel()

    async def remove(self, session_id: str) -> None:
        """End a session because it is to be removed, if it is live: its end is not announced."""
        if session := self._live.get(session_id):
            self._end(session, "closed", announced=False)
            for outbox in session.outboxes:
                outbox.close(CloseCode.GONE)
        if leaving := self._leaving.get(session_id):
            await asyncio.wait([leaving])

    def live_of(self, user_id: str) -> int:
        """How many live sessions the user has."""
        return sum(session.context.user_id == user_id for session in self._live.values())

    async def _find_or_open(self, session_id: str, user_id: str) -> Session:
        if self._closing:
            raise Refused(
                CloseCode.RESTARTING, ErrorCode.RESTARTING, "The server is restarting; come back in a moment.", 1
            )
        if session := self._live.get(session_id):
            if session.context.user_id != user_id:
                raise not_yours()
            await self.reload(session)
            return session
        # One opening per user: the store decides whose session it is, not who asked first.
        asked = (session_id, user_id)
        if asked not in self._opening:
            if len(self._live) + len(self._opening) >= self._settings.max_sessions or self._watch.is_full():
                message = "All places are taken at the moment; try again shortly."
                raise Refused(CloseCode.AT_CAPACITY, ErrorCode.AT_CAPACITY, message, 5)
            self._opening[asked] = asyncio.create_task(self._open(session_id, user_id))
        # Shielded: the one who asked first may vanish while others wait for the same session.
        return await asyncio.shield(self._opening[asked])

    async def _open(self, session_id: str, user_id: str) -> Session:
        settings = self._settings
        try:
            row, events = await self._reader.open(session_id, user_id, lambda: self._leaving.get(session_id))
            conversation = Conversation(
                row,
                History(events, settings.history_events),
                prompts=self._prompts,
                while_busy=settings.while_busy,
                max_waiting=settings.max_queued_messages,
                replay_bytes=settings.replay_bytes,
                new_id=lambda: str(uuid4()),
                now=utc_now,
            )
            context = ToolContext(session_id, user_id, self._store, self._journal.settled)
            session = Session(conversation, context, self._journal, self._kit)
            session.dispatch(Opened())
            self._live[session_id] = session
        finally:  # in the same step that makes it live, so that it never counts twice
            del self._opening[session_id, user_id]
        self._linger(session, OPEN_SECONDS)  # until the socket that asked is attached; it may be gone already
        log.info("session opened", session_id=session_id, epoch=row.epoch)
        return session

    async def reload(self, session: Session) -> None:
        """Read back what a session gave up when memory was short, if it did.

        Raises:
            Refused: the store does not answer.
        """
        if session.is_loaded():
            return
        if session.session_id not in self._reloading:  # shared: an older answer must not come after a newer one
            reloading = asyncio.create_task(self._reload(session))
            self._reloading[session.session_id] = reloading
            reloading.add_done_callback(lambda _: self._reloading.pop(session.session_id))
        await asyncio.shield(self._reloading[session.session_id])

    async def _reload(self, session: Session) -> None:
        session.dispatch(Reloaded(await self._reader.read_again(session.session_id)))

    def _linger(self, session: Session, seconds: float, reason: EndReason = "dropped") -> None:
        timer = asyncio.get_running_loop().call_later(seconds, self._end, session, reason)
        self._lingering[session.session_id] = timer

    async def _outlast_reply(self, session: Session) -> None:
        await session.idle()
        self._linger(session, self._settings.going_away_seconds, "closed")

    def _end(self, session: Session, reason: EndReason, *, announced: bool = True) -> None:
        if timer := self._lingering.pop(session.session_id, None):
            timer.cancel()
        del self._live[session.session_id]
        session.end()
        ended = SessionEnded(
            session_id=session.session_id,
            epoch=session.epoch,
            ended_at=utc_now(),
            reason=reason,
            traceparent=session.trace.header,
        )
        session.trace.set({"realtime.reason": reason})
        leaving = asyncio.create_task(self._leave(session, ended if announced else None))
        self._leaving[session.session_id] = leaving
        leaving.add_done_callback(lambda _: self._leaving.pop(session.session_id))
        log.info("session ended", session_id=session.session_id, epoch=session.epoch, reason=reason)

    async def _leave(self, session: Session, ended: SessionEnded | None) -> None:
        """Announce the end, but not before the last event is stored: the summary is made from stored events."""
        await session.stopped()
        await self._journal.settled()
        session.trace.end()
        if self._endings and ended:
            self._endings.put(ended)
