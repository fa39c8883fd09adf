"""The conversation machine, example by example: what it decides, in whole effects."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, get_args
from uuid import NAMESPACE_URL, uuid5

import msgspec
import pytest

from chat.conversation import inputs
from chat.conversation.effects import Effect, Record, RecordMode, Reply, Send, StartTurn, StopTurn
from chat.conversation.history import History
from chat.conversation.inputs import (
    Attached,
    CancelAsked,
    EndAsked,
    EventsSaved,
    FrameRefused,
    ModeFound,
    ReplyFinished,
    TokenCame,
    ToolAnswered,
    ToolsAsked,
    TurnFailed,
    UserSaid,
)
from chat.conversation.machine import DECIDES, Conversation, IllegalInput
from chat.conversation.messages import BUSY_RETRY_SECONDS
from chat.conversation.routing import Prompts
from chat.protocol import frames as wire
from chat.protocol.frames import (
    Accepted,
    Done,
    ErrorCode,
    ModeChosen,
    Ready,
    Saved,
    Token,
    ToolCalled,
    ToolResult,
    Usage,
)
from infra.llm import Message, ToolCall
from infra.records import Event, Mode, Role, Session
from infra.settings import WhileBusy
from tests.support.prompts import BY_MODEL, STANDARD

DAWN = datetime(2025, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
NO_USAGE = {"input_tokens": 0, "output_tokens": 0, "cached_tokens": 0, "reasoning_tokens": 0}
BUSY = "A reply is being written; send this again when it is done, or stop it first."


def a_clock() -> Callable[[], datetime]:
    """Each time it is asked, a second later."""
    seconds = count()
    return lambda: DAWN + timedelta(seconds=next(seconds))


def a_counter() -> Callable[[], str]:
    """Ids id1, id2, ..."""
    numbers = count(1)
    return lambda: f"id{next(numbers)}"


def a_conversation(
    while_busy: WhileBusy = "queue",
    *,
    max_waiting: int = 2,
    mode: Mode | None = None,
    before: Sequence[Event] = (),
    limit: int = 200,
    prompts: Prompts = STANDARD,
) -> Conversation:
    session = Session(session_id="s", user_id="u", epoch=3, start_time=DAWN, mode=mode)
    return Conversation(
        session,
        History(before, limit),
        prompts=prompts,
        while_busy=while_busy,
        max_waiting=max_waiting,
        replay_bytes=10_000,
        new_id=a_counter(),
        now=a_clock(),
    )


def running(while_busy: WhileBusy = "queue", *, max_waiting: int = 2) -> Conversation:
    """A casual conversation whose first turn, id1, runs: seq 1 was `accepted`, the clock has told second 0."""
    talk = a_conversation(while_busy, max_waiting=max_waiting, mode="casual")
    talk.receive(UserSaid("hello", "m1"))
    return talk


def recorded(
    through: int, event_id: str, turn_id: str, role: Role, content: str, second: int, **metadata: Any
) -> Record:
    when = DAWN + timedelta(seconds=second)
    event = Event(
        event_id=event_id,
        session_id="s",
        turn_id=turn_id,
        role=role,
        content=content,
        timestamp=when,
        metadata=metadata,
    )
    return Record(event, through)


def said(through: int, turn_id: str, content: str, second: int, message_id: str) -> Record:
    event_id = str(uuid5(NAMESPACE_URL, f"s/{message_id}\n{content}"))
    return recorded(through, event_id, turn_id, "user", content, second, message_id=message_id)


def cancelled(through: int, event_id: str, turn_id: str, content: str, second: int) -> Record:
    return recorded(
        through, event_id, turn_id, "assistant", content, second, reason="cancelled", usage=NO_USAGE, interrupted=True
    )


def starts(effects: Sequence[Effect]) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, StartTurn | StopTurn)]


def test_the_first_message_chooses_the_mode_and_starts_a_turn() -> None:
    """The first message is accepted, recorded and routed before its turn starts."""
    assert a_conversation().receive(UserSaid("fetch the figures", "m1", "conn")) == (
        Send(Accepted(1, "m1", "id1", "fetch the figures")),
        said(1, "id1", "fetch the figures", 0, "m1"),
        Send(ModeChosen(2, "analytical")),
        RecordMode("analytical"),
        StartTurn("id1"),
    )


def test_the_mode_stays() -> None:
    """A session that has a mode keeps it, whatever is said."""
    assert a_conversation(mode="casual").receive(UserSaid("fetch the figures", "m1")) == (
        Send(Accepted(1, "m1", "id1", "fetch the figures")),
        said(1, "id1", "fetch the figures", 0, "m1"),
        StartTurn("id1"),
    )


def asking() -> Conversation:
    """A conversation whose first turn, id1, runs, and whose mode the model is yet to name."""
    talk = a_conversation(prompts=BY_MODEL)
    effects = talk.receive(UserSaid("where is my order?", "m1"))
    assert effects == (
        Send(Accepted(1, "m1", "id1", "where is my order?")),
        said(1, "id1", "where is my order?", 0, "m1"),
        StartTurn("id1"),
    )
    assert talk.mode_question() == BY_MODEL.question("where is my order?")
    return talk


def test_the_model_names_the_mode_before_the_answer() -> None:
    """The mode the model names is told and recorded, decides the prompt, and its tokens are counted."""
    talk = asking()
    assert talk.messages()[0] == Message("system", "You chat.")
    assert talk.receive(ModeFound("id1", "Support.", Usage(30, 2))) == (
        Send(ModeChosen(2, "support")),
        RecordMode("support"),
    )
    assert talk.messages() == [Message("system", "You help with orders."), Message("user", "where is my order?")]
    assert talk.mode_question() is None
    done = talk.receive(ReplyFinished("id1", "complete", Usage(5, 5)))[0]
    assert done == Send(Done(3, "id1", "complete", Usage(35, 7)))
    assert talk.receive(UserSaid("and an offer?", "m2"))[-1] == StartTurn("id3")
    assert talk.mode_question() is None


def test_a_model_that_names_none_leaves_the_default() -> None:
    """Where the model names no mode (it failed, was slow, or said something else), the default stands."""
    assert asking().receive(ModeFound("id1", "")) == (Send(ModeChosen(2, "general")), RecordMode("general"))


def test_messages_that_wait_do_not_ask_again() -> None:
    """The question is about the first message, whatever was said since."""
    talk = asking()
    talk.receive(UserSaid("I want to buy", "m2"))
    assert talk.mode_question() == BY_MODEL.question("where is my order?")
    assert talk.receive(ModeFound("id1", "support"))[0] == Send(ModeChosen(3, "support"))


def test_a_turn_that_is_stopped_while_it_asks_leaves_it_to_the_next() -> None:
    """What its model still says changes nothing; the next turn asks about the first message again."""
    talk = asking()
    talk.receive(CancelAsked())
    assert talk.mode_question() is None, "nothing runs"
    assert talk.receive(ModeFound("id1", "support")) == ()
    talk.receive(UserSaid("hello?", "m2"))
    assert talk.mode_question() == BY_MODEL.question("where is my order?")
    assert talk.receive(ModeFound("id3", "sales"))[1] == RecordMode("sales")


def test_a_mode_that_is_known_cannot_be_found() -> None:
    """A second answer about the mode is illegal, and changes nothing."""
    talk = asking()
    talk.receive(ModeFound("id1", "sales"))
    with pytest.raises(IllegalInput):
        talk.receive(ModeFound("id1", "support"))
    assert talk.messages()[0] == Message("system", "You sell.")


@pytest.mark.parametrize(("mode", "prompt"), [("sales", "You sell."), ("gone", "You chat.")])
def test_a_session_keeps_its_mode(mode: Mode, prompt: str) -> None:
    """A stored mode that the prompts no longer know is kept, and answered with the default prompt."""
    talk = a_conversation(prompts=BY_MODEL, mode=mode)
    assert [type(effect) for effect in talk.receive(UserSaid("hello", "m1"))] == [Send, Record, StartTurn]
    assert talk.mode_question() is None
    assert talk.messages()[0] == Message("system", prompt)
    ready = talk.receive(Attached("conn"))[0]
    assert isinstance(ready, Reply)
    assert isinstance(ready.frame, Ready)
    assert ready.frame.mode == mode


def test_a_message_without_an_id_gets_one() -> None:
    """The server names the message where the client does not."""
    assert a_conversation(mode="casual").receive(UserSaid("hello")) == (
        Send(Accepted(1, "id1", "id2", "hello")),
        said(1, "id2", "hello", 0, "id1"),
        StartTurn("id2"),
    )


def test_a_plain_answer() -> None:
    """Tokens are told as they come, and the whole answer is recorded once, with its usage, at the end."""
    talk = running()
    assert talk.receive(TokenCame("id1", "Hel")) == (Send(Token(2, "id1", "Hel")),)
    assert talk.receive(TokenCame("id1", "lo")) == (Send(Token(3, "id1", "lo")),)
    assert talk.receive(ReplyFinished("id1", "complete", Usage(5, 2))) == (
        Send(Done(4, "id1", "complete", Usage(5, 2))),
        recorded(
            4,
            "id2",
            "id1",
            "assistant",
            "Hello",
            1,
            reason="complete",
            usage=NO_USAGE | {"input_tokens": 5, "output_tokens": 2},
        ),
    )


def test_an_answer_cut_at_the_models_limit_says_so() -> None:
    """`done` says `length`, and the event is not marked interrupted."""
    assert running().receive(ReplyFinished("id1", "length", Usage())) == (
        Send(Done(2, "id1", "length", Usage())),
        recorded(2, "id2", "id1", "assistant", "", 1, reason="length", usage=NO_USAGE),
    )


def test_a_round_of_tools() -> None:
    """Text before it, each call and each result are told and recorded in order, and usage adds up."""
    talk = running()
    talk.receive(TokenCame("id1", "Let me see."))
    calls = (ToolCall("c1", "look", '{"at":"a"}'), ToolCall("c2", "look", "at b"))
    assert talk.receive(ToolsAsked("id1", calls, Usage(10, 1))) == (
        recorded(3, "id2", "id1", "assistant", "Let me see.", 1),
        Send(ToolCalled(4, "id1", "c1", "look", {"at": "a"})),
        recorded(
            4,
            "id3",
            "id1",
            "tool",
            '{"name":"look","arguments":{"at":"a"}}',
            2,
            kind="call",
            call_id="c1",
            name="look",
            arguments={"at": "a"},
        ),
        Send(ToolCalled(5, "id1", "c2", "look", "at b")),
        recorded(
            5,
            "id4",
            "id1",
            "tool",
            '{"name":"look","arguments":"at b"}',
            3,
            kind="call",
            call_id="c2",
            name="look",
            arguments="at b",
        ),
    )
    assert talk.receive(ToolAnswered("id1", "c2", error="not like this")) == (
        Send(ToolResult(6, "id1", "c2", "look", None, "not like this")),
        recorded(
            6,
            "id5",
            "id1",
            "tool",
            '{"error":"not like this"}',
            4,
            kind="result",
            call_id="c2",
            name="look",
            ok=False,
        ),
    )
    assert talk.receive(ToolAnswered("id1", "c1", [1])) == (
        Send(ToolResult(7, "id1", "c1", "look", [1])),
        recorded(7, "id6", "id1", "tool", "[1]", 5, kind="result", call_id="c1", name="look", ok=True),
    )
    assert talk.receive(ReplyFinished("id1", "complete", Usage(20, 2)))[0] == Send(
        Done(8, "id1", "complete", Usage(30, 3))
    )


def test_a_failure_keeps_what_was_said() -> None:
    """The client reads why, the turn is done, and its partial text is recorded as interrupted."""
    talk = running()
    talk.receive(TokenCame("id1", "Hel"))
    assert talk.receive(TurnFailed("id1", "model_timeout", "Too slow.")) == (
        Send(wire.Error(3, "model_timeout", "Too slow.", "id1")),
        Send(Done(4, "id1", "error", Usage())),
        recorded(4, "id2", "id1", "assistant", "Hel", 1, reason="error", usage=NO_USAGE, interrupted=True),
    )


def test_a_message_sent_again_is_answered_once() -> None:
    """Whoever repeats a message learns which turn answers it, and how it ended; nothing else happens."""
    talk = running()
    assert talk.receive(UserSaid("hello", "m1", "conn")) == (Reply("conn", Accepted(2, "m1", "id1", "hello")),)
    talk.receive(ReplyFinished("id1", "length", Usage(3, 4)))
    assert talk.receive(UserSaid("hello", "m1", "conn")) == (
        Reply("conn", Accepted(4, "m1", "id1", "hello")),
        Reply("conn", Done(5, "id1", "length", Usage(3, 4))),
    )


def test_a_message_sent_again_after_reopening_is_answered_once() -> None:
    """What was asked in an earlier epoch is known by its message id."""
    before = [said(1, "old", "hello", 0, "m1").event]
    assert a_conversation(before=before).receive(UserSaid("hello", "m1", "conn")) == (
        Reply("conn", Accepted(1, "m1", "old", "hello")),
    )


def test_a_turn_that_died_with_its_container_is_marked_when_the_session_is_opened() -> None:
    """A turn that died is stored as interrupted, once, under the same event id whoever marks it."""
    died = [said(1, "t1", "one", 0, "m1").event, said(1, "t2", "two", 0, "m2").event]
    ended = recorded(2, "e9", "t0", "assistant", "Hi", 0, reason="complete", usage=NO_USAGE).event
    talk = a_conversation(before=[ended, *died])
    marks = [effect.event for effect in talk.receive(inputs.Opened()) if isinstance(effect, Record)]
    assert [(mark.turn_id, mark.content, mark.metadata["reason"]) for mark in marks] == [
        ("t1", "", "error"),
        ("t2", "", "error"),
    ]
    assert all(mark.metadata["interrupted"] for mark in marks)
    again = a_conversation(before=[ended, *died]).receive(inputs.Opened())
    assert [effect.event.event_id for effect in again if isinstance(effect, Record)] == [m.event_id for m in marks]
    assert talk.receive(inputs.Opened()) == ()
    assert talk.receive(UserSaid("one", "m1", "conn")) == (
        Reply("conn", Accepted(1, "m1", "t1", "one")),
        Reply("conn", Done(2, "t1", "error", Usage())),
    )


def test_a_message_sent_again_after_a_crash_has_the_same_event_id() -> None:
    """The store, which knows events by their id, keeps it once even where the history does not know it."""

    def event_ids() -> list[str]:
        effects = a_conversation().receive(UserSaid("hello", "m1"))
        return [effect.event.event_id for effect in effects if isinstance(effect, Record)]

    assert event_ids() == event_ids() != []


def test_a_session_remembers_so_many_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest ids are known again; memory does not grow with a session's age."""
    monkeypatch.setattr("chat.conversation.messages.REMEMBERED_MESSAGES", 2)
    talk = a_conversation("interrupt", mode="casual")
    for message_id in ("m1", "m2", "m3"):
        talk.receive(UserSaid("hello", message_id))
    assert starts(talk.receive(UserSaid("hello", "m2"))) == starts(talk.receive(UserSaid("hello", "m3"))) == []
    assert len(starts(talk.receive(UserSaid("hello", "m1")))) == 2


