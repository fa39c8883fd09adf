"""The conversation machine: everything about "what next" is decided here, and nothing here awaits.

`receive(input) -> effects` is the whole interface. An input is atomic: the state it leaves is complete, and the
effects, performed in order, tell clients, the store and the turn what follows. No sockets, no clock of its own,
no tasks: so it can be tested by feeding it facts.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, ClassVar
from uuid import NAMESPACE_URL, uuid5

import msgspec

from chat.conversation import inputs
from chat.conversation.effects import Effect, Record, RecordMode, Reply, Send, StartTurn, StopTurn
from chat.conversation.history import History
from chat.conversation.open_turn import OpenTurn, object_or_text, to_json
from chat.conversation.replay import Replay
from chat.conversation.routing import PROMPTS, route
from chat.protocol import frames as wire
from infra.llm import Message
from infra.records import Event, Role, Session
from infra.settings import WhileBusy

Effects = Iterable[Effect]

BUSY_RETRY_SECONDS = 2.0
REMEMBERED_MESSAGES = 1000
"""Message ids that are known again. A client resends what it has no answer for, which is the last few."""
READY_CHARS = 512 * 1024
"""How much history `ready` carries; the rest is read page by page over HTTP."""


class IllegalInput(Exception):
    """An input that cannot have happened, such as a result of a tool that was not called. The state is as before."""


class Conversation:
    """One opened session, from `ready` to its end.

    It is *idle* while `_turn` is None, *running* while a turn is answered (further turns may wait), and *ended*
    after `EndAsked`, when it takes no more of what users and turns do. A turn's inputs count only while it is the
    one that runs: what a stopped turn still had to say changes nothing.
    """

    def __init__(
        self,
        session: Session,
        history: History,
        *,
        while_busy: WhileBusy,
        max_waiting: int,
        replay_bytes: int,
        new_id: Callable[[], str],
        now: Callable[[], datetime],
    ) -> None:
        self.session_id = session.session_id
        self.epoch = session.epoch
        self._mode = session.mode
        self._history = history
        self._while_busy = while_busy
        self._max_waiting = max_waiting
        self._new_id = new_id
        self._now = now
        self._seq = 0
        self._replay = Replay(replay_bytes)
        self._turn: OpenTurn | None = None
        self._waiting: list[str] = []  # one turn id per message that waits; merged messages share theirs
        self._turn_of = history.message_turns()
        self._ended = False

    def receive(self, happened: inputs.Input) -> tuple[Effect, ...]:
        """Take in what happened; give out what to do about it.

        Raises:
            IllegalInput: it cannot have happened.
        """
        # Run to its end before anything is performed: performing may lead to the next input.
        return tuple(self._ON[type(happened)](self, happened))

    def is_running(self) -> bool:
        """Whether a turn is answered now."""
        return self._turn is not None

    def messages(self) -> list[Message]:
        """What to tell the model now: the system prompt, and the history up to the running turn."""
        prompt = Message("system", PROMPTS[self._mode or "casual"])
        return [prompt, *self._history.messages(without=self._waiting)]

    # What users do

    def _attached(self, it: inputs.Attached) -> Effects:
        if it.position and self._can_resume(it.position):
            yield Reply(it.to, self._ready(it.position.after, resumed=True))
            for frame in self._replay.after(it.position.after):
                yield Reply(it.to, frame)
            return
        text = "".join(self._turn.text) if self._turn else ""
        yield Reply(it.to, self._ready(self._seq - (1 if text else 0), resumed=False))
        if self._turn and text:
            yield Reply(it.to, wire.Token(self._seq, self._turn.turn_id, text))

    def _can_resume(self, position: inputs.Position) -> bool:
        return position.epoch == self.epoch and position.after <= self._seq and self._replay.reaches(position.after)

    def _ready(self, seq: int, *, resumed: bool) -> wire.Ready:
        return wire.Ready(
            seq=seq,
            session_id=self.session_id,
            epoch=self.epoch,
            resumed=resumed,
            mode=self._mode,
            history=[] if resumed else self._history.events(READY_CHARS),
            active_turn_id=self._turn.turn_id if self._turn else None,
        )

    def _user_said(self, it: inputs.UserSaid) -> Effects:
        if self._ended:
            return
        message_id = it.message_id or self._new_id()
        if known := self._turn_of.get(message_id):
            yield Reply(it.to, wire.Accepted(self._next(), message_id, known, it.content))
            if end := self._history.end_of(known):  # how the first one ended; one that goes on tells it itself
                usage = msgspec.convert(end.metadata.get("usage", {}), wire.Usage)
                yield Reply(it.to, wire.Done(self._next(), known, end.metadata["reason"], usage))
            return
        if self._turn and not self._takes_another():
            busy = "A reply is being written; send this again when it is done, or stop it first."
            yield Reply(
                it.to, wire.Error(self._next(), wire.ErrorCode.BUSY, busy, None, message_id, BUSY_RETRY_SECONDS)
            )
            return
        merge = self._while_busy == "merge" and self._waiting
        turn_id = self._waiting[-1] if merge else self._new_id()
        self._turn_of[message_id] = turn_id
        if len(self._turn_of) > REMEMBERED_MESSAGES:
            del self._turn_of[next(iter(self._turn_of))]
        yield self._send(wire.Accepted(self._next(), message_id, turn_id, it.content))
        # The same message sent again after a crash has the same event id: storing it twice stores it once.
        event_id = self._id_for(message_id)
        yield self._record("user", it.content, turn_id, {"message_id": message_id}, event_id)
        if self._mode is None:
            self._mode = route(it.content)
            yield self._send(wire.ModeChosen(self._next(), self._mode))
            yield RecordMode(self._mode)
        if self._turn and self._while_busy == "interrupt":
            yield from self._stop("cancelled")
        if self._turn:
            self._waiting.append(turn_id)
        else:
            yield self._start(turn_id)

    def _takes_another(self) -> bool:
        if self._while_busy == "reject":
            return False
        return self._while_busy == "interrupt" or len(self._waiting) < self._max_waiting

    def _cancel_asked(self, it: inputs.CancelAsked) -> Effects:
        if it.turn_id in self._waiting:
            self._waiting = [turn_id for turn_id in self._waiting if turn_id != it.turn_id]
            yield from self._close_turn(OpenTurn(it.turn_id), "cancelled")
        elif self._turn and it.turn_id in (None, self._turn.turn_id):
            yield from self._stop("cancelled")
            yield from self._go_on()

    def _frame_refused(self, it: inputs.FrameRefused) -> Effects:
        yield Reply(it.to, wire.Error(self._next(), it.code, it.message, None, it.message_id, it.retry_after))

    # What the turn does

    def _token_came(self, it: inputs.TokenCame) -> Effects:
        turn = self._turn
        if turn is None or turn.turn_id != it.turn_id:
            return ()
        turn.text.append(it.text)
        self._seq += 1
        return (self._send(wire.Token(self._seq, it.turn_id, it.text)),)

    def _tools_asked(self, it: inputs.ToolsAsked) -> Effects:
        if not (turn := self._running(it.turn_id)):
            return
        if turn.open_calls:
            raise IllegalInput("the model asked for tools before the last ones answered")
        turn.add(it.usage)
        if text := turn.take_text():
            yield self._record("assistant", text, turn.turn_id, {})
        for call in it.calls:
            turn.open_calls[call.call_id] = call.name
            arguments = object_or_text(call.arguments)
            yield self._send(wire.ToolCalled(self._next(), turn.turn_id, call.call_id, call.name, arguments))
            metadata = {"kind": "call", "call_id": call.call_id, "name": call.name, "arguments": arguments}
            yield self._record("tool", to_json({"name": call.name, "arguments": arguments}), turn.turn_id, metadata)

    def _tool_answered(self, it: inputs.ToolAnswered) -> Effects:
        if not (turn := self._running(it.turn_id)):
            return
        if it.call_id not in turn.open_calls:
            raise IllegalInput(f"no open call {it.call_id}")
        yield from self._close_call(turn, it.call_id, it.result, it.error)

    def _reply_finished(self, it: inputs.ReplyFinished) -> Effects:
        if not (turn := self._running(it.turn_id)):
            return
        if turn.open_calls:
            raise IllegalInput("the reply finished before its tools did")
        turn.add(it.usage)
        yield from self._finish(turn, "length" if it.reason == "length" else "complete")
        yield from self._go_on()

    def _turn_failed(self, it: inputs.TurnFailed) -> Effects:
        if turn := self._running(it.turn_id):
            yield self._send(wire.Error(self._next(), it.code, it.message, turn.turn_id))
            yield from self._finish(turn, "error")
            yield from self._go_on()

    # What the store does, and the end

    def _opened(self, it: inputs.Opened) -> Effects:
        """Mark the turns that died with their container, so that nobody waits for them."""
        for turn_id in self._history.unfinished():
            # Two containers that open the session one after the other mark the same turn with the same event.
            event_id = self._id_for(f"{turn_id}/interrupted")
            metadata = {"reason": "error", "usage": msgspec.to_builtins(wire.Usage()), "interrupted": True}
            yield self._record("assistant", "", turn_id, metadata, event_id)

    def _events_saved(self, it: inputs.EventsSaved) -> Effects:
        yield self._send(wire.Saved(self._next(), it.through))

    def _restart_announced(self, it: inputs.RestartAnnounced) -> Effects:
        yield self._send(wire.Goodbye(self._next(), "restart", it.reconnect_in_ms))

    def _end_asked(self, it: inputs.EndAsked) -> Effects:
        if self._turn:
            yield from self._stop("cancelled")
        for turn_id in dict.fromkeys(self._waiting):
            yield from self._close_turn(OpenTurn(turn_id), "cancelled")
        self._waiting.clear()
        self._ended = True

    _ON: ClassVar[Mapping[type, Callable[[Any, Any], Effects]]] = {
        inputs.Opened: _opened,
        inputs.Attached: _attached,
        inputs.UserSaid: _user_said,
        inputs.CancelAsked: _cancel_asked,
        inputs.FrameRefused: _frame_refused,
        inputs.TokenCame: _token_came,
        inputs.ToolsAsked: _tools_asked,
        inputs.ToolAnswered: _tool_answered,
        inputs.ReplyFinished: _reply_finished,
        inputs.TurnFailed: _turn_failed,
        inputs.EventsSaved: _events_saved,
        inputs.RestartAnnounced: _restart_announced,
        inputs.EndAsked: _end_asked,
    }

    # Steps they share

    def _running(self, turn_id: str) -> OpenTurn | None:
        return self._turn if self._turn and self._turn.turn_id == turn_id else None

    def _start(self, turn_id: str) -> Effect:
        self._turn = OpenTurn(turn_id)
        return StartTurn(turn_id)

    def _go_on(self) -> Effects:
        """Start the turn that waited longest, if one does."""
        if self._waiting:
            turn_id = self._waiting[0]
            self._waiting = [waiting for waiting in self._waiting if waiting != turn_id]
            yield self._start(turn_id)

    def _stop(self, reason: wire.DoneReason) -> Effects:
        if self._turn:
            yield StopTurn(self._turn.turn_id)
            yield from self._finish(self._turn, reason)

    def _finish(self, turn: OpenTurn, reason: wire.DoneReason) -> Effects:
        """End the running turn, whatever it was doing, so that the history it leaves is whole."""
        for call_id in list(turn.open_calls):
            yield from self._close_call(turn, call_id, None, "stopped before it answered")
        self._turn = None
        yield from self._close_turn(turn, reason)

    def _close_turn(self, turn: OpenTurn, reason: wire.DoneReason) -> Effects:
        """Tell and record how a turn ended; one that only waited has said nothing and used nothing."""
        yield self._send(wire.Done(self._next(), turn.turn_id, reason, turn.usage))
        metadata: dict[str, Any] = {"reason": reason, "usage": msgspec.to_builtins(turn.usage)}
        if reason in ("cancelled", "error"):
            metadata["interrupted"] = True
        yield self._record("assistant", turn.take_text(), turn.turn_id, metadata)

    def _close_call(self, turn: OpenTurn, call_id: str, result: Any, error: str | None) -> Effects:
        name = turn.open_calls.pop(call_id)
        yield self._send(wire.ToolResult(self._next(), turn.turn_id, call_id, name, result, error))
        metadata = {"kind": "result", "call_id": call_id, "name": name, "ok": error is None}
        yield self._record("tool", to_json(result if error is None else {"error": error}), turn.turn_id, metadata)

    def _record(
        self, role: Role, content: str, turn_id: str, metadata: dict[str, Any], event_id: str | None = None
    ) -> Record:
        event = Event(
            event_id=event_id or self._new_id(),
            session_id=self.session_id,
            turn_id=turn_id,
            role=role,
            content=content,
            timestamp=self._now(),
            metadata=metadata,
        )
        self._history.add(event, running=self._turn.turn_id if self._turn else turn_id)
        return Record(event, self._seq)

    def _id_for(self, name: str) -> str:
        """An event id that is the same whenever it is made of the same."""
        return str(uuid5(NAMESPACE_URL, f"{self.session_id}/{name}"))

    def _send(self, frame: wire.StreamFrame) -> Send:
        self._replay.add(frame)
        return Send(frame)

    def _next(self) -> int:
        self._seq += 1
        return self._seq
