"""What is looked at once a second, for all live sessions together: readers that do not read, and memory."""

import asyncio
from collections.abc import Mapping

from chat.conversation.inputs import Unloaded
from chat.metrics import Metrics
from chat.protocol.frames import CloseCode
from chat.sessions.session import Session
from infra.telemetry import get_logger

WATCH_SECONDS = 1.0
"""How often: one timer for all of them, not one per frame."""
ENOUGH = 0.9
"""How much of its bound memory is brought down to, so that it is not at its bound again at once."""

log = get_logger("watch")


class Watch:
    """Closes readers that are too slow, and has sessions that nobody uses give up their memory."""

    def __init__(
        self, live: Mapping[str, Session], metrics: Metrics, *, slow_reader_seconds: float, most_bytes: int
    ) -> None:
        """`live` is looked at as it is then; `most_bytes` is what all of it may hold."""
        self._live = live
        self._metrics = metrics
        self._slow_reader_seconds = slow_reader_seconds
        self._most_bytes = most_bytes
        self._held = 0
        self._task: asyncio.Task[None] | None = None
        metrics.sessions_bytes.set_function(lambda: self._held)

    def start(self) -> None:
        """Begin, on the running loop."""
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Look no more."""
        if self._task:
            self._task.cancel()

    def is_full(self) -> bool:
        """Whether the sessions hold all the memory they may, though each that could has given up its own."""
        return self._held > self._most_bytes

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                self._drop_readers(loop.time())
                self._unload()
            except Exception:  # the next look must come
                log.exception("sessions not looked at")

    def _drop_readers(self, now: float) -> None:
        for session in list(self._live.values()):
            for outbox in tuple(session.outboxes):
                if outbox.stuck_for(now) > self._slow_reader_seconds:
                    log.warning("reader too slow", session_id=session.session_id, epoch=session.epoch)
                    outbox.drop(CloseCode.SLOW_READER)

    def _unload(self) -> None:
        """Weigh the sessions; past the bound, those that were not used for longest give up what the store has."""
        was_full = self.is_full()
        sizes = {session: session.held_bytes() for session in self._live.values()}
        self._held = sum(sizes.values())
        if self._held <= self._most_bytes:
            return
        unloaded = 0
        for session in sorted(sizes, key=lambda each: each.used):
            if self._held <= ENOUGH * self._most_bytes:
                break
            if session.is_loaded() and session.is_quiet():
                session.dispatch(Unloaded())
                self._held -= sizes[session] - session.held_bytes()
                unloaded += 1
        if unloaded:
            self._metrics.sessions_unloaded.inc(unloaded)
            log.info("sessions unloaded for want of memory", sessions=unloaded, bytes=self._held)
        if self.is_full() and not was_full:
            log.warning("no session is opened for want of memory", bytes=self._held, bound=self._most_bytes)