def test_ready_carries_no_more_history_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long history a client is sent the end; it can read the rest over HTTP."""
    monkeypatch.setattr("chat.conversation.machine.READY_CHARS", 10)
    before = [said(n, "old", "hello" * n, n, f"m{n}").event for n in (3, 1, 1)]
    assert a_conversation(before=before).receive(Attached("conn")) == (
        Reply("conn", Ready(0, "s", 3, False, None, before[1:], more=True)),
    )


def test_who_joins_learns_what_is_not_saved_yet() -> None:
    """A client is told which of the events it is sent are not stored yet."""
    talk = running()
    assert (joins(talk).unsaved, len(joins(talk).history)) == ([1], 1)
    talk.receive(EventsSaved(1))
    assert (joins(talk).unsaved, len(joins(talk).history)) == ([], 1)


def test_what_was_said_before_a_call_is_not_saved_with_its_last_token() -> None:
    """No frame tells that the text is stored, so it has a place of its own in the stream."""
    talk = running()
    talk.receive(TokenCame("id1", "Let me see."))
    talk.receive(ToolsAsked("id1", (ToolCall("c1", "look", "{}"),), Usage()))
    talk.receive(EventsSaved(2))  # the last token's
    ready = joins(talk)
    assert [event.role for event in ready.history[-len(ready.unsaved) :]] == ["assistant", "tool"]


def test_a_draft_is_what_was_said_since_the_last_one() -> None:
    """The draft is the unrecorded text of the running turn; without text or a turn there is none."""
    assert a_conversation().draft() is None
    assert running().draft() is None
    talk = running()
    talk.receive(TokenCame("id1", "Let "))
    talk.receive(TokenCame("id1", "me "))
    drafts = [talk.draft()]
    assert talk.draft() is None
    talk.receive(TokenCame("id1", "see."))
    drafts.append(talk.draft())
    talk.receive(TokenCame("id1", " Now."))  # recorded before it was drafted
    talk.receive(ToolsAsked("id1", (ToolCall("c1", "look", "{}"),), Usage()))
    talk.receive(ToolAnswered("id1", "c1", 1))
    talk.receive(TokenCame("id1", "One."))
    drafts.append(talk.draft())
    told = [(each.session_id, each.turn_id, each.part, each.text) for each in drafts if each]
    assert told == [("s", "id1", 0, "Let me "), ("s", "id1", 0, "see."), ("s", "id1", 1, "One.")]
    talk.receive(TokenCame("id1", " Done."))
    talk.receive(ReplyFinished("id1", "complete", Usage()))
    assert talk.draft() is None


def test_ready_says_that_the_conversation_began_earlier() -> None:
    """Where the history was cut when it was read, and where it was cut since; a client that resumes need not know."""
    before = [said(n, f"t{n}", "hello", n, f"m{n}").event for n in range(1, 4)]
    ready = joins(a_conversation(before=before, limit=2))
    assert (ready.more, len(ready.history)) == (True, 2)
    ready = joins(talk := a_conversation(before=before, limit=3))
    assert (ready.more, len(ready.history)) == (False, 3)
    talk.receive(UserSaid("more", "m4"))
    assert joins(talk).more
    assert not resume(talk, 0)[0].more


def test_queue_answers_one_after_another() -> None:
    """A message sent meanwhile is accepted and recorded at once, and its turn starts when the first is done."""
    talk = running("queue")
    assert talk.receive(UserSaid("and?", "m2")) == (
        Send(Accepted(2, "m2", "id2", "and?")),
        said(2, "id2", "and?", 1, "m2"),
    )
    assert talk.receive(UserSaid("or?", "m3")) == (
        Send(Accepted(3, "m3", "id3", "or?")),
        said(3, "id3", "or?", 2, "m3"),
    )
    assert starts(talk.receive(ReplyFinished("id1", "complete", Usage()))) == [StartTurn("id2")]
    assert starts(talk.receive(TurnFailed("id2", "internal", "Sorry."))) == [StartTurn("id3")]
    assert starts(talk.receive(ReplyFinished("id3", "complete", Usage()))) == []


@pytest.mark.parametrize("while_busy", ["queue", "merge"])
def test_a_full_queue_refuses(while_busy: WhileBusy) -> None:
    """Past the bound the sender alone is told to come back."""
    talk = running(while_busy, max_waiting=1)
    talk.receive(UserSaid("and?", "m2"))
    busy = wire.Error(3, ErrorCode.BUSY, BUSY, None, "m3", BUSY_RETRY_SECONDS)
    assert talk.receive(UserSaid("or?", "m3", "conn")) == (Reply("conn", busy),)


def test_a_refused_message_may_be_sent_again() -> None:
    """A message that was refused as busy is not known afterwards: the second attempt starts its turn."""
    talk = running("reject")
    busy = wire.Error(2, ErrorCode.BUSY, BUSY, None, "m2", BUSY_RETRY_SECONDS)
    assert talk.receive(UserSaid("and?", "m2", "conn")) == (Reply("conn", busy),)
    talk.receive(ReplyFinished("id1", "complete", Usage()))
    assert starts(talk.receive(UserSaid("and?", "m2", "conn"))) == [StartTurn("id3")]


def test_interrupt_stops_the_turn_for_the_new_message() -> None:
    """The running turn is stopped and recorded as far as it came, then the new one starts."""
    talk = running("interrupt")
    talk.receive(TokenCame("id1", "Hel"))
    assert talk.receive(UserSaid("wait", "m2")) == (
        Send(Accepted(3, "m2", "id2", "wait")),
        said(3, "id2", "wait", 1, "m2"),
        StopTurn("id1"),
        Send(Done(4, "id1", "cancelled", Usage())),
        cancelled(4, "id3", "id1", "Hel", 2),
        StartTurn("id2"),
    )


def test_merge_answers_what_waits_together() -> None:
    """Messages sent meanwhile share one turn, which hears all of them."""
    talk = running("merge")
    talk.receive(UserSaid("and?", "m2"))
    assert talk.receive(UserSaid("or?", "m3")) == (
        Send(Accepted(3, "m3", "id2", "or?")),
        said(3, "id2", "or?", 2, "m3"),
    )
    assert starts(talk.receive(ReplyFinished("id1", "complete", Usage()))) == [StartTurn("id2")]
    assert [message.content for message in talk.messages()[1:]] == ["hello", "and?", "or?"]
    assert starts(talk.receive(ReplyFinished("id2", "complete", Usage()))) == []


def test_cancel_in_the_middle_of_a_tool_leaves_a_whole_history() -> None:
    """The open call is answered for, the partial reply is kept, and the next turn starts."""
    talk = running()
    talk.receive(ToolsAsked("id1", (ToolCall("c1", "look", "{}"),), Usage(1, 1)))
    talk.receive(UserSaid("and?", "m2"))
    stopped = "stopped before it answered"
    result = {"kind": "result", "call_id": "c1", "name": "look", "ok": False}
    usage = NO_USAGE | {"input_tokens": 1, "output_tokens": 1}
    last = {"reason": "cancelled", "usage": usage, "interrupted": True}
    assert talk.receive(CancelAsked()) == (
        StopTurn("id1"),
        Send(ToolResult(4, "id1", "c1", "look", None, stopped)),
        recorded(4, "id4", "id1", "tool", f'{{"error":"{stopped}"}}', 3, **result),
        Send(Done(5, "id1", "cancelled", Usage(1, 1))),
        recorded(5, "id5", "id1", "assistant", "", 4, **last),
        StartTurn("id3"),
    )


def test_cancel_before_the_first_word() -> None:
    """A stop that comes before the answer began still stops it."""
    assert running().receive(CancelAsked("id1")) == (
        StopTurn("id1"),
        Send(Done(2, "id1", "cancelled", Usage())),
        cancelled(2, "id2", "id1", "", 1),
    )


@pytest.mark.parametrize("while_busy", ["queue", "merge"])
def test_cancel_of_a_waiting_turn(while_busy: WhileBusy) -> None:
    """It is done without having run, which is recorded, and the running one goes on."""
    talk = running(while_busy)
    talk.receive(UserSaid("and?", "m2"))
    assert talk.receive(CancelAsked("id2")) == (
        Send(Done(3, "id2", "cancelled", Usage())),
        cancelled(3, "id3", "id2", "", 2),
    )
    assert starts(talk.receive(ReplyFinished("id1", "complete", Usage()))) == []


@pytest.mark.parametrize("turn_id", [None, "id1", "never"])
def test_cancel_of_nothing(turn_id: str | None) -> None:
    """A stop that finds no such turn changes nothing."""
    talk = running()
    assert talk.receive(CancelAsked("never")) == ()
    talk.receive(ReplyFinished("id1", "complete", Usage()))
    assert talk.receive(CancelAsked(turn_id)) == ()


def test_what_a_stopped_turn_still_says_changes_nothing() -> None:
    """Inputs from a finished turn are ignored, even those that would be illegal from a running one."""
    talk = running()
    talk.receive(CancelAsked())
    for late in (
        TokenCame("id1", "late"),
        ToolsAsked("id1", (ToolCall("c1", "look", "{}"),), Usage()),
        ToolAnswered("id1", "c1", 1),
        ReplyFinished("id1", "complete", Usage()),
        TurnFailed("id1", "internal", "Sorry."),
    ):
        assert talk.receive(late) == ()


def test_a_connection_that_joins_an_idle_session() -> None:
    """Who joins gets `ready` with the stream's position and the history, and nobody else hears of it."""
    talk = a_conversation()
    first = Ready(0, "s", 3, False, None, [])
    assert talk.receive(Attached("conn")) == (Reply("conn", first),)
    events = [effect.event for effect in talk.receive(UserSaid("hello", "m1")) if isinstance(effect, Record)]
    talk.receive(CancelAsked())
    (reply,) = talk.receive(Attached("conn"))
    assert isinstance(reply, Reply)
    assert isinstance(reply.frame, Ready)
    assert (reply.frame.seq, reply.frame.mode, reply.frame.active_turn_id) == (3, "casual", None)
    assert reply.frame.history[: len(events)] == events
    assert len(reply.frame.history) == 2


