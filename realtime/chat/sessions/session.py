"""One live session: it performs what the conversation decides, and owns the turn's task and the sockets' outboxes."""

import asyncio
import contextvars
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from chat.conversation.draft import Draft
from chat.conversation.effects import Aside, Effect, Record, RecordMode, Reply, Send, StartTurn, StopTurn
from chat.conversation.inputs import Attached, EndAsked, EventsSaved, Input, Position, RestartAnnounced, TurnFailed
from chat.conversation.machine import Conversation
from chat.durability.journal import Journal
from chat.protocol.codec import encode
from chat.protocol.frames import CloseCode, Done, ErrorCode, Token
from chat.sessions.kit import TurnKit
from chat.sessions.outbox import Outbox
from chat.sessions.turn import SORRY, Turn
from chat.tools.registry import ToolContext
from infra import tracing
from infra.llm import Message
from infra.telemetry import bind, get_logger

STOP_SECONDS = 5.0

log = get_logger("session")


class Session:
    """A conversation with its surroundings. `dispatch` is the one way in, and never awaits."""

    def __init__(self, conversation: Conversation, context: ToolContext, journal: Journal, kit: TurnKit) -> None:
        about = {"gen_ai.conversation.id": conversation.session_id, "realtime.epoch": conversation.epoch}
        self.trace = tracing.begin("session", about)
        self.session_id = conversation.session_id
        self.epoch = conversation.epoch
        self.context = context
        self.outboxes: list[Outbox] = []
        self._conversation = conversation
        self._journal = journal
        self._kit = kit
        self._turn: asyncio.Task[None] | None = None
        self._stopping: set[asyncio.Task[None]] = set()
        self._room: asyncio.Event | None = None
        self._idle = asyncio.Event()
        self.used = asyncio.get_running_loop().time()
        """When somebody last came or said something that was answered, in the loop's time."""

    def dispatch(self, happened: Input) -> None:
        """Tell the conversation what happened, and do what it decides.

        Events are recorded first, so that no client hears of what a kill could still undo.
        """
        effects = self._conversation.receive(happened)
        if len(effects) > 1:
            effects = tuple(sorted(effects, key=_records_first))
        for effect in effects:
            try:
                self._PERFORM[type(effect)](self, effect)
            except Exception:  # the state has changed already, so the other effects must follow
                log.exception("effect failed", session_id=self.session_id, effect=type(effect).__name__)

    def attach(self, outbox: Outbox, position: Position | None = None) -> None:
        """Let a socket take part: it gets `ready`, what it missed since its `position`, and then every frame."""
        outbox.on_room = self._made_room
        self.dispatch(Attached(outbox, position))
        self.outboxes.append(outbox)
        self._use()
        self._made_room()

    def detach(self, outbox: Outbox) -> None:
        """Let a socket go. The turn goes on without it."""
        if outbox in self.outboxes:
            self.outboxes.remove(outbox)
        self._made_room()

    def is_loaded(self) -> bool:
        """Whether its history is in memory; see `Conversation.is_loaded`."""
        return self._conversation.is_loaded()

    def is_quiet(self) -> bool:
        """See `Conversation.is_quiet`."""
        return self._conversation.is_quiet()

    def held_bytes(self) -> int:
        """About how much memory it takes, with what waits to be read by its clients."""
        return self._conversation.held_bytes() + sum(outbox.held_bytes() for outbox in self.outboxes)

    def is_running(self) -> bool:
        """Whether a turn is answered now."""
        return self._conversation.is_running()

    def draft(self) -> Draft | None:
        """See `Conversation.draft`."""
        return self._conversation.draft()

    async def idle(self) -> None:
        """Wait until no turn runs or waits."""
        while self.is_running():
            self._idle.clear()
            await self._idle.wait()

    def announce_restart(self, reconnect_in_ms: int) -> None:
        """Tell every socket when to come back, and close it behind what it still has to read."""
        self.dispatch(RestartAnnounced(reconnect_in_ms))
        for outbox in self.outboxes:
            outbox.close(CloseCode.RESTARTING)

    def end(self) -> None:
        """Stop what runs, keep what was said, and take no more."""
        self.dispatch(EndAsked())

    # What a turn needs: see `chat.sessions.turn.Talk`

    def messages(self) -> list[Message]:
        """What to tell the model now."""
        return self._conversation.messages()

    def mode_question(self) -> list[Message] | None:
        """What to ask the model about the session's mode, if it is to be asked."""
        return self._conversation.mode_question()

    def has_room(self) -> bool:
        """Whether at least one reader keeps up; without readers, there is nobody to wait for."""
        for outbox in self.outboxes:
            if outbox.has_room():
                return True
        return not self.outboxes

    async def room(self) -> None:
        """Wait until it does."""
        while not self.has_room():
            self._room = self._room or asyncio.Event()
            self._room.clear()
            await self._room.wait()

    def _use(self) -> None:
        self.used = asyncio.get_running_loop().time()

    def _made_room(self) -> None:
        if self._room:
            self._room.set()

    # Effects

    def _send(self, effect: Send) -> None:
        frame = effect.frame
        if type(frame) is Token:
            self._journal.speaks(self)
            for outbox in self.outboxes:
                outbox.put_token(frame)
            return
        if type(frame) is Done:
            self._kit.metrics.turns.labels(frame.reason).inc()
            where = {"session_id": self.session_id, "epoch": self.epoch, "turn_id": frame.turn_id}
            log.info("turn ended", **where, reason=frame.reason)
        if self.outboxes:
            text = encode(frame)
            for outbox in self.outboxes:
                outbox.put(text)

    def _reply(self, effect: Reply) -> None:
        if effect.to is not None and not effect.to.gone:
            effect.to.put(encode(effect.frame))

    def _aside(self, effect: Aside) -> None:
        wanting = [outbox for outbox in self.outboxes if outbox.wants_reasoning]
        if wanting:
            text = encode(effect.frame)
            for outbox in wanting:
                outbox.put(text)

    def _record(self, effect: Record) -> None:
        self._journal.record(effect.event, effect.through, self._saved, self.trace.header)

    def _record_mode(self, effect: RecordMode) -> None:
        self._journal.record_mode(self.session_id, effect.mode)

    def _saved(self, through: int) -> None:
        self.dispatch(EventsSaved(through))

    def _start_turn(self, effect: StartTurn) -> None:
        self._use()
        context = contextvars.copy_context()  # the turn's log names the turn, also where a library or a tool writes it
        context.run(bind, session_id=self.session_id, epoch=self.epoch, turn_id=effect.turn_id)
        self._turn = asyncio.create_task(Turn(effect.turn_id, self, self._kit).run(), context=context)
        # A turn reports its own end, unless a library has cancelled it. Nobody must wait for such a turn.
        died = TurnFailed(effect.turn_id, ErrorCode.INTERNAL, SORRY)

        def over(task: asyncio.Task[None]) -> None:
            self.dispatch(died)
            self._idle.set()

        self._turn.add_done_callback(over)

    def _stop_turn(self, effect: StopTurn) -> None:
        if self._turn and not self._turn.done():
            # Kept until it has unwound: a task without a reference may be collected before its model call is closed.
            self._stopping.add(self._turn)
            self._turn.add_done_callback(self._stopping.discard)
            self._turn.cancel()
        self._turn = None

    async def stopped(self) -> None:
        """Wait until every stopped turn has released its model call and tools, or `STOP_SECONDS` have passed."""
        if self._stopping:
            await asyncio.wait(self._stopping, timeout=STOP_SECONDS)

    _PERFORM: ClassVar[Mapping[type, Callable[[Any, Any], None]]] = {
        Send: _send,
        Reply: _reply,
        Aside: _aside,
        Record: _record,
        RecordMode: _record_mode,
        StartTurn: _start_turn,
        StopTurn: _stop_turn,
    }


def _records_first(effect: Effect) -> bool:
    return type(effect) is not Record and type(effect) is not RecordMode
