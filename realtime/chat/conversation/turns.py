"""What a turn does: it speaks, calls tools, and comes to an end, by itself or because it is stopped.

A turn's inputs count only while it is the one that runs: what a stopped turn still had to say changes nothing.
"""

from typing import Any

import msgspec

from chat.conversation import inputs
from chat.conversation.draft import interruption
from chat.conversation.effects import Aside, Effect, RecordMode, StartTurn, StopTurn
from chat.conversation.open_turn import OpenTurn, object_or_text, to_json
from chat.conversation.state import Effects, IllegalInput, State
from chat.protocol import frames as wire
from infra.records import Mode

NO_END = inputs.End()
"""That of a turn whose model did not end it."""


def mode_found(state: State, it: inputs.ModeFound) -> Effects:
    """Settle the session's mode by what the model answered, before it says anything else."""
    if not (turn := state.running(it.turn_id)):
        return
    if state.mode is not None:
        raise IllegalInput("the mode is known already")
    turn.add(it.usage)
    yield from choose_mode(state, state.prompts.named_in(it.answer))


def token_came(state: State, it: inputs.TokenCame) -> Effects:
    """Pass a piece of the reply on."""
    turn = state.turn
    if turn is None or turn.turn_id != it.turn_id:
        return ()
    turn.text.append(it.text)
    state.seq += 1
    return (state.send(wire.Token(state.seq, it.turn_id, it.text)),)


def thought_came(state: State, it: inputs.ThoughtCame) -> Effects:
    """Pass a thought on to who wants it: it is no part of the answer."""
    return (Aside(wire.Reasoning(it.turn_id, it.text)),) if state.running(it.turn_id) else ()


def tools_asked(state: State, it: inputs.ToolsAsked) -> Effects:
    """Tell and record the calls, and before them what the model said."""
    if not (turn := state.running(it.turn_id)):
        return
    if turn.open_calls:
        raise IllegalInput("the model asked for tools before the last ones answered")
    turn.add(it.usage)
    if text := turn.take_text():
        # A seq of its own, though no frame carries it: under its last token's it could pass for saved too early.
        state.next_seq()
        yield state.record("assistant", text, turn.turn_id, {})
    for call in it.calls:
        turn.open_calls[call.call_id] = call.name
        arguments = object_or_text(call.arguments)
        yield state.send(wire.ToolCalled(state.next_seq(), turn.turn_id, call.call_id, call.name, arguments))
        metadata = {"kind": "call", "call_id": call.call_id, "name": call.name, "arguments": arguments}
        if call.opaque:
            metadata["opaque"] = call.opaque
        yield state.record("tool", to_json({"name": call.name, "arguments": arguments}), turn.turn_id, metadata)


def tool_answered(state: State, it: inputs.ToolAnswered) -> Effects:
    """Tell and record a tool's result."""
    if not (turn := state.running(it.turn_id)):
        return
    if it.call_id not in turn.open_calls:
        raise IllegalInput(f"no open call {it.call_id}")
    yield from _close_call(state, turn, it.call_id, it.result, it.error)


def reply_finished(state: State, it: inputs.ReplyFinished) -> Effects:
    """End the turn with its answer, and go on with the next one."""
    if not (turn := state.running(it.turn_id)):
        return
    if turn.open_calls:
        raise IllegalInput("the reply finished before its tools did")
    turn.add(it.usage)
    reason: wire.DoneReason = it.reason if it.reason in ("length", "cut") else "complete"
    yield from _finish(state, turn, reason, it.end)
    yield from go_on(state)


def turn_failed(state: State, it: inputs.TurnFailed) -> Effects:
    """Say what went wrong, end the turn, and go on with the next one."""
    if turn := state.running(it.turn_id):
        yield state.send(wire.Error(state.next_seq(), it.code, it.message, turn.turn_id))
        yield from _finish(state, turn, "error")
        yield from go_on(state)


def opened(state: State, it: inputs.Opened) -> Effects:
    """Mark the turns that died with their container, so that nobody waits for them."""
    for turn_id in state.history.unfinished():
        yield state.keep(interruption(state.session_id, turn_id, state.now()))


# Steps that the machine's parts share


def choose_mode(state: State, mode: Mode) -> Effects:
    """Answer in this mode from now on; tell it, and store it."""
    state.mode = mode
    yield state.send(wire.ModeChosen(state.next_seq(), mode))
    yield RecordMode(mode)


def start(state: State, turn_id: str) -> Effect:
    """Run this turn."""
    state.turn = OpenTurn(turn_id)
    return StartTurn(turn_id)


def go_on(state: State) -> Effects:
    """Start the turn that has waited longest, if one waits."""
    if state.waiting:
        turn_id = state.waiting[0]
        state.waiting = [waiting for waiting in state.waiting if waiting != turn_id]
        yield start(state, turn_id)


def stop(state: State, reason: wire.DoneReason) -> Effects:
    """Stop the turn that runs, if one does."""
    if state.turn:
        yield StopTurn(state.turn.turn_id)
        yield from _finish(state, state.turn, reason)


def close(state: State, turn: OpenTurn, reason: wire.DoneReason, end: inputs.End = NO_END) -> Effects:
    """Tell and record how a turn ended; one that only waited has said nothing and used nothing."""
    yield state.send(wire.Done(state.next_seq(), turn.turn_id, reason, turn.usage, end.why or None, end.model or None))
    metadata: dict[str, Any] = {"reason": reason, "usage": msgspec.to_builtins(turn.usage)}
    if reason in ("cancelled", "error", "cut"):
        metadata["interrupted"] = True
    metadata |= {name: value for name, value in msgspec.structs.asdict(end).items() if value}
    yield state.record("assistant", turn.take_text(), turn.turn_id, metadata)


def _finish(state: State, turn: OpenTurn, reason: wire.DoneReason, end: inputs.End = NO_END) -> Effects:
    """End the running turn, whatever it was doing, so that the history it leaves is whole."""
    for call_id in list(turn.open_calls):
        yield from _close_call(state, turn, call_id, None, "stopped before it answered")
    state.turn = None
    yield from close(state, turn, reason, end)


def _close_call(state: State, turn: OpenTurn, call_id: str, result: Any, error: str | None) -> Effects:
    name = turn.open_calls.pop(call_id)
    yield state.send(wire.ToolResult(state.next_seq(), turn.turn_id, call_id, name, result, error))
    metadata = {"kind": "result", "call_id": call_id, "name": name, "ok": error is None}
    yield state.record("tool", to_json(result if error is None else {"error": error}), turn.turn_id, metadata)