def test_a_connection_that_joins_in_the_middle_of_an_answer() -> None:
    """Who joins mid-reply gets the text so far as one token, one position after its `ready`."""
    talk = running()
    talk.receive(TokenCame("id1", "Hel"))
    talk.receive(TokenCame("id1", "lo"))
    question = said(1, "id1", "hello", 0, "m1").event
    assert talk.receive(Attached("conn")) == (
        Reply("conn", Ready(2, "s", 3, False, "casual", [question], "id1", unsaved=[1])),
        Reply("conn", Token(3, "id1", "Hello")),
    )
    assert talk.receive(TokenCame("id1", "!")) == (Send(Token(4, "id1", "!")),)


def test_a_connection_that_joins_before_the_first_word() -> None:
    """Who joins learns that a turn runs even when it has no text yet."""
    question = said(1, "id1", "hello", 0, "m1").event
    ready = Ready(1, "s", 3, False, "casual", [question], "id1", unsaved=[1])
    assert running().receive(Attached("conn")) == (Reply("conn", ready),)


def joins(talk: Conversation) -> Ready:
    """The `ready` of a client that is new."""
    effect = talk.receive(Attached("conn"))[0]
    assert isinstance(effect, Reply)
    assert isinstance(effect.frame, Ready)
    return effect.frame


