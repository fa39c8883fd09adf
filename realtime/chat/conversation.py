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

from chat import inputs
from chat import protocol as wire
from chat.effects import Effect, Record, RecordMode, Reply, Send, StartTurn, StopTurn
from chat.history import History
from chat.routing import PROMPTS, route
from infra.llm import Message
from infra.records import Event, Role, Session
from infra.settings import WhileBusy

Effects = Iterable[Effect]

BUSY_RETRY_SECONDS = 2.0
REMEMBERED_MESSAGES = 1000
"""Message ids that are known again. A client resends what it has no answer for, which is the last few."""
MOST_LEVELS = 64
"""How deep a tool call's arguments may be nested before they are kept as text: encoders recurse, and give up."""
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
        self._turn: _Turn | None = None
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

    def messages(self) -> list[Message]:
        """What to tell the model now: the system prompt, and the history up to the running turn."""
        prompt = Message("system", PROMPTS[self._mode or "casual"])
        return [prompt, *self._history.messages(without=self._waiting)]

    # What users do

    def _attached(self, it: inputs.Attached) -> Effects:
        text = "".join(self._turn.text) if self._turn else ""
        ready = wire.Ready(
            seq=self._seq - (1 if text else 0),
            session_id=self.session_id,
            epoch=self.epoch,
            resumed=False,
            mode=self._mode,
            history=self._history.events(READY_CHARS),
            active_turn_id=self._turn.turn_id if self._turn else None,
        )
        yield Reply(it.to, ready)
        if self._turn and text:
            yield Reply(it.to, wire.Token(self._seq, self._turn.turn_id, text))

    def _user_said(self, it: inputs.UserSaid) -> Effects:
        if self._ended:
            return
        message_id = it.message_id or self._new_id()
        if known := self._turn_of.get(message_id):
            yield Reply(it.to, wire.Accepted(self._next(), message_id, known))
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
        yield Send(wire.Accepted(self._next(), message_id, turn_id))
        # The same message sent again after a crash has the same event id: storing it twice stores it once.
        event_id = str(uuid5(NAMESPACE_URL, f"{self.session_id}/{message_id}"))
        yield self._record("user", it.content, turn_id, {"message_id": message_id}, event_id)
        if self._mode is None:
            self._mode = route(it.content)
            yield Send(wire.ModeChosen(self._next(), self._mode))
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
            yield from self._close_turn(_Turn(it.turn_id), "cancelled")
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
        return (Send(wire.Token(self._seq, it.turn_id, it.text)),)

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
            arguments = _object_or_text(call.arguments)
            yield Send(wire.ToolCalled(self._next(), turn.turn_id, call.call_id, call.name, arguments))
            metadata = {"kind": "call", "call_id": call.call_id, "name": call.name, "arguments": arguments}
            yield self._record("tool", _json({"name": call.name, "arguments": arguments}), turn.turn_id, metadata)

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
            yield Send(wire.Error(self._next(), it.code, it.message, turn.turn_id))
            yield from self._finish(turn, "error")
            yield from self._go_on()

    # What the store does, and the end

    def _events_saved(self, it: inputs.EventsSaved) -> Effects:
        yield Send(wire.Saved(self._next(), it.through))

    def _end_asked(self, it: inputs.EndAsked) -> Effects:
        if self._turn:
            yield from self._stop("cancelled")
        for turn_id in dict.fromkeys(self._waiting):
            yield from self._close_turn(_Turn(turn_id), "cancelled")
        self._waiting.clear()
        self._ended = True

    _ON: ClassVar[Mapping[type, Callable[[Any, Any], Effects]]] = {
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
        inputs.EndAsked: _end_asked,
    }

    # Steps they share

    def _running(self, turn_id: str) -> "_Turn | None":
        return self._turn if self._turn and self._turn.turn_id == turn_id else None

    def _start(self, turn_id: str) -> Effect:
        self._turn = _Turn(turn_id)
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

    def _finish(self, turn: "_Turn", reason: wire.DoneReason) -> Effects:
        """End the running turn, whatever it was doing, so that the history it leaves is whole."""
        for call_id in list(turn.open_calls):
            yield from self._close_call(turn, call_id, None, "stopped before it answered")
        self._turn = None
        yield from self._close_turn(turn, reason)

    def _close_turn(self, turn: "_Turn", reason: wire.DoneReason) -> Effects:
        """Tell and record how a turn ended; one that only waited has said nothing and used nothing."""
        yield Send(wire.Done(self._next(), turn.turn_id, reason, turn.usage))
        metadata: dict[str, Any] = {"reason": reason, "usage": msgspec.to_builtins(turn.usage)}
        if reason in ("cancelled", "error"):
            metadata["interrupted"] = True
        yield self._record("assistant", turn.take_text(), turn.turn_id, metadata)

    def _close_call(self, turn: "_Turn", call_id: str, result: Any, error: str | None) -> Effects:
        name = turn.open_calls.pop(call_id)
        yield Send(wire.ToolResult(self._next(), turn.turn_id, call_id, name, result, error))
        metadata = {"kind": "result", "call_id": call_id, "name": name, "ok": error is None}
        yield self._record("tool", _json(result if error is None else {"error": error}), turn.turn_id, metadata)

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

    def _next(self) -> int:
        self._seq += 1
        return self._seq


class _Turn:
    """The turn that runs: the text since the last tool round, the calls without a result, the tokens it took."""

    __slots__ = ("open_calls", "text", "turn_id", "usage")

    def __init__(self, turn_id: str) -> None:
        self.turn_id = turn_id
        self.text: list[str] = []
        self.open_calls: dict[str, str] = {}
        self.usage = wire.Usage()

    def add(self, usage: wire.Usage) -> None:
        self.usage = wire.Usage(
            self.usage.input_tokens + usage.input_tokens, self.usage.output_tokens + usage.output_tokens
        )

    def take_text(self) -> str:
        text = "".join(self.text)
        self.text.clear()
        return text


def _object_or_text(arguments: str) -> Any:
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return arguments
    return value if isinstance(value, dict) and _is_flat(value, MOST_LEVELS) else arguments


def _is_flat(value: Any, levels: int) -> bool:
    """Whether nothing is nested deeper than so many levels."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_flat(each, levels - 1) for each in inner)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
