"""The conversation machine: everything about "what next" is decided here, and nothing here awaits.

`receive(input) -> effects` is the whole interface. An input is atomic: the state it leaves is complete, and the
effects, performed in order, tell clients, the store and the turn what follows. No sockets, no clock of its own,
no tasks: so it can be tested by feeding it facts.

This file has the table of who decides what, and what a client is told when it joins. What users do is decided in
`messages.py`, what turns do in `turns.py`, over the record in `state.py`.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from chat.conversation import inputs, messages, turns
from chat.conversation.draft import Draft
from chat.conversation.effects import Effect, Reply
from chat.conversation.history import History
from chat.conversation.routing import Prompts
from chat.conversation.state import Effects, IllegalInput, State
from chat.protocol import frames as wire
from infra.llm import Message
from infra.records import Session
from infra.settings import WhileBusy

__all__ = ["Conversation", "IllegalInput"]

READY_CHARS = 512 * 1024
"""How much history `ready` carries; the rest is read page by page over HTTP."""


def _attached(state: State, it: inputs.Attached) -> Effects:
    """Let a client in: it is told where the stream stands, and what it missed if that is still known."""
    if not state.loaded:
        raise IllegalInput("the history must be read first")
    if it.position and _can_resume(state, it.position):
        yield Reply(it.to, _ready(state, it.position.after, resumed=True))
        for frame in state.replay.after(it.position.after):
            yield Reply(it.to, frame)
        return
    text = "".join(state.turn.text) if state.turn else ""
    yield Reply(it.to, _ready(state, state.seq - (1 if text else 0), resumed=False))
    if state.turn and text:
        yield Reply(it.to, wire.Token(state.seq, state.turn.turn_id, text))


def _can_resume(state: State, position: inputs.Position) -> bool:
    return position.epoch == state.epoch and position.after <= state.seq and state.replay.reaches(position.after)


def _ready(state: State, seq: int, *, resumed: bool) -> wire.Ready:
    history = [] if resumed else state.history.events(READY_CHARS)
    return wire.Ready(
        seq=seq,
        session_id=state.session_id,
        epoch=state.epoch,
        resumed=resumed,
        mode=state.mode,
        history=[event.shown() for event in history],
        active_turn_id=state.turn.turn_id if state.turn else None,
        unsaved=list(state.unsaved)[max(0, len(state.unsaved) - len(history)) :],
        more=not resumed and state.history.has_more_than(history),
    )


def _events_saved(state: State, it: inputs.EventsSaved) -> Effects:
    while state.unsaved and state.unsaved[0] <= it.through:
        state.unsaved.popleft()
    yield state.send(wire.Saved(state.next_seq(), it.through))


def _unloaded(state: State, it: inputs.Unloaded) -> Effects:
    if not state.loaded or not state.is_quiet():
        raise IllegalInput("something runs, waits or is not stored")
    state.unload()
    return ()


def _reloaded(state: State, it: inputs.Reloaded) -> Effects:
    if state.loaded:
        raise IllegalInput("the history is there")
    state.load(state.history.anew(it.events))
    return ()


def _restart_announced(state: State, it: inputs.RestartAnnounced) -> Effects:
    yield state.send(wire.Goodbye(state.next_seq(), "restart", it.reconnect_in_ms))


DECIDES: Mapping[type, Callable[[State, Any], Effects]] = {
    inputs.Opened: turns.opened,
    inputs.Attached: _attached,
    inputs.UserSaid: messages.user_said,
    inputs.CancelAsked: messages.cancel_asked,
    inputs.FrameRefused: messages.frame_refused,
    inputs.ModeFound: turns.mode_found,
    inputs.TokenCame: turns.token_came,
    inputs.ThoughtCame: turns.thought_came,
    inputs.ToolsAsked: turns.tools_asked,
    inputs.ToolAnswered: turns.tool_answered,
    inputs.ReplyFinished: turns.reply_finished,
    inputs.TurnFailed: turns.turn_failed,
    inputs.EventsSaved: _events_saved,
    inputs.Unloaded: _unloaded,
    inputs.Reloaded: _reloaded,
    inputs.RestartAnnounced: _restart_announced,
    inputs.EndAsked: messages.end_asked,
}
"""Who decides what follows from which input."""


class Conversation:
    """One opened session, from `ready` to its end. See `State` for the states it can be in."""

    def __init__(
        self,
        session: Session,
        history: History,
        *,
        prompts: Prompts,
        while_busy: WhileBusy,
        max_waiting: int,
        replay_bytes: int,
        new_id: Callable[[], str],
        now: Callable[[], datetime],
    ) -> None:
        self._state = State(
            session,
            history,
            prompts=prompts,
            while_busy=while_busy,
            max_waiting=max_waiting,
            replay_bytes=replay_bytes,
            new_id=new_id,
            now=now,
        )
        self.session_id = session.session_id
        self.epoch = session.epoch

    def receive(self, happened: inputs.Input) -> tuple[Effect, ...]:
        """Take in what happened; give out what to do about it.

        Raises:
            IllegalInput: it cannot have happened.
        """
        # Run to its end before anything is performed: performing may lead to the next input.
        return tuple(DECIDES[type(happened)](self._state, happened))

    def is_running(self) -> bool:
        """Whether a turn is answered now."""
        return self._state.turn is not None

    def is_loaded(self) -> bool:
        """Whether the history is in memory: if not, it must be read before a client joins or says something."""
        return self._state.loaded

    def is_quiet(self) -> bool:
        """Whether nothing runs or waits, and everything that was said is stored."""
        return self._state.is_quiet()

    def held_bytes(self) -> int:
        """About how much memory it takes."""
        return self._state.held_bytes()

    def draft(self) -> Draft | None:
        """What the running turn has said since this was last asked, if it is not recorded yet."""
        state = self._state
        if state.turn and (text := state.turn.undrafted()):
            return Draft(state.session_id, state.turn.turn_id, state.turn.part, text, state.now())
        return None

    def messages(self) -> list[Message]:
        """What to tell the model now: the system prompt, and the history up to the running turn."""
        prompt = Message("system", self._state.prompts.prompt(self._state.mode))
        return [prompt, *self._state.history.messages(without=self._state.waiting)]

    def mode_question(self) -> list[Message] | None:
        """What to ask the model about the mode before the running turn is answered; None if the mode is known."""
        if self._state.mode is not None or self._state.turn is None:
            return None
        said = self._state.history.messages(without=self._state.waiting)
        return self._state.prompts.question(next((each.content for each in said if each.role == "user"), ""))