def resume(talk: Conversation, after: int, epoch: int = 3) -> list[Any]:
    """The frames that a client gets which comes back from this position."""
    effects = talk.receive(Attached("conn", inputs.Position(epoch, after)))
    assert all(isinstance(effect, Reply) and effect.to == "conn" for effect in effects)
    return [effect.frame for effect in effects if isinstance(effect, Reply)]


def test_a_client_that_comes_back_gets_what_it_missed() -> None:
    """From its own position on, tokens joined, mid-answer or after it; and then the stream goes on."""
    talk = running()
    for text in ("Hel", "lo", "!"):
        talk.receive(TokenCame("id1", text))
    ready = Ready(2, "s", 3, True, "casual", [], "id1")
    assert resume(talk, 2) == [ready, Token(4, "id1", "lo!")]
    assert resume(talk, 2) == [ready, Token(4, "id1", "lo!")], "a second time"
    assert resume(talk, 4) == [Ready(4, "s", 3, True, "casual", [], "id1")], "nothing was missed"
    assert talk.receive(TokenCame("id1", "?")) == (Send(Token(5, "id1", "?")),)
    talk.receive(ReplyFinished("id1", "complete", Usage()))
    assert resume(talk, 4) == [
        Ready(4, "s", 3, True, "casual", [], None),
        Token(5, "id1", "?"),
        Done(6, "id1", "complete", Usage()),
    ]


