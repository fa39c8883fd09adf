"""Write-behind to the store: chat never waits for a write, and `saved` is told only after one is committed."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from chat.conversation.history import bytes_of
from chat.durability.courier import FIRST_RETRY_SECONDS, MOST_RETRY_SECONDS, Courier
from chat.durability.drafts import Drafts, Speaker
from chat.durability.shelf import Shelf
from chat.durability.spool import Spool
from chat.metrics import Metrics
from infra import tracing
from infra.backoff import backoff
from infra.records import Event, Mode, utc_now
from infra.store import Store, StoreError, StoreMisconfigured, StoreRefused, StoreUnavailable
from infra.telemetry import get_logger

BATCH_EVENTS, MOST_BATCH_EVENTS = 500, 2000
GATHER_SECONDS, MOST_GATHER_SECONDS = 0.02, 0.25
"""A commit costs the same for one event as for many, so the first event waits this long for others. The wait grows with
the time that the store takes."""

MOST_BYTES, MOST_SESSION_BYTES = 64 * 1024 * 1024, 4 * 1024 * 1024
"""What may wait for the store, in memory and in the spool, before messages are refused: in all, and of one session."""
PRESSED = 0.5
"""How much of that may wait before those who speak are slowed."""
INTERRUPTED_EVENTS = 1000
"""How many of a session's latest events are looked at to tell how far an interrupted turn was stored."""

Written = Event | tuple[str, Mode]
"""An event, or a session's mode."""

log = get_logger("journal")


class _Entry(msgspec.Struct, frozen=True):
    """What is to be written, and the callback for when it is. An entry of an earlier process has no callback."""

    written: Written
    on_saved: Callable[[int], None] | None = None
    through: int = 0
    trace: str | None = None


