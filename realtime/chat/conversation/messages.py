"""What users do: they say something, which is answered now, waits, or is refused; and they stop what runs or waits."""

import msgspec

from chat.conversation import inputs, turns
from chat.conversation.effects import Reply
from chat.conversation.open_turn import OpenTurn
from chat.conversation.state import Effects, IllegalInput, State
from chat.protocol import frames as wire

BUSY_RETRY_SECONDS = 2.0
REMEMBERED_MESSAGES = 1000
"""Message ids that are recognised when they come again. A client resends what it has no answer for: the last few."""


def user_said(state: State, it: inputs.UserSaid) -> Effects:
    """Take a message: start its turn, or have it wait for the one that runs."""
    if state.ended:
        return
    if not state.loaded:
        raise IllegalInput("the history must be read first")
    message_id = it.message_id or state.new_id()
    words_id = state.words_id(message_id, it.content)
    if known := state.said.get(message_id):
        turn_id, known_words_id = known
        if words_id == known_words_id:
            yield from _said_again(state, it, message_id, turn_id)
        else:
            other = "This `message_id` was used for another message; send the new one under an id of its own."
            yield Reply(it.to, wire.Error(state.next_seq(), wire.ErrorCode.MESSAGE_ID_USED, other, None, message_id))
        return
    if state.turn and not _takes_another(state):
        busy = "A reply is being written; send this again when it is done, or stop it first."
        yield Reply(
            it.to, wire.Error(state.next_seq(), wire.ErrorCode.BUSY, busy, None, message_id, BUSY_RETRY_SECONDS)
        )
        return
    merge = state.while_busy == "merge" and state.waiting
    turn_id = state.waiting[-1] if merge else state.new_id()
    state.said[message_id] = (turn_id, words_id)
    if len(state.said) > REMEMBERED_MESSAGES:
        del state.said[next(iter(state.said))]
    yield state.send(wire.Accepted(state.next_seq(), message_id, turn_id, it.content))
    # The same message sent again after a crash has the same event id: storing it twice stores it once.
    yield state.record("user", it.content, turn_id, {"message_id": message_id}, words_id)
    if state.mode is None and (mode := state.prompts.route(it.content)):
        yield from turns.choose_mode(state, mode)
    if state.turn and state.while_busy == "interrupt":
        yield from turns.stop(state, "cancelled")
    if state.turn:
        state.waiting.append(turn_id)
    else:
        yield turns.start(state, turn_id)


def _said_again(state: State, it: inputs.UserSaid, message_id: str, turn_id: str) -> Effects:
    yield Reply(it.to, wire.Accepted(state.next_seq(), message_id, turn_id, it.content))
    if end := state.history.end_of(turn_id):  # how the first one ended; one that goes on tells it itself
        usage = msgspec.convert(end.metadata.get("usage", {}), wire.Usage)
        yield Reply(it.to, wire.Done(state.next_seq(), turn_id, end.metadata["reason"], usage))


def _takes_another(state: State) -> bool:
    if state.while_busy == "reject":
        return False
    return state.while_busy == "interrupt" or len(state.waiting) < state.max_waiting


def cancel_asked(state: State, it: inputs.CancelAsked) -> Effects:
    """Stop the turn that runs, or take one back that waits."""
    if it.turn_id in state.waiting:
        state.waiting = [turn_id for turn_id in state.waiting if turn_id != it.turn_id]
        yield from turns.close(state, OpenTurn(it.turn_id), "cancelled")
    elif state.turn and it.turn_id in (None, state.turn.turn_id):
        yield from turns.stop(state, "cancelled")
        yield from turns.go_on(state)


def frame_refused(state: State, it: inputs.FrameRefused) -> Effects:
    """Tell a client why its frame was not taken."""
    yield Reply(it.to, wire.Error(state.next_seq(), it.code, it.message, None, it.message_id, it.retry_after))


def end_asked(state: State, it: inputs.EndAsked) -> Effects:
    """Stop what runs and what waits, and take no more."""
    if state.turn:
        yield from turns.stop(state, "cancelled")
    for turn_id in dict.fromkeys(state.waiting):
        yield from turns.close(state, OpenTurn(turn_id), "cancelled")
    state.waiting.clear()
    state.ended = True