def test_a_client_that_comes_back_before_the_first_word() -> None:
    """It learns that a turn runs, and of a message whose acceptance it missed."""
    assert resume(running(), 0) == [
        Ready(0, "s", 3, True, "casual", [], "id1"),
        Accepted(1, "m1", "id1", "hello"),
    ]


@pytest.mark.parametrize(("epoch", "after"), [(2, 1), (4, 1), (3, 99)])
def test_a_position_that_is_not_of_this_stream_starts_over(epoch: int, after: int) -> None:
    """Of another epoch, or ahead of the stream: `ready` carries the history, as for a newcomer."""
    ready, *rest = resume(running(), after, epoch)
    assert (ready.resumed, len(ready.history), rest) == (False, 1, [])


def test_a_position_older_than_what_is_kept_starts_over() -> None:
    """The buffer is bounded in bytes; one that is too far behind is told so, and gets the history."""
    talk = running()
    for _ in range(400):
        talk.receive(TokenCame("id1", "word "))
    behind, *_ = resume(talk, 1)
    assert not behind.resumed
    near, token = resume(talk, 390)
    assert near.resumed
    assert token == Token(401, "id1", "word " * 11)


def test_a_refused_frame_is_told_to_its_sender() -> None:
    """The others do not hear of it."""
    refused = FrameRefused("conn", ErrorCode.BAD_JSON, "No.", "m9", 1.5)
    error = wire.Error(1, ErrorCode.BAD_JSON, "No.", None, "m9", 1.5)
    assert a_conversation().receive(refused) == (Reply("conn", error),)


