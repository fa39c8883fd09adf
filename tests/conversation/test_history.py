"""History: what a model is given is valid, whatever of a session was stored and whatever was lost."""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.conversation.history import HISTORY_BYTES, MODEL_CHARS, NO_RESULT, History
from infra.llm import Message, ToolCall
from infra.records import Event, Role
from tests.support.hypothesis_profile import lenient

WHEN = datetime(2025, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
PLENTY = 1000


def assert_fit_for_a_model(messages: Iterable[Message]) -> None:
    """What every provider demands of a history; each rule was a refused request somewhere."""
    rest = list(messages)
    if rest and rest[0].role == "system":
        del rest[0]
    assert all(message.role != "system" for message in rest)
    assert not rest or rest[0].role == "user"
    unanswered: list[str] = []
    for message in rest:
        if message.role == "tool":
            assert message.tool_call_id in unanswered, "a result without its call just before it"
            unanswered.remove(message.tool_call_id)
        else:
            assert not unanswered, "a call without a result just after it"
            assert message.tool_call_id is None
            assert message.content or message.tool_calls, "an empty message"
            assert message.role == "assistant" or not message.tool_calls
            unanswered = [call.call_id for call in message.tool_calls]
            assert len(set(unanswered)) == len(unanswered)
            assert all(isinstance(json.loads(call.arguments), dict) for call in message.tool_calls)
    assert not unanswered


class Script:
    """Writes the events of a session, one line a thing that was said or done."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def _add(self, turn: str, role: Role, content: str, metadata: dict[str, Any]) -> None:
        event_id = str(len(self.events))
        self.events.append(
            Event(
                event_id=event_id,
                session_id="s",
                turn_id=turn,
                role=role,
                content=content,
                timestamp=WHEN,
                metadata=metadata,
            )
        )

    def user(self, turn: str, content: str) -> None:
        """The user says something, under a message id that says what."""
        self._add(turn, "user", content, {"message_id": f"m-{content}"})

    def text(self, turn: str, content: str) -> None:
        """The assistant says something before it asks for tools."""
        self._add(turn, "assistant", content, {})

    def done(self, turn: str, content: str) -> None:
        """The assistant ends its turn."""
        self._add(turn, "assistant", content, {"reason": "complete", "usage": {}})

    def call(self, turn: str, call_id: str, arguments: Any = None) -> None:
        """The assistant asks for a tool."""
        metadata = {"kind": "call", "call_id": call_id, "name": "look", "arguments": arguments or {}}
        self._add(turn, "tool", "the call", metadata)

    def result(self, turn: str, call_id: str, content: str = "1") -> None:
        """The tool answers."""
        self._add(turn, "tool", content, {"kind": "result", "call_id": call_id, "name": "look", "ok": True})


def said(turn: str, content: str) -> Event:
    """A user's message."""
    script = Script()
    script.user(turn, content)
    return script.events[0]


def look(call_id: str, arguments: str = "{}") -> ToolCall:
    return ToolCall(call_id, "look", arguments)


@st.composite
def _turn(draw: st.DrawFn, name: str) -> list[Event]:
    """A turn of any shape, perhaps crashed: calls without results, results in any order, no last words."""
    script = Script()
    for number in range(draw(st.integers(1, 2))):
        script.user(name, f"{name} asks {number}")
    for round_number in range(draw(st.integers(0, 3))):
        if draw(st.booleans()):
            script.text(name, f"{name} says {round_number}")
        ids = [f"c{round_number}{n}" for n in range(draw(st.integers(1, 3)))]
        for call_id in ids:
            script.call(name, call_id, draw(st.sampled_from([{}, {"a": 1}, "{nonsense", "", [1], None])))
        for call_id in draw(st.permutations(ids)):
            if draw(st.integers(0, 3)):
                script.result(name, call_id)
    if draw(st.booleans()):
        script.done(name, draw(st.sampled_from(["", f"{name} ends"])))
    return script.events


@st.composite
def recordings(draw: st.DrawFn) -> list[Event]:
    """Events of several turns, interleaved in any way: queued messages are recorded early, late results late."""
    turns = [draw(_turn(f"t{n}")) for n in range(draw(st.integers(0, 4)))]
    merged: list[Event] = []
    while turns := [turn for turn in turns if turn]:
        merged.append(turns[draw(st.integers(0, len(turns) - 1))].pop(0))
    return merged


@lenient
@given(recordings(), st.data())
def test_any_part_of_any_recording_makes_a_valid_history(events: list[Event], data: st.DataObject) -> None:
    """Whichever events were lost, a model accepts what is left."""
    kept = data.draw(st.lists(st.booleans(), min_size=len(events), max_size=len(events)))
    limit = data.draw(st.integers(1, len(events) + 1))
    rest = [event for event, keep in zip(events, kept, strict=True) if keep]
    assert_fit_for_a_model(History(rest, limit).messages())


@lenient
@given(recordings(), st.integers(1, 30), st.sets(st.sampled_from(["t0", "t1", "t2", "t3"])))
def test_every_moment_of_a_live_history_is_valid(events: list[Event], limit: int, waiting: set[str]) -> None:
    """After each event that is added, within any limit and without any turns that wait, a model accepts the rest."""
    history = History([], limit)
    for event in events:
        history.add(event, running=event.turn_id)
        assert_fit_for_a_model(history.messages(without=waiting))


@lenient
@given(recordings(), st.integers(1, 30))
def test_live_and_read_back_are_one(events: list[Event], limit: int) -> None:
    """A history built event by event equals one read back from the store in one piece, as far as it reaches."""
    live = History([], limit)
    for event in events:
        live.add(event, running=event.turn_id)
    reach = len(live.events(MODEL_CHARS))
    assert reach >= min(limit, len(events))
    assert live.messages() == History(events, reach).messages()


def test_a_running_turn_keeps_its_question() -> None:
    """However many calls it makes, and whatever else is said meanwhile, the model is still told what was asked."""
    live = History([], 2)
    live.add(said("t1", "what is it?"), running="t1")
    for number in range(5):
        live.add(said("t2", f"hurry {number}"), running="t1")
    assert live.messages(without=["t2"]) == [Message("user", "what is it?")]
    live.add(said("t3", "next"), running="t3")
    assert [message.content for message in live.messages()] == ["hurry 4", "next"]


def test_a_model_is_given_no_more_than_it_can_take() -> None:
    """Of a long history the model gets the latest whole turns that fit, and always the last one."""
    long = "x" * (MODEL_CHARS // 3)
    history = History([said(f"t{number}", f"{number}{long}") for number in range(5)], PLENTY)
    assert [message.content[0] for message in history.messages()] == ["3", "4"]
    longest = History([said("t1", "short"), said("t2", "y" * (MODEL_CHARS + 1))], PLENTY)
    assert [message.content[0] for message in longest.messages()] == ["y"]


@lenient
@given(recordings())
def test_nothing_that_was_said_is_left_out(events: list[Event]) -> None:
    """Every text and every call of a recording reaches the model, turn by turn, in order."""
    messages = History(events, PLENTY).messages()
    for turn in {event.turn_id for event in events}:
        said = [e.content for e in events if e.turn_id == turn and e.role != "tool" and e.content]
        assert [m.content for m in messages if m.content in said] == said
    calls = sorted(e.metadata["call_id"] for e in events if e.metadata.get("kind") == "call")
    assert sorted(call.call_id for message in messages for call in message.tool_calls) == calls


def _messages(script: Script, limit: int = PLENTY, without: Sequence[str] = ()) -> list[Message]:
    return History(script.events, limit).messages(without)


def test_a_turn_with_tools_is_told_in_rounds() -> None:
    """Text and its calls are one assistant message, each call's result follows, and the answer comes last."""
    script = Script()
    script.user("t", "how many?")
    script.text("t", "let me look")
    script.call("t", "c1", {"of": "a"})
    script.call("t", "c2", {"of": "b"})
    script.result("t", "c2", "2")
    script.result("t", "c1", "1")
    script.call("t", "c3")
    script.result("t", "c3", "3")
    script.done("t", "six")
    assert _messages(script) == [
        Message("user", "how many?"),
        Message("assistant", "let me look", (look("c1", '{"of":"a"}'), look("c2", '{"of":"b"}'))),
        Message("tool", "1", tool_call_id="c1"),
        Message("tool", "2", tool_call_id="c2"),
        Message("assistant", "", (look("c3"),)),
        Message("tool", "3", tool_call_id="c3"),
        Message("assistant", "six"),
    ]


def test_a_call_that_never_answered_is_answered_for() -> None:
    """After a crash in the middle of a tool, the model is told that the call was interrupted."""
    script = Script()
    script.user("t", "look")
    script.call("t", "c1")
    script.user("u", "and now?")
    assert _messages(script) == [
        Message("user", "look"),
        Message("assistant", "", (look("c1"),)),
        Message("tool", NO_RESULT, tool_call_id="c1"),
        Message("user", "and now?"),
    ]


def test_a_result_without_its_call_is_left_out() -> None:
    """A result whose call was lost says nothing to the model."""
    script = Script()
    script.user("t", "look")
    script.result("t", "c1")
    script.done("t", "seen")
    assert _messages(script) == [Message("user", "look"), Message("assistant", "seen")]


def test_a_message_recorded_early_is_told_in_its_turn() -> None:
    """A message that was queued while another was answered comes after that answer."""
    script = Script()
    script.user("t", "first")
    script.user("u", "second")
    script.done("t", "one")
    script.done("u", "two")
    assert [message.content for message in _messages(script)] == ["first", "one", "second", "two"]


def test_merged_messages_come_together() -> None:
    """Messages that were merged into one turn precede its answer, in order."""
    script = Script()
    script.user("t", "first")
    script.user("t", "and this")
    script.done("t", "both")
    assert _messages(script) == [Message("user", "first"), Message("user", "and this"), Message("assistant", "both")]


def test_turns_that_wait_are_left_out() -> None:
    """The model does not hear of messages whose turn has not come."""
    script = Script()
    script.user("t", "first")
    script.user("u", "second")
    assert _messages(script, without=["u"]) == [Message("user", "first")]


def test_a_turn_that_lost_its_question_is_left_out() -> None:
    """Past the limit the oldest events go, and with its question a turn's answer goes too."""
    script = Script()
    script.user("t", "first")
    script.done("t", "one")
    script.user("u", "second")
    assert _messages(script, limit=2) == [Message("user", "second")]


def test_arguments_are_an_object_to_the_model() -> None:
    """Arguments that were no JSON object reach the model as an empty one."""
    script = Script()
    script.user("t", "look")
    script.call("t", "c1", "{nonsense")
    assert _messages(script)[1] == Message("assistant", "", (look("c1", "{}"),))


def test_a_turn_stopped_before_its_first_word_says_nothing() -> None:
    """An empty final event produces no message: providers refuse empty ones."""
    script = Script()
    script.user("t", "first")
    script.done("t", "")
    assert _messages(script) == [Message("user", "first")]


def test_message_ids_lead_to_their_turns() -> None:
    """A message id that is sent again can be traced to the turn that answers it."""
    script = Script()
    script.user("t", "a")
    script.user("t", "b")
    script.done("t", "c")
    script.user("u", "d")
    said = History(script.events, PLENTY).said()
    assert {message_id: turn_id for message_id, (turn_id, _) in said.items()} == {"m-a": "t", "m-b": "t", "m-d": "u"}


@pytest.mark.parametrize(
    ("max_chars", "contents"), [(0, "d"), (4, "d"), (5, "cd"), (9, "cd"), (10, "bcd"), (99, "abcd")]
)
def test_a_client_is_given_the_latest_that_fit(max_chars: int, contents: str) -> None:
    """Oldest first, as many as fit into so many characters, and the last one whatever its length."""
    script = Script()
    for content, length in zip("abcd", (1, 5, 1, 4), strict=True):
        script.user("t", content * length)
    assert [event.content[0] for event in History(script.events, PLENTY).events(max_chars)] == list(contents)


def test_a_new_session_has_nothing_to_show() -> None:
    """No event, and no message."""
    assert History([], PLENTY).events(99) == []
    assert History([], PLENTY).messages() == []


def test_finished_turns_go_by_bytes_whatever_runs() -> None:
    """Messages that are sent and taken back while a turn runs are forgotten, oldest first; those that wait are not."""
    live = History([], PLENTY)
    live.add(said("t0", "what is it?"), running="t0")
    long = "\U0001f600" * (HISTORY_BYTES // 40)
    for number in range(1, 31):
        live.add(said(f"t{number}", f"{number} {long}"), running="t0", waiting=["t2"])
    kept = [event.content.split()[0] for event in live.events(max_chars=sys.maxsize)]
    assert kept[:2] == ["what", "2"]
    assert kept[2:] == [str(number) for number in range(31 - len(kept[2:]), 31)]
    assert 5 <= len(kept) <= 10
    assert live.has_more_than(live.events(max_chars=sys.maxsize))