class Journal:
    """All sessions' events on their way to the store, in the order in which they were recorded."""

    def __init__(self, store: Store, metrics: Metrics, *, max_events: int, drafts: Drafts | None = None) -> None:
        """At most `max_events` may wait for the store. Past that, `is_full` is true and no new messages are accepted.

        Turns that are running may still record how they end: what they have done must not be lost.
        `drafts` keeps what they have said until then.
        """
        self._store = store
        self._metrics = metrics
        self._max_events = max_events
        self._waiting: Counter[str] = Counter()
        """For each session, the bytes of its events that are not stored; `_bytes` is their sum."""
        self._bytes = 0
        self._courier = Courier(
            "journal",
            self._deliver,
            batch_size=BATCH_EVENTS,
            most_batch_size=MOST_BATCH_EVENTS,
            gather_seconds=GATHER_SECONDS,
            most_gather_seconds=MOST_GATHER_SECONDS,
            expected=(StoreUnavailable, StoreMisconfigured),
        )
        self._recovered: set[str] = set()
        self._drafts = drafts
        self._settling: asyncio.Task[None] | None = None
        metrics.journal_depth.set_function(self._courier.waiting)
        metrics.journal_lag.set_function(self.lag)

    async def recover(self, spool: Spool) -> None:
        """Keep a copy there of what the store does not take, and store first what an earlier process left.

        Raises:
            SettingsError: the spool cannot be read.
        """
        shelf = Shelf(spool, "journal", encode=_encode, decode=_decode, metrics=self._metrics)

        def look(entry: _Entry) -> None:
            written = entry.written
            self._recovered.add(written.session_id if isinstance(written, Event) else written[0])
            if isinstance(written, Event):
                self._hold(written)

        await self._courier.recover(shelf, look)

    def start(self) -> None:
        """Begin to write, on the running loop."""
        self._courier.start()
        if self._drafts:
            self._drafts.start()
            self._settling = asyncio.create_task(self._settle(self._drafts))

    def speaks(self, speaker: Speaker) -> None:
        """Note that a session's reply has gone on: its words are kept until they are recorded."""
        if self._drafts:
            self._drafts.speaks(speaker)

    def record(self, event: Event, through: int, on_saved: Callable[[int], None], trace: str | None = None) -> None:
        """Store the event soon; then call `on_saved` with the highest `through` of its batch.

        `trace` is what the event belongs to: see `infra.tracing`.
        """
        self._hold(event)
        self._courier.put(_Entry(event, on_saved, through, trace))
        if self._drafts and event.role == "assistant":
            self._drafts.recorded(event)

    def record_mode(self, session_id: str, mode: Mode) -> None:
        """Store the session's mode soon."""
        self._courier.put(_Entry((session_id, mode)))

    def lag(self) -> float:
        """Age in seconds of the oldest event that waits, even if an earlier process recorded it; 0 without one."""
        written = (entry.written for entry in self._courier.held())
        oldest = next((each for each in written if isinstance(each, Event)), None)
        return max(0.0, (utc_now() - oldest.timestamp).total_seconds()) if oldest else 0.0

    def is_full(self, session_id: str = "") -> bool:
        """Whether as much waits as may: in all, or of this session, so that one does not take the room of all."""
        return self._is_filled(session_id, 1.0)

    def _is_filled(self, session_id: str, share: float) -> bool:
        if self._waiting.get(session_id, 0) >= share * MOST_SESSION_BYTES or self._bytes >= share * MOST_BYTES:
            return True
        return self._courier.waiting() >= share * self._max_events

    def is_failing(self) -> bool:
        """Whether the store took nothing the last time."""
        return self._courier.is_failing()

    def is_pressed(self, session_id: str) -> bool:
        """Whether half of what may wait does, while the store takes it: whoever speaks is slowed, and not refused."""
        return not self.is_failing() and self._is_filled(session_id, PRESSED)

    async def relief(self, session_id: str) -> None:
        """Wait until it is not pressed, or the store fails."""
        await self._courier.until(lambda: not self.is_pressed(session_id))

    async def settled(self) -> None:
        """Wait until everything recorded so far is stored."""
        await self._courier.settled()

    async def caught_up(self, session_id: str) -> None:
        """Wait until everything of this session that an earlier process left is stored.

        Raises:
            StoreError: the store does not say what of it it has.
        """
        if session_id in self._recovered:
            await self._courier.caught_up()
        if self._drafts and session_id in self._drafts.left():
            await self._interrupt(session_id, self._drafts)

    async def _settle(self, drafts: Drafts) -> None:
        """Store the words of interrupted replies also where nobody comes back for them."""
        if left := drafts.left():
            log.info("taking up interrupted replies", sessions=len(left))
        attempt = 0
        while left := drafts.left():
            try:
                for session_id in list(left):
                    await self.caught_up(session_id)
            except StoreError as error:
                log.warning("interrupted replies not taken up, will retry", sessions=len(left), cause=str(error))
                await asyncio.sleep(backoff(attempt, first=FIRST_RETRY_SECONDS, most=MOST_RETRY_SECONDS))
                attempt += 1
            except Exception:  # a session's opening comes by here as well, and tells its client
                log.exception("interrupted replies not taken up")
                return

    async def _interrupt(self, session_id: str, drafts: Drafts) -> None:
        events = await self._store.latest_events(session_id, limit=INTERRUPTED_EVENTS)
        for event in drafts.interruptions(session_id, events):
            stored = asyncio.Event()
            self.record(event, 0, lambda _, stored=stored: stored.set())  # type: ignore[misc]
            await stored.wait()
        drafts.settled(session_id)

    async def close(self, within: float) -> int:
        """Write what is left for so many seconds; see `Courier.close`."""
        if self._settling:
            self._settling.cancel()
        lost = await self._courier.close(within)
        if self._drafts:
            await self._drafts.close()
        return lost

    async def _deliver(self, batch: Sequence[_Entry]) -> Sequence[_Entry]:
        traces = {entry.trace: None for entry in batch if entry.trace}
        with tracing.span("write journal", {"realtime.entries": len(batch)}, kind="client", links=traces):
            await self._write(batch)
        self._let_go(batch)
        self._tell(batch)
        return ()

    async def _write(self, batch: Sequence[_Entry]) -> None:
        await self._append([entry.written for entry in batch if isinstance(entry.written, Event)])
        if modes := dict(entry.written for entry in batch if not isinstance(entry.written, Event)):
            try:
                await self._store.set_modes(modes)
            except StoreRefused as error:
                log.error("modes set aside", sessions=list(modes), cause=str(error))
        if self._drafts:
            for entry in batch:
                if isinstance(entry.written, Event) and entry.written.role == "assistant":
                    self._drafts.stored(entry.written)

    def _tell(self, batch: Sequence[_Entry]) -> None:
        through: dict[Callable[[int], None], int] = {}
        for entry in batch:
            if entry.on_saved:
                through[entry.on_saved] = max(entry.through, through.get(entry.on_saved, 0))
        for on_saved, highest in through.items():
            try:
                on_saved(highest)
            except Exception:  # the batch is stored: one listener's trouble must not have it written again
                log.exception("saved, but could not be told")

    def _hold(self, event: Event) -> None:
        size = bytes_of(event)
        self._bytes += size
        self._waiting[event.session_id] += size

    def _let_go(self, batch: Sequence[_Entry]) -> None:
        for event in (entry.written for entry in batch if isinstance(entry.written, Event)):
            size = bytes_of(event)
            self._bytes -= size
            self._waiting[event.session_id] -= size
            if self._waiting[event.session_id] <= 0:
                del self._waiting[event.session_id]

    async def _append(self, events: Sequence[Event]) -> None:
        """Store the events. A row the store will never take is set aside alone, found by halving."""
        if not events:
            return
        try:
            await self._store.append(events)
        except StoreRefused as error:
            if len(events) == 1:
                (event,) = events
                self._metrics.events_set_aside.inc()
                log.error(
                    "event set aside",
                    session_id=event.session_id,
                    turn_id=event.turn_id,
                    event_id=event.event_id,
                    cause=str(error),
                )
                return
            middle = len(events) // 2
            await self._append(events[:middle])
            await self._append(events[middle:])


_written = msgspec.json.Decoder(Written)


def _encode(entry: _Entry) -> bytes:
    return msgspec.json.encode(entry.written)


def _decode(payload: bytes) -> _Entry:
    return _Entry(_written.decode(payload))