def test_saved_is_told_to_everybody() -> None:
    """What the store acknowledged is passed on."""
    assert running().receive(EventsSaved(1)) == (Send(Saved(2, 1)),)


def test_the_end_stops_everything() -> None:
    """The running turn is kept as far as it came, and what waited is done without having run."""
    talk = running()
    talk.receive(TokenCame("id1", "Hel"))
    talk.receive(UserSaid("and?", "m2"))
    assert talk.receive(EndAsked()) == (
        StopTurn("id1"),
        Send(Done(4, "id1", "cancelled", Usage())),
        cancelled(4, "id3", "id1", "Hel", 2),
        Send(Done(5, "id2", "cancelled", Usage())),
        cancelled(5, "id4", "id2", "", 3),
    )


@pytest.mark.parametrize("late", [UserSaid("hi", "m2"), UserSaid("hello", "m1"), CancelAsked(), EndAsked()])
def test_after_the_end_nothing_starts(late: inputs.Input) -> None:
    """An ended conversation takes no more."""
    talk = running()
    talk.receive(EndAsked())
    assert talk.receive(late) == ()


@pytest.mark.parametrize(
    "illegal",
    [
        ToolAnswered("id1", "c2", 1),
        ToolsAsked("id1", (ToolCall("c3", "look", "{}"),), Usage(1, 1)),
        ReplyFinished("id1", "complete", Usage(1, 1)),
    ],
)
def test_what_cannot_have_happened_changes_nothing(illegal: inputs.Input) -> None:
    """An illegal input raises, and what follows is as if it had not been."""
    talk, other = running(), running()
    for each in (talk, other):
        each.receive(ToolsAsked("id1", (ToolCall("c1", "look", "{}"),), Usage(1, 1)))
    with pytest.raises(IllegalInput):
        talk.receive(illegal)
    for following in (
        Attached(None),
        ToolAnswered("id1", "c1", 1),
        ReplyFinished("id1", "complete", Usage(1, 1)),
        Attached(None),
    ):
        assert talk.receive(following) == other.receive(following)


def test_the_model_is_told_how_to_speak_and_what_was_said() -> None:
    """The prompt of the mode comes first, then the history without the turns that wait."""
    talk = running()
    talk.receive(UserSaid("and?", "m2"))
    assert talk.messages() == [Message("system", STANDARD.modes["casual"].prompt), Message("user", "hello")]
    talk.receive(TokenCame("id1", "Hi."))
    talk.receive(ReplyFinished("id1", "complete", Usage()))
    assert talk.messages()[1:] == [Message("user", "hello"), Message("assistant", "Hi."), Message("user", "and?")]


@pytest.mark.parametrize("written", ["", "look at b", '["b"]', "null", '{"a": 1e999}'])
def test_arguments_that_are_no_object_are_shown_as_written(written: str) -> None:
    """The client sees what the model wrote, whatever it was."""
    effects = running().receive(ToolsAsked("id1", (ToolCall("c1", "look", written),), Usage()))
    assert effects[0] == Send(ToolCalled(2, "id1", "c1", "look", written))


def test_arguments_nested_beyond_reason_are_kept_as_text() -> None:
    """What JSON readers refuse to follow is shown as the model wrote it."""
    deep = '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"
    effects = running().receive(ToolsAsked("id1", (ToolCall("c1", "look", deep),), Usage()))
    assert effects[0] == Send(ToolCalled(2, "id1", "c1", "look", deep))


def test_what_was_taken_can_be_shown_for_ever() -> None:
    """However deeply a model nested its arguments, the history that holds them can be sent and read back."""

    def deeper(frames: int, value: Any) -> str:
        return deeper(frames - 1, value) if frames else msgspec.json.encode(value).decode()

    for levels in range(1, 1100):
        nested = '{"a":' + "[" * levels + "]" * levels + "}"
        talk = running()
        talk.receive(ToolsAsked("id1", (ToolCall("c1", "look", nested),), Usage()))
        (reply,) = talk.receive(Attached("conn"))
        assert isinstance(reply, Reply)
        text = deeper(60, reply.frame)
        assert msgspec.json.decode(text, type=Ready) == reply.frame


def test_every_input_is_known() -> None:
    """The table of what may happen and the type that lists it agree."""
    assert set(get_args(inputs.Input)) == set(DECIDES)


def test_another_message_under_a_used_id_is_refused_by_name() -> None:
    """A known message id with other words is refused: it would be taken for the first, and its words lost."""
    talk = running("queue")
    assert talk.receive(UserSaid("other words", "m1", "a")) == (
        Reply(
            "a",
            wire.Error(
                2,
                ErrorCode.MESSAGE_ID_USED,
                "This `message_id` was used for another message; send the new one under an id of its own.",
                None,
                "m1",
            ),
        ),
    )


def test_an_id_that_is_not_remembered_swallows_no_words() -> None:
    """The same id with the same words is one event, stored once; with other words it is another event."""
    first, same, other = (
        next(effect.event for effect in a_conversation().receive(UserSaid(words, "m1")) if isinstance(effect, Record))
        for words in ("hi", "hi", "ho")
    )
    assert first.event_id == same.event_id != other.event_id
